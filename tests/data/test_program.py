"""Compiled steps of policy and environments are the single steps, with the same random numbers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from compilations import compiled_graphs, refuse_usual_calls, without_inductor
from gymnasium import spaces
from torch import Tensor

from pg_lightning import PPO, Rollout
from pg_lightning.data import RolloutCollector
from pg_lightning.envs.backends.tensor import TensorEnvironments
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.distributions import Categorical

N, ROLLOUTS = 16, 10  # torch draws 16 normal numbers at a time
CASES = {
    "Categorical": ("CartPole-v1", {}),
    "normalised": ("CartPole-v1", {"normalize_obs": True}),
    "Gaussian": ("Pendulum-v1", {}),
    "squashed Gaussian": ("Pendulum-v1", {"head": "squashed_gaussian", "state_dependent_std": True}),
    "LSTM": ("CartPole-v1", {"memory": "lstm", "memory_size": 3}),
    "GRU, shared": ("Acrobot-v1", {"memory": "gru", "memory_size": 3, "shared_torso": True}),
    "car": ("MountainCarContinuous-v0", {"activation": "relu"}),
}


class Doubled(TensorEnvironments):
    """Two binary choices, of which the first is the action."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.single_action_space = spaces.MultiDiscrete([2, 3])

    def transition(self, carry: Any, actions: Tensor, noise: Tensor) -> Any:
        return super().transition(carry, actions[:, 0], noise)


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    without_inductor(monkeypatch)


def collector(env: TensorEnvironments, num_steps: int) -> RolloutCollector:
    return RolloutCollector(env, num_steps, seeds=3, action_seed=4)


def actor_of(env: TensorEnvironments, compiles: bool, **options: Any) -> PolicyActor:
    torch.manual_seed(0)
    spaces = {"observation_space": env.single_observation_space, "action_space": env.single_action_space}
    actor = PPO(**spaces, hidden_sizes=[5], **options).double().actor
    actor.compiles = compiles
    return actor


def play(kind: type[TensorEnvironments], env_id: str, num_steps: int, compiles: bool, **options: Any) -> list[Rollout]:
    env = kind(env_id, N, {"max_episode_steps": 7}, dtype=torch.float64)
    actor, played = actor_of(env, compiles, **options), collector(env, num_steps)
    return [played.collect(actor) for _ in range(ROLLOUTS)]


def assert_equal(one: Rollout, other: Rollout) -> None:
    for field in fields(one):
        x, y = getattr(one, field.name), getattr(other, field.name)
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-10 if x.dtype == torch.float64 else 1e-6, msg=field.name)
        else:
            assert x == y


def assert_same_play(kind: type[TensorEnvironments], env_id: str, num_steps: int, options: dict[str, Any]) -> None:
    eager = play(kind, env_id, num_steps, False, **options)
    before = compiled_graphs()
    program = play(kind, env_id, num_steps, True, **options)
    assert compiled_graphs() == before + 1
    for one, other in zip(eager, program, strict=True):
        assert_equal(one, other)
    assert sum(len(x.episode_returns) for x in program) > 0
    assert sum(len(x.final_rows) for x in program) > 0


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_rollout_is_that_of_single_steps(name: str) -> None:
    env_id, options = CASES[name]
    assert_same_play(TensorEnvironments, env_id, 16, options)


def test_compiled_code_plays_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    refuse_usual_calls(monkeypatch)
    assert_same_play(TensorEnvironments, "CartPole-v1", 12, {})


@pytest.mark.parametrize("num_steps", [1, 5, 11, 12])
def test_any_number_of_steps_can_be_compiled(num_steps: int) -> None:
    options = {"memory": "gru", "memory_size": 3} if num_steps == 11 else {}
    assert_same_play(TensorEnvironments, "CartPole-v1", num_steps, options)


def test_several_choices_can_be_compiled() -> None:
    assert_same_play(Doubled, "CartPole-v1", 16, {})


