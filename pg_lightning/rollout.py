"""The data classes shared by collection and learning.

Time comes first in every tensor: T rows of N parallel environments. See `Rollout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rollout:
    """T steps of N environments under one policy.

    Row t holds the action taken at `obs[t]` and its result. `obs[t + 1]` is the next observation, except if the
    environment was reset within the step: then the last observation of the episode is in `final_obs`.

    Attributes:
        obs: `[T + 1, N, *obs]`; no action was taken at the last row.
        actions: `[T, N, *action]`, as the policy sampled them (not clipped to the bounds of the action space).
        rewards: `[T, N]` float32, as the environment returned them.
        terminated: `[T, N]` bool; the task ended and no rewards follow: never bootstrap.
        truncated: `[T, N]` bool; the episode was stopped (time limit): bootstrap with V of its final observation. If an
            environment failed in row t: rows t − 1 and t; `obs[t]` is its last observation.
        valid: `[T, N]` bool; False if the row is not a transition: the environment ignored the action (the reset row of
            next-step autoreset), waited for the others to end their episodes, or failed and was replaced.
        timesteps: `[T, N]` int64; env steps of the episode before this row, 0 in its first row.
        final_obs: `[K, *obs]`; final observations of truncated episodes that were reset within the step.
        final_rows: `[K]` int64; their rows, as `t * N + n`.
        episode_returns: `[E]` undiscounted returns of the episodes that ended in this rollout (metrics only).
        episode_lengths: `[E]` their lengths in env steps.
        policy_version: number of updates of the policy that acted.
        env_steps: number of valid rows.
        env_restarts: number of environments replaced so far; None if the back-end cannot replace them.
        action_mask: `[T, N, A]`, non-zero where an action was allowed; None if the environment has no mask.
        state: `[N, S]` recurrent state before the first row; None for a policy without memory.
        log_probs: `[T, N]` log π(a|s) of the policy that acted, 0 in invalid rows; None unless that policy may be older
            than the policy that learns.
        groups: `[N]` int64; columns with the same number began in the same state, as completions of one prompt; None if
            none did.
        measures: `[N]` other numbers of the episodes by name, one of each column, whose means are logged; None if there
            are none. All ranks have the same.
        bootstrap_is_approximate: whether the last observations of truncated episodes are lost, so that the ones before
            stand in for them in `final_obs`; None if the back-end always gives them.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    timesteps: Tensor
    final_obs: Tensor
    final_rows: Tensor
    episode_returns: Tensor
    episode_lengths: Tensor
    policy_version: int
    env_steps: int
    env_restarts: int | None = None
    action_mask: Tensor | None = None
    state: Tensor | None = None
    log_probs: Tensor | None = None
    groups: Tensor | None = None
    measures: dict[str, Tensor] | None = None
    bootstrap_is_approximate: bool | None = None

    @property
    def done(self) -> Tensor:
        """`[T, N]` bool; the episode is over, terminated or truncated."""
        return self.terminated | self.truncated

    @property
    def starts(self) -> Tensor:
        """`[T, N]` bool; an episode starts in this row, so the recurrent state is zero."""
        return (self.timesteps == 0) & self.valid

    def padded(self) -> Rollout:
        """The same rollout with a number of final observations that rarely changes, as compiled code prefers.

        It is a multiple of N, where N is rounded up to a multiple of 8. The first final observation is repeated; if
        there is none, the observation that follows the first row is used for that row, which changes nothing.
        """
        count, multiple = len(self.final_rows), 8 * -(-self.rewards.shape[1] // 8)
        extra = -count % multiple or (0 if count else multiple)
        rows, obs = (self.final_rows, self.final_obs) if count else (self.final_rows.new_zeros(1), self.obs[1])
        rows, obs = (
            torch.cat([x, y[:1].expand(extra, *y.shape[1:])])
            for x, y in ((self.final_rows, rows), (self.final_obs, obs))
        )
        return replace(self, final_rows=rows, final_obs=obs)

    def to(self, device: torch.device | str) -> Rollout:
        """The rollout with every tensor on `device`; copies to a GPU are asynchronous, from page-locked memory."""
        device = torch.device(device)
        if self.obs.device == device:
            return self
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                locked = device.type == "cuda" and value.device.type == "cpu"  # actions are on the GPU already
                moved[f.name] = (value.pin_memory() if locked else value).to(device, non_blocking=True)
        return replace(self, **moved)


# The fields of a `Batch` with one entry per row.
ROWS = (
    "actions",
    "advantages",
    "returns",
    "old_values",
    "old_log_probs",
    "action_mask",
    "reference_log_probs",
    "weights",
)


@dataclass
class Sequences:
    """Sequence layout for recurrent policies: T rows of n environments.

    Attributes:
        state: `[n, S]` recurrent state before the first row.
        starts: `[T, n]` bool; the state is reset before these rows.
        valid: `[T, n]` bool; the rows that are samples. The recurrence also runs through the other rows, as in acting.
    """

    state: Tensor
    starts: Tensor
    valid: Tensor


@dataclass
class Batch:
    """The valid rows of a rollout with their targets, flattened to one batch dimension B.

    Attributes:
        obs: `[B, *obs]`; for a policy with memory `[T, n, *obs]`, all rows of n environments.
        actions: `[B, *action]`.
        advantages: `[B]`.
        returns: `[B]` the critic's regression targets.
        old_values: `[B]` V(s) before the update, in the unit of the targets.
        old_log_probs: `[B]` log π(a|s) of the policy that acted; None if neither the rollout nor the algorithm set it.
        action_mask: `[B, A]` non-zero where an action is allowed, or None.
        reference_log_probs: `[B]` log π_ref(a|s) of a frozen policy, or None.
        weights: `[B]` of the rows in a loss, with mean 1, or None.
        sequences: the sequence layout for a policy with memory, else None.
    """

    obs: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    old_values: Tensor
    old_log_probs: Tensor | None = None
    action_mask: Tensor | None = None
    reference_log_probs: Tensor | None = None
    weights: Tensor | None = None
    sequences: Sequences | None = None

    @classmethod
    def of(cls, rollout: Rollout, advantages: Tensor, returns: Tensor, values: Tensor) -> Batch:
        """The valid rows of a rollout, with targets and values `[T, N]`."""
        everything = rollout.env_steps == rollout.valid.numel()

        def rows(x: Tensor) -> Tensor:
            return x.flatten(0, 1) if everything else x[rollout.valid]

        obs, sequences = rollout.obs[:-1], None
        if rollout.state is not None:
            sequences = Sequences(rollout.state, rollout.starts, rollout.valid)
        return cls(
            obs=rows(obs) if sequences is None else obs,
            actions=rows(rollout.actions),
            advantages=rows(advantages),
            returns=rows(returns),
            old_values=rows(values),
            old_log_probs=None if rollout.log_probs is None else rows(rollout.log_probs),
            action_mask=None if rollout.action_mask is None else rows(rollout.action_mask),
            sequences=sequences,
        )

    def __len__(self) -> int:
        return len(self.advantages)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Some rows, of a policy without memory."""
        return replace(self, obs=self.obs[index], **self._rows(index))

    def of_environments(self, chosen: Tensor) -> Batch:
        """The whole sequences of some environments, `[n]` ascending indices, of a policy with memory."""
        assert self.sequences is not None
        state, starts, valid = self.sequences.state, self.sequences.starts, self.sequences.valid
        is_chosen = torch.zeros_like(valid)
        is_chosen[:, chosen] = True
        sequences = Sequences(state[chosen], starts[:, chosen], valid[:, chosen])
        return replace(self, obs=self.obs[:, chosen], sequences=sequences, **self._rows(is_chosen[valid]))

    def parts(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of at most `size` rows; for a policy with memory, parts of whole environments.

        Every row is in one part. With memory, a part of a single environment may have more than `size` rows.
        """
        if self.sequences is None:
            yield from (self[start : start + size] for start in range(0, len(self), size))
            return
        T, n = self.sequences.valid.shape
        for environments in torch.arange(n, device=self.advantages.device).split(max(1, size // T)):
            if len(part := self.of_environments(environments)):
                yield part

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name, without those of `sequences`."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def minibatches(
        self, num_minibatches: int, keep_empty: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """Splits a new random permutation into `num_minibatches` parts whose sizes differ by at most one row.

        No row is dropped. With fewer rows than minibatches, empty minibatches are left out unless `keep_empty`. For a
        policy with memory, whole sequences are distributed instead of rows. The permutation is drawn from `generator`,
        or from torch's global one.
        """
        whole = self.sequences is not None
        count = len(self.sequences.state) if self.sequences is not None else len(self)
        order = torch.randperm(count, generator=generator).to(self.advantages.device)
        shuffled = self if whole else self[order]
        bounds = [count * i // num_minibatches for i in range(num_minibatches + 1)]
        for start, stop in pairwise(bounds):
            batch = self.of_environments(order[start:stop].sort().values) if whole else shuffled[start:stop]
            if len(batch) or keep_empty:
                yield batch

    def epochs(
        self, num_epochs: int, num_minibatches: int, keep_empty: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """The minibatches of `num_epochs` passes, each with its own permutation."""
        for _ in range(num_epochs):
            yield from self.minibatches(num_minibatches, keep_empty, generator)

    def _rows(self, index: Tensor | slice) -> dict[str, Any]:
        own = vars(self)
        return {name: own[name][index] for name in ROWS if own[name] is not None}


@dataclass
class Episode:
    """One whole episode of an evaluation, L env steps long.

    Attributes:
        episode_return: `[1]` sum of rewards, undiscounted.
        episode_length: `[1]` L.
        capped: whether the evaluation stopped the episode, not the environment.
        columns: texts and numbers of the episode for a table, as the prompt of a completion; empty if it has none.
        trajectory: arrays `obs [L + 1, *obs]`, `actions [L, *action]` as the environment got them, `rewards`,
            `terminated`, `truncated` `[L]`; empty unless asked for.
        group: of the episodes that are also evaluated for themselves, as games against one opponent from one seat.
    """

    episode_return: Tensor
    episode_length: Tensor
    capped: bool
    trajectory: dict[str, Tensor]
    group: int = 0
    columns: dict[str, Any] = field(default_factory=dict)
