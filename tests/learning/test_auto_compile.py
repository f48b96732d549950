"""`model.compile: auto` compiles if the budget has enough gradient steps, and says so."""

import pytest
from lightning.pytorch import Trainer

from pg_lightning import A2C, PPO
from pg_lightning.data import RolloutDataModule
from pg_lightning.learning import auto_compile
from pg_lightning.learning.auto_compile import decide


def decided(monkeypatch, algorithm=PPO, total_steps=6_000_000, data=None, compile="auto", **options):
    """The module after the decision, and the line."""
    said = []
    monkeypatch.setattr(auto_compile, "rank_zero_info", said.append)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, total_steps=total_steps, **data or {})
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    module = algorithm(**spaces, total_steps=total_steps, compile=compile, **options)
    assert not module.learner.compiles
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    decide(module, data)
    assert module.learner.compiles == module.learner.backward.compiles == module.actor.compiles
    return module.learner.compiles, said


@pytest.mark.parametrize(
    ("total_steps", "options", "compiles", "reason"),
    [
        (6_000_000, {}, True, "on: 93,744 gradient steps save some 47 s, compiling takes some 40 s"),
        (4_000_000, {}, False, "off: 62,496 gradient steps save some 31 s, compiling takes some 40 s"),
        (4_000_000, {"num_epochs": 10}, True, "on: 156,240 gradient steps save some 78 s"),
        (6_000_000, {"algorithm": A2C}, False, "off: 5,859 gradient steps"),
        (10**9, {"memory": "lstm"}, False, "off: updates of this policy are not compiled"),
        (10**9, {"data": {"whole_episodes": True}}, False, "off: the number of rows varies"),
    ],
)
def test_it_compiles_if_enough_gradient_steps_make_up_for_the_time(monkeypatch, total_steps, options, compiles, reason):
    found, (said,) = decided(monkeypatch, total_steps=total_steps, **options)
    assert found is compiles
    assert said.startswith(f"model.compile auto: {reason}")


def test_without_a_compiler_it_does_not(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert decided(monkeypatch) == (False, ["model.compile auto: off: there is no C++ compiler"])


def test_without_auto_nothing_is_decided(monkeypatch):
    assert decided(monkeypatch, compile=False) == (False, [])