def test_new_weights_act_without_a_new_compilation() -> None:
    env = TensorEnvironments("CartPole-v1", N)
    actor, played = actor_of(env, True), collector(env, 16)
    played.collect(actor)
    before = compiled_graphs()
    with torch.no_grad():
        actor.policy.actor_head.linear.bias += torch.tensor([0.0, 50.0])
    assert (played.collect(actor).actions == 1).all()
    assert compiled_graphs() == before


def test_a_policy_whose_samples_are_not_a_function_of_noise_plays_single_steps(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    env = TensorEnvironments("Pendulum-v1", N)
    actor, played = actor_of(env, True, head="beta"), collector(env, 16)
    before = compiled_graphs()
    for _ in range(2):
        assert played.collect(actor).env_steps == 16 * N
    assert compiled_graphs() == before
    assert [x.message for x in caplog.records].count(
        "model.compile: the steps of a rollout are not compiled: samples of a Beta distribution are not a function of "
        "noise"
    ) == 1


class Zero(ActorCritic):
    """Always takes the first action."""

    def sample(self, obs: Tensor, *args: Any) -> Any:
        actions, state = super().sample(obs, *args)
        return torch.zeros_like(actions), state


class Cold(Categorical):
    """Samples its mode."""

    def sample(self, generator: Any = None) -> Tensor:
        return self.mode


@pytest.mark.parametrize("what", ["policy", "distribution"])
def test_a_policy_that_samples_in_its_own_way_plays_single_steps(what: str, caplog: pytest.LogCaptureFixture) -> None:
    env = TensorEnvironments("CartPole-v1", N, dtype=torch.float64)
    actor = actor_of(env, True)
    if what == "policy":
        actor.policy.__class__ = Zero
    else:
        actor.policy.actor_head.distribution = lambda outputs, mask=None: Cold(outputs)
    rollout = collector(env, 16).collect(actor)
    assert "model.compile: the steps of a rollout are not compiled: " in caplog.text
    pi, _ = actor.distribution(rollout.obs[:-1].flatten(0, 1), None)
    expected = torch.zeros_like(rollout.actions) if what == "policy" else pi.mode.view_as(rollout.actions)
    assert torch.equal(rollout.actions, expected)


class Waiting(TensorEnvironments):
    """One environment ignores its actions."""

    def transition(self, carry: Any, actions: Tensor, noise: Tensor) -> Any:
        carry, step = super().transition(carry, actions, noise)
        return carry, step._replace(valid=torch.arange(self.num_envs) > 0)


def test_environments_with_invalid_steps_play_single_steps(caplog: pytest.LogCaptureFixture) -> None:
    env = Waiting("CartPole-v1", N, None, "cpu")
    played = collector(env, 16)
    rollout = played.collect(actor_of(env, compiles=True))
    assert "the steps of a rollout are not compiled" in caplog.text
    assert rollout.env_steps == 16 * (N - 1)


def test_compiled_rollouts_may_follow_single_steps() -> None:
    env = TensorEnvironments("CartPole-v1", N)
    played = collector(env, 16)
    played.collect(actor_of(env, False))
    before = compiled_graphs()
    assert played.collect(actor_of(env, True)).env_steps == 16 * N
    assert compiled_graphs() == before + 1


def test_with_a_memory_only_rollouts_are_compiled(caplog: pytest.LogCaptureFixture, fit: Any) -> None:
    before = compiled_graphs()
    data = {"num_envs": 2, "num_steps": 8, "total_steps": 32, "backend": "device", "eval_episodes": 1}
    fit("CartPole-v1", data, algorithm=PPO, compile=True, memory="gru", memory_size=3, num_minibatches=2)
    assert compiled_graphs() == before + 1
    assert "model.compile: updates of a recurrent policy" in caplog.text


def test_the_state_between_compiled_rollouts_is_restored() -> None:
    def begun() -> tuple[RolloutCollector, PolicyActor]:
        env = TensorEnvironments("CartPole-v1", N)
        return collector(env, 16), actor_of(env, True, memory="gru", memory_size=3)

    played, actor = begun()
    played.collect(actor)
    other, _ = begun()
    assert other.load_state_dict(played.state_dict()) == ""
    assert_equal(played.collect(actor), other.collect(actor))
