"""Observations and rewards of a scale with which nothing is learned are named when training starts."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pg_lightning.learning.run_statistics import report_vanishing


class Scaled(gym.Env[Any, Any]):
    """Observations of any shape, dtype and bound, that vary by `scale` around `offset`, as do rewards around 0."""

    action_space = spaces.Discrete(2)

    def __init__(self, shape: Any = (2,), dtype: str = "float32", high: float = 1.0, scale: float = 1.0) -> None:
        kind = np.dtype(dtype).type
        low = 0 if np.isfinite(high) else -np.inf
        self.observation_space = spaces.Box(low, high, tuple(shape), kind)  # type: ignore[arg-type]
        self.scale = scale

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.shown(), self.scale * float(self.np_random.normal()), self.steps == 4, False, {}

    def shown(self) -> Any:
        space = self.observation_space
        return (self.scale * self.np_random.random(space.shape)).astype(space.dtype)


gym.register("tests/Scaled-v0", Scaled)


def said(fit: Any, env_kwargs: dict[str, Any], **model: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = {"env_kwargs": env_kwargs, "num_envs": 2, "num_steps": 16, "total_steps": 96, "eval_episodes": 1}
        fit("tests/Scaled-v0", data, **model)
    return [str(x.message) for x in caught if str(x.message).startswith("model.")]


IMAGE = {"shape": (36, 36, 3), "high": 255.0, "scale": 200.0}
CNN = {"torso": "nature_cnn"}


@pytest.mark.parametrize(
    ("env_kwargs", "model", "name"),
    [
        ({**IMAGE, "dtype": "float32"}, CNN, "nature_cnn"),
        ({**IMAGE, "dtype": "int32"}, CNN, "nature_cnn"),
        ({"dtype": "uint8", "high": 255, "scale": 200.0}, {}, "mlp"),
        ({"high": np.inf, "scale": 1e4}, {}, "mlp"),
        ({"high": np.inf, "scale": -1e4}, {}, "mlp"),
    ],
)
def test_large_observations_that_reach_the_network_as_they_are_are_named_once(
    env_kwargs: Any, model: Any, name: str, fit: Any
) -> None:
    (line,) = said(fit, env_kwargs, **model)
    assert line.startswith(f"model.torso: {name} takes observations as they are, and they reach ")
    assert "; set model.normalize_obs: true" in line
    assert ("uint8" in line) == (name == "nature_cnn")


@pytest.mark.parametrize(
    ("env_kwargs", "model"),
    [
        ({**IMAGE, "dtype": "uint8"}, CNN),
        ({**IMAGE, "dtype": "float32", "scale": 1.0}, CNN),
        ({**IMAGE, "dtype": "float32"}, {**CNN, "normalize_obs": True}),
        ({"high": np.inf}, {}),
        ({"high": 1e4}, {}),
        ({"high": 255, "dtype": "uint8"}, {}),
        ({}, {"normalize_obs": True, "scale_rewards": True}),
    ],
)
def test_others_are_not(env_kwargs: Any, model: Any, fit: Any) -> None:
    assert said(fit, env_kwargs, **model) == []


def test_numbers_that_normalisation_leaves_near_0_are_named_once(fit: Any) -> None:
    obs, returns = sorted(said(fit, {"scale": 1e-7}, normalize_obs=True, scale_rewards=True))
    assert obs.startswith("model.normalize_obs: observations (entries 0, 1) have a standard deviation of 3e-08, and ")
    assert returns.startswith("model.scale_rewards: returns have a standard deviation of ")


@pytest.mark.parametrize(
    ("mean", "std", "is_named"),
    [(0.0, 1e-7, True), (0.01, 1e-5, True), (0.0, 1e-3, False), (0.0, 0.0, False), (1e3, 1e-5, False)],
)
def test_what_varies_by_rounding_alone_is_not_named(mean: float, std: float, is_named: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report_vanishing("it: numbers", (10, torch.tensor([mean]).double(), torch.tensor([std**2]).double()))
    assert bool(caught) == is_named
