"""Observations that float32 cannot resolve are kept in float64 where training computes in it, and named elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from pg_lightning.data import EvaluationDataset, RolloutCollector
from pg_lightning.envs import make_vector_env

NOW = 1_700_000_000  # seconds since 1970


class Clock(gym.Env[Any, Any]):
    """Shows a number that counts up from `start`, in the dtype `dtype`. Pays for saying whether it is odd.

    With a step of 0 an episode is one step long, and its number is `start` or the next.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, dtype: str, start: int = NOW, step: int = 1) -> None:
        kind = np.dtype(dtype)
        high = 1e12 if kind.kind == "f" else np.iinfo(kind).max
        self.observation_space = spaces.Box(0, high, (1,), kind.type)  # type: ignore[arg-type]
        self.start, self.by = start, step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.now = self.start if self.by else self.start + int(self.np_random.integers(2))
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        before, self.now = self.now, self.now + self.by
        return self.shown(), float(action == before % 2), False, self.now >= self.start + 8 * self.by, {}

    def shown(self) -> Any:
        return np.array([self.now], self.observation_space.dtype)


gym.register("tests/Clock-v0", Clock)
DTYPES = ["float64", "int64", "int32", "uint32"]


class Watcher:
    """Remembers what it is shown."""

    policy_version = 0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def acting(self) -> torch.no_grad:
        return torch.no_grad()

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, obs: Tensor, *_: Any) -> tuple[Tensor, None]:
        self.shown.append(obs.clone())
        return torch.zeros(len(obs), dtype=torch.int64), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_exact_where_training_computes_in_float64(dtype: str, backend: Any) -> None:
    env = make_vector_env("tests/Clock-v0", 1, {"dtype": dtype}, (), backend)
    collector, actor = RolloutCollector(env, 12, [1], 0, double=True), Watcher()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout = collector.collect(actor)
    counted = [NOW + t % 8 for t in range(13)]
    assert rollout.obs.flatten().tolist() == counted
    assert torch.cat(actor.shown).flatten().tolist() == counted[:-1]
    assert rollout.final_obs.flatten().tolist() == [NOW + 8]
    assert collector.state_dict()["obs"].tolist() == [[counted[-1]]]
    collector.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_evaluation_shows_them_as_exactly(dtype: str) -> None:
    env = make_vector_env("tests/Clock-v0", 1, {"dtype": dtype}, (), "sync", "disabled")
    actor = Watcher()
    list(EvaluationDataset(env, actor, [1], 0, True, 100, double=True))
    assert torch.cat(actor.shown).flatten().tolist() == [NOW + t for t in range(8)]


@pytest.mark.parametrize("env_kwargs", [{"dtype": dtype} for dtype in [*DTYPES, "float32"]], ids=str)
def test_numbers_that_float32_cannot_resolve_are_named_once(env_kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collector = RolloutCollector(make_vector_env("tests/Clock-v0", 2, env_kwargs), 12, [1, 2], 0)
        for _ in range(3):
            assert collector.collect(Watcher()).obs.dtype == torch.float32
    (line,) = [str(x.message) for x in caught if "float32" in str(x.message)]
    assert line.startswith("data.env_id: observations reach 1.7e+09, and policies compute in float32, which cannot ")
    assert line.endswith("set trainer.precision: 64-true")
    collector.close()


def test_they_are_named_when_they_come_later() -> None:
    clock = {"dtype": "float64", "start": 0, "step": 4_000_000}
    with pytest.warns(UserWarning, match=r"observations reach 2.8e\+07"):
        RolloutCollector(make_vector_env("tests/Clock-v0", 1, clock), 7, [1], 0).collect(Watcher())


@pytest.mark.parametrize("dtype", [*DTYPES, "float32", "int16", "uint8"])
def test_others_are_not(dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector = RolloutCollector(make_vector_env("tests/Clock-v0", 1, {"dtype": dtype, "start": 100}), 7, [1], 0)
        rollout = collector.collect(Watcher())
    assert rollout.obs.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.filterwarnings("ignore:.*cannot tell whole numbers")
def test_the_trainers_precision_decides(precision: str, fit: Any) -> None:
    """Whether the number is odd can only be learned from what is kept."""
    clock = {"dtype": "int64", "step": 0}
    data = {"env_kwargs": clock, "num_steps": 32, "total_steps": 2560, "eval_every_steps": 10**6, "eval_episodes": 20}
    model = {"normalize_obs": True, "lr": 3e-3}
    module = fit("tests/Clock-v0", data, trainer={"precision": precision}, **model)
    score = module.evaluation[0].mean()
    assert score == 1.0 if precision == "64-true" else score < 0.8
