"""Environments that implement the contract themselves are held to its shapes, on the host and on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import actor_for
from gymnasium import spaces
from tensor_env import TensorCartPole

from pg_lightning.data import RolloutCollector
from pg_lightning.envs.contract import VectorStep
from pg_lightning.errors import UserError

N = 3


class Odd(TensorCartPole):
    """Changes observations and rewards of steps, and those of a reset if `at_reset`; as NumPy arrays on the host."""

    def __init__(self, change: Callable[..., Any], at_reset: bool, is_host: bool) -> None:
        super().__init__(N)
        self.change, self.at_reset, self.is_host = change, at_reset, is_host
        if is_host:
            self.capabilities = replace(self.capabilities, device=None)

    def reset(self, seeds: Any = None) -> Any:
        obs, mask = super().reset(seeds)
        return self._given(self.change(obs, torch.ones(N))[0] if self.at_reset else obs), mask

    def step(self, actions: Any) -> Any:
        step = super().step(actions)
        obs, rewards = self.change(step.obs, step.rewards)
        return VectorStep(*map(self._given, step._replace(obs=obs, rewards=rewards)[:7]))

    def _given(self, x: Any) -> Any:
        return x.numpy().copy() if self.is_host else x


CHANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "observations of one": (lambda obs, rewards: (obs[:1], rewards), "observations of shape [1, 4]"),
    "a row of rewards": (lambda obs, rewards: (obs, rewards[None]), "rewards of shape [1, 3]"),
    "one reward": (lambda obs, rewards: (obs, rewards[:1]), "rewards of shape [1]"),
    "transposed": (lambda obs, rewards: (obs.T, rewards), "observations of shape [4, 3]"),
}


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("at_reset", [True, False], ids=["reset", "step"])
@pytest.mark.parametrize("name", CHANGES)
def test_other_shapes_are_refused_not_broadcast(name: str, at_reset: bool, is_host: bool) -> None:
    change, what = CHANGES[name]
    with pytest.raises(UserError) as error:
        RolloutCollector(Odd(change, at_reset, is_host), 4, 1, 0).collect(actor_for(TensorCartPole(N)))
    assert str(error.value).startswith(f"data.env_id: the environments returned {what} and dtype ")
    assert "they must return observations [3, 4] of Box(" in str(error.value)


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "device"])
def test_floats_where_the_space_has_bytes_are_refused(is_host: bool) -> None:
    env = Odd(lambda *x: x, False, is_host)
    env.single_observation_space = spaces.Box(0, 255, (4,), np.uint8)  # type: ignore[misc]
    with pytest.raises(UserError, match=r"observations of shape \[3, 4\] and dtype (torch.)?float32"):
        RolloutCollector(env, 4, 1, 0)
