"""What training adds to the environment is in training alone."""

from __future__ import annotations

from typing import Any

import pytest
from run_files import read_metrics

from pg_lightning import RolloutDataModule
from pg_lightning.errors import UserError

HALF = {"class_path": "gymnasium.wrappers.ClipReward", "init_args": {"min_reward": 0, "max_reward": 0.5}}
STACK = {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 2}}


@pytest.mark.parametrize("backend", ["sync", "async", "auto"])
def test_training_plays_with_it_and_evaluation_without(cli: Any, tiny: Any, tmp_path: Any, backend: str) -> None:
    added = ("--data.train_env_kwargs", "{max_episode_steps: 8}", "--data.train_wrappers", f"[{HALF}]")
    short = ("--data.backend", backend, "--data.total_steps", 128, "--trainer.log_every_n_steps", 1)
    finished = cli(tmp_path, "fit", "--config", tiny, *added, *short)
    assert finished.returncode == 0, finished.stderr
    rows = read_metrics(tmp_path / "runs/tiny/version_0")
    trained, evaluated = ([row for row in rows if f"{stage}/return_mean" in row][-1] for stage in ("rollout", "val"))
    assert trained["rollout/return_mean"] == 4
    assert trained["rollout/length_mean"] == 8
    assert evaluated["val/return_mean"] == evaluated["val/length_mean"] > 8


def test_training_adds_to_the_arguments_and_wrappers_that_both_have() -> None:
    data = RolloutDataModule(
        "CartPole-v1",
        {"max_episode_steps": 9, "sutton_barto_reward": True},
        [STACK],
        {"max_episode_steps": 5},
        [HALF],
        num_envs=1,
    )
    collector = data.make_collector([0], 0)
    spec = collector.env.vector_env.envs[0].spec
    collector.close()
    assert (spec.max_episode_steps, spec.kwargs) == (5, {"sutton_barto_reward": True})
    added = [(wrapper.name, wrapper.kwargs) for wrapper in spec.additional_wrappers[:2]]
    assert [name for name, _ in added] == ["FrameStackObservation", "ClipReward"]
    assert added[0][1]["stack_size"] == 2
    assert added[1][1] == HALF["init_args"]
    assert (data.env_kwargs, data.wrappers) == ({"max_episode_steps": 9, "sutton_barto_reward": True}, [STACK])


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"train_env_kwargs": {"gravitas": 1}}, "data.train_env_kwargs: cannot make 'CartPole-v1': "),
        ({"train_wrappers": ["nope.Nope"]}, "data.train_wrappers: cannot import 'nope.Nope': "),
        ({"train_wrappers": [STACK]}, "data.train_wrappers: training has other spaces than evaluation, "),
    ],
)
def test_what_cannot_be_added_is_refused_in_one_line(added: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        RolloutDataModule("CartPole-v1", **added)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
