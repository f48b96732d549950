"""Tasks with exact answers as pure functions of tensors; see `tasks.toy` and `tasks.gridworld` for the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pg_lightning.envs.tasks.gridworld import TIME_LIMIT


@dataclass(frozen=True)
class DelayedReward:
    """`length` steps without a choice and reward 1 at the end."""

    num_uniforms: ClassVar[int] = 1
    length: int = 2

    def first(self, uniform: Tensor) -> Tensor:
        """Steps taken `[N, 1]`: none."""
        return torch.zeros_like(uniform)

    def observe(self, state: Tensor) -> Tensor:
        """The fraction of steps taken `[N, 1]`."""
        return state / self.length

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves by one."""
        moved = state + 1
        terminated = moved[..., 0] >= self.length
        return moved, terminated.to(state.dtype), terminated


@dataclass(frozen=True)
class ObservedReward:
    """One step whose reward is the observation, −1 or +1."""

    num_uniforms: ClassVar[int] = 1

    def first(self, uniform: Tensor) -> Tensor:
        """A sign `[N, 1]`."""
        return _sign(uniform)

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the observation as the reward."""
        rewards = state[..., 0]
        return state, rewards, torch.ones_like(rewards, dtype=torch.bool)


@dataclass(frozen=True)
class Recall:
    """The cue shown first, −1 or +1, decides which action, 0 or 1, pays 1 at the last step."""

    num_uniforms: ClassVar[int] = 1
    delay: int = 3

    def first(self, uniform: Tensor) -> Tensor:
        """The cue, and the steps taken `[N, 2]`."""
        return torch.cat([_sign(uniform), torch.zeros_like(uniform)], -1)

    def observe(self, state: Tensor) -> Tensor:
        """The cue in the first step, else 0; and whether this is the last step `[N, 2]`."""
        cue, steps = state.unbind(-1)
        return torch.stack([cue * (steps == 0), (steps >= self.delay).to(cue.dtype)], -1)

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pays in the last step if the action matches the cue."""
        cue, steps = state.unbind(-1)
        terminated = steps >= self.delay
        is_right = (actions > 0) == (cue > 0)
        return torch.stack([cue, steps + 1], -1), (terminated & is_right).to(state.dtype), terminated


@dataclass(frozen=True)
class GreyCells:
    """The aliased gridworld: a corridor, with traps below its ends and the treasure below its middle."""

    num_uniforms: ClassVar[int] = 1
    penalty: float = float(TIME_LIMIT)

    def first(self, uniform: Tensor) -> Tensor:
        """Row and column `[N, 2]`: anywhere in the corridor."""
        return torch.cat([torch.zeros_like(uniform), (5 * uniform).floor()], -1)

    def observe(self, state: Tensor) -> Tensor:
        """1 for each side N, E, S, W of the cell that is a wall `[N, 4]`."""
        row, column = state.unbind(-1)
        below = row > 0
        sides = [~below, below | (column == 4), below | (column % 2 == 1), below | (column == 0)]
        return torch.stack(sides, -1).to(state.dtype)

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves, or stays if there is a wall."""
        row, column = state.unbind(-1)
        is_open = self.observe(state).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1) == 0
        east, south, west = (is_open & (actions == side) for side in (1, 2, 3))
        row, column = row + south.to(row.dtype), column + east.to(row.dtype) - west.to(row.dtype)
        terminated = row > 0
        trapped = terminated & (column != 2)
        return torch.stack([row, column], -1), -1.0 - self.penalty * trapped.to(row.dtype), terminated


def _sign(uniform: Tensor) -> Tensor:
    return 2.0 * (uniform >= 0.5).to(uniform.dtype) - 1.0
