"""Rows on a device: T steps of N environments as tensors, and converted to a `Rollout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pg_lightning.data.episodes import DeviceEpisodes
from pg_lightning.data.finite import check_finite
from pg_lightning.data.host_rows import sometimes_masked
from pg_lightning.data.shapes import Shapes
from pg_lightning.envs.contract import Environments, VectorStep
from pg_lightning.rollout import Rollout


class Row(NamedTuple):
    """One row of N environments; with a first dimension k, a block of k rows.

    Attributes:
        next_obs: `[N, *obs]` observations after the step.
        rewards: `[N]`, as `terminated`, `truncated`, `valid` and `timesteps`: see `Rollout`.
        final_obs: `[N, *obs]`, defined where `cut`.
        ended: `[N]` bool; a counted episode ended in this row.
        cut: `[N]` bool; it was truncated and reset within the step.
        returns: `[N]` float64 sum of rewards of the episode, including this row.
        lengths: `[N]` int64 its env steps.
    """

    next_obs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    timesteps: Tensor
    final_obs: Tensor
    ended: Tensor
    cut: Tensor
    returns: Tensor
    lengths: Tensor


def row_of(
    step: VectorStep[Tensor], obs: Tensor, episodes: DeviceEpisodes, is_last: bool = False
) -> tuple[Row, DeviceEpisodes]:
    """The row of a step, and the episodes after it, as a pure function.

    Everything is copied, because simulators write in place.

    Args:
        step: its result.
        obs: `[N, *obs]` before it.
        episodes: before the step.
        is_last: whether environments that end an episode in this step wait for the others.
    """
    rewards, valid, truncated = step.rewards.float(), episodes.playing, step.truncated.clone()
    if step.valid is not None:
        valid = valid & step.valid
    # Not a product: the reward of an ignored action may be infinite.
    rewards = rewards.masked_fill(~valid, 0.0)
    if step.restarted is not None:
        truncated |= step.restarted
    ended = step.done & episodes.playing
    totals, after = episodes.advanced(step, rewards, valid, is_last)
    row = Row(
        next_obs=step.obs.to(obs.device, obs.dtype, copy=True),
        rewards=rewards,
        terminated=step.terminated.clone(),
        truncated=truncated,
        valid=valid,
        timesteps=episodes.lengths,
        final_obs=obs if step.final_obs is None else step.final_obs.to(obs.dtype, copy=True),
        ended=ended,
        cut=ended & step.begins & ~step.terminated,
        returns=totals.returns,
        lengths=totals.lengths,
    )
    return row, after


class PlayedRows(NamedTuple):
    """k rows of environments that reset within the step and whose rows are all valid: the columns that determine the
    others, see `Row`, and the actions `[k, N, *action]`."""

    next_obs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    timesteps: Tensor
    final_obs: Tensor
    returns: Tensor
    actions: Tensor

    @classmethod
    def of(cls, row: Row, actions: Tensor) -> PlayedRows:
        """One row."""
        return cls(**{name: getattr(row, name) for name in cls._fields[:-1]}, actions=actions)

    def block(self) -> Row:
        """The rows with all columns."""
        *columns, _ = self
        known = dict(zip(self._fields, columns, strict=False))
        return Row(
            **known,
            valid=torch.ones_like(self.terminated),
            ended=self.terminated | self.truncated,
            cut=self.truncated & ~self.terminated,
            lengths=self.timesteps + 1,
        )


class DeviceRows:
    """Rows of environments that return tensors on a device.

    No step waits for the device; `rollout` does, once, for the number of env steps, of ended episodes and of final
    observations. Final observations need memory for as many as there are rows.

    Args:
        env: the environments; their device is the rows'.
        num_steps: see `HostRows`.
        whole_episodes: see `HostRows`; then every step past `num_steps` synchronises with the device.

    Attributes:
        t: see `HostRows`, as `now`, `mask`, `actions` and `episodes`.
    """

    def __init__(self, env: Environments, num_steps: int, whole_episodes: bool) -> None:
        self.num_steps, self.num_envs, self.whole_episodes = num_steps, env.num_envs, whole_episodes
        self.num_columns = self.num_envs
        self.device = cast(torch.device, env.capabilities.device)
        self._obs_dtype = torch.uint8 if env.single_observation_space.dtype == np.uint8 else torch.float32
        self.episodes = DeviceEpisodes.fresh(env.num_envs, self.device)
        self._shapes = Shapes(env)
        self._blocks: list[Row] = []

    def show(self, obs: Tensor, mask: Tensor | None) -> None:
        """Sets the first observations after a reset of all environments."""
        self._shapes.check_obs(obs)
        self.now = obs.to(self.device, self._obs_dtype, copy=True)
        self.mask = None if mask is None else mask.clone()
        self.episodes = DeviceEpisodes.fresh(self.num_envs, self.device)

    def restore(self, state: dict[str, Any]) -> None:
        """See `HostRows.restore`."""
        self.show(state["obs"], None if state["action_mask"] is None else state["action_mask"].to(self.device))
        self.episodes = DeviceEpisodes.loaded(state, self.device)

    def begin(self) -> None:
        """Starts a rollout with the current observations."""
        self.t = 0
        self.actions: list[Tensor] = []
        self._taken: list[Tensor] = []
        self._first = self.now
        self._masks = None if self.mask is None else [self.mask]
        self._rows: list[Row] = []
        self._blocks = []

    def add(self, step: VectorStep[Tensor]) -> None:
        """Adds the result of the actions of row t."""
        if step.obs.shape != self._shapes.obs or step.rewards.shape != self._shapes.rewards:
            raise self._shapes.of_step(step)
        if step.restarted is not None and self._rows:
            cut_off = step.restarted & (self.episodes.lengths > 0)
            self._rows[-1] = self._rows[-1]._replace(truncated=self._rows[-1].truncated | cut_off)
        is_last = self.whole_episodes and self.t + 1 >= self.num_steps
        row, self.episodes = row_of(step, self.now, self.episodes, is_last)
        self._rows.append(row)
        self.now = row.next_obs
        self.t += 1
        if self._masks is not None or step.action_mask is not None:
            self._keep_mask(step.action_mask)

    def extend(self, played: PlayedRows, returns: Tensor, lengths: Tensor) -> None:
        """Adds k rows at once, and sets returns and lengths of the episodes after them."""
        self._close_block()
        self._taken += [played.actions] if not self.actions else [torch.stack(self.actions), played.actions]
        self.actions = []
        self._blocks.append(played.block())
        self.episodes = self.episodes._replace(returns=returns, lengths=lengths)
        self.now = played.next_obs[-1]
        self.t += len(played.rewards)

    @staticmethod
    def cleared(state: Tensor, begins: Tensor) -> Tensor:
        """`[N, S]` the recurrent state, reset where an episode starts."""
        return state * (~begins).unsqueeze(1).to(state.device)

    def on_turn(self, memory: Tensor) -> Tensor:
        """See `HostRows`."""
        return memory

    def carried(self, memory: Tensor, state: Tensor, begins: Tensor) -> Tensor:
        """See `HostRows`."""
        return self.cleared(state, begins)

    def check(self) -> None:
        """See `HostRows.check`; synchronises with the device. `rollout` calls it too."""
        obs, actions = self._first.unsqueeze(0), self._all_actions()
        finals, final_rows, rewards = self._first[:0], self._first.new_zeros(0), self._first.new_ones(0, self.num_envs)
        if self.t:
            columns = self._columns()
            final_rows = columns.cut.flatten().nonzero().flatten()
            finals, rewards = columns.final_obs.flatten(0, 1)[final_rows], columns.rewards
            obs = torch.cat([obs, columns.next_obs])
        host = [x.cpu().numpy() for x in (obs, rewards, finals)]
        check_finite(host[0], host[1], zip(host[2], final_rows.tolist(), strict=True), actions, self.num_steps)

    def rollout(self, policy_version: int, state: Tensor | None, restarts: int | None) -> Rollout:
        """See `HostRows.rollout`.

        Raises:
            UserError: see `check`.
        """
        columns, actions = self._columns(), self._all_actions()
        obs = torch.cat([self._first.unsqueeze(0), columns.next_obs])
        ended, cut, final_obs = columns.ended.flatten(), columns.cut.flatten(), columns.final_obs.flatten(0, 1)
        # A sum is finite if its terms are, unless it overflows; then `check` finds nothing.
        finals = final_obs.flatten(1).sum(1).masked_fill(~cut, 0.0)
        finite = torch.stack([x.sum().to(self.device, torch.float32) for x in (obs, columns.rewards, actions, finals)])
        counts = torch.stack([columns.valid.sum(), ended.sum(), cut.sum(), finite.isfinite().all()])
        env_steps, num_ended, num_cut, is_finite = counts.tolist()  # synchronises with the device
        if not is_finite:
            self.check()
        final_rows = torch.nonzero_static(cut, size=num_cut).flatten()
        ended_rows = torch.nonzero_static(ended, size=num_ended).flatten()
        return Rollout(
            obs=obs,
            actions=actions,
            rewards=columns.rewards,
            terminated=columns.terminated,
            truncated=columns.truncated,
            valid=columns.valid,
            timesteps=columns.timesteps,
            final_obs=final_obs[final_rows],
            final_rows=final_rows,
            episode_returns=columns.returns.flatten()[ended_rows].float(),
            episode_lengths=columns.lengths.flatten()[ended_rows].float(),
            policy_version=policy_version,
            env_steps=env_steps,
            env_restarts=restarts,
            action_mask=None if self._masks is None else torch.stack(self._masks[: self.t]),
            state=None if state is None else state.clone(),
        )

    def _all_actions(self) -> Tensor:
        last = [torch.stack(self.actions)] if self.actions else []
        return torch.cat([*self._taken, *last] or [torch.ones(0)])

    def _columns(self) -> Row:
        """All rows as one block."""
        self._close_block()
        if len(self._blocks) > 1:
            self._blocks = [joined(self._blocks, torch.cat)]
        return self._blocks[0]

    def _close_block(self) -> None:
        if self._rows:
            self._blocks.append(joined(self._rows, torch.stack))
            self._rows = []

    def _keep_mask(self, mask: Tensor | None) -> None:
        if mask is None or self._masks is None:
            raise sometimes_masked()
        self.mask = mask.clone()
        self._masks.append(self.mask)


def joined(parts: Sequence[Row], join: Callable[[list[Tensor]], Tensor]) -> Row:
    """The columns of several rows, or blocks, joined by `torch.stack` or `torch.cat`."""
    return Row(*(join(list(column)) for column in zip(*parts, strict=True)))
