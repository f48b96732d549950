"""The vocabulary: what the environments hand to an algorithm, and what they ask of it.

Time comes first in every tensor: T rows of N parallel environments. See `Rollout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Rollout:
    """T steps of N environments under one policy.

    Row t holds the action taken at `obs[t]` and what came of it. `obs[t + 1]` is the next observation, except where
    the environment was reset within the step: there the observation that ended the episode is in `final_obs`.

    Attributes:
        obs: `[T + 1, N, *obs]`; the last row has only been observed.
        actions: `[T, N, *action]`, as the policy sampled them (not clipped to the bounds of the action space).
        rewards: `[T, N]` float32, as the environment gave them.
        terminated: `[T, N]` bool; the task ended, so nothing follows: never bootstrap.
        truncated: `[T, N]` bool; the episode was cut (time limit): bootstrap with V of its final observation.
        valid: `[T, N]` bool; False where the environment ignored the action, the reset row of next-step autoreset.
        final_obs: `[K, *obs]`; final observations of truncated episodes that were reset within the step.
        final_rows: `[K]` int64; where they belong, as `t * N + n`.
        episode_returns: `[E]` undiscounted returns of the episodes that ended in this rollout (metrics only).
        episode_lengths: `[E]` their lengths in env steps.
        policy_version: number of updates behind the policy that acted.
        env_steps: number of valid rows.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_obs: Tensor
    final_rows: Tensor
    episode_returns: Tensor
    episode_lengths: Tensor
    policy_version: int
    env_steps: int

    def to(self, device: torch.device | str) -> Rollout:
        """The same rollout with every tensor on `device`."""
        if self.obs.device == torch.device(device):
            return self
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


@dataclass
class Samples:
    """The valid rows of a rollout with their targets, flattened to one batch dimension B.

    Attributes:
        obs: `[B, *obs]`.
        actions: `[B, *action]`.
        old_log_probs: `[B]` log π(a|s) of the policy that acted.
        old_values: `[B]` V(s) before the update.
        advantages: `[B]`.
        returns: `[B]` the critic's regression targets.
    """

    obs: Tensor
    actions: Tensor
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.advantages)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        return Samples(*(getattr(self, f.name)[index] for f in fields(self)))

    def minibatches(self, num_minibatches: int) -> Iterator[Samples]:
        """Cuts a fresh random permutation into `num_minibatches` parts whose sizes differ by at most one row.

        No row is dropped. With fewer rows than minibatches there are as many minibatches as rows.
        """
        order = torch.randperm(len(self)).to(self.advantages.device)
        shuffled = self[order]
        bounds = [len(self) * i // num_minibatches for i in range(num_minibatches + 1)]
        for start, stop in pairwise(bounds):
            if stop > start:
                yield shuffled[start:stop]

    def epochs(self, num_epochs: int, num_minibatches: int) -> Iterator[Samples]:
        """The minibatches of `num_epochs` passes, each over a permutation of its own."""
        for _ in range(num_epochs):
            yield from self.minibatches(num_minibatches)


@dataclass
class Episode:
    """One whole episode of an evaluation, L env steps long.

    Attributes:
        episode_return: `[1]` sum of rewards, undiscounted.
        episode_length: `[1]` L.
        capped: the evaluation stopped the episode, not the environment.
        trajectory: arrays `obs [L + 1, *obs]`, `actions [L, *action]` as the environment got them, `rewards`,
            `terminated`, `truncated` `[L]`; empty unless asked for.
    """

    episode_return: Tensor
    episode_length: Tensor
    capped: bool
    trajectory: dict[str, Tensor]


class Actor(Protocol):
    """What a collector asks of an algorithm: actions, in batches of N, and which policy gave them."""

    @property
    def policy_version(self) -> int:
        """Number of updates that this policy has seen."""
        ...

    @property
    def device(self) -> torch.device:
        """Where `act` computes, and where the generator given to it must live."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """The context (no gradients, the trainer's precision) in which `act` is to be called."""
        ...

    def act(self, obs: Tensor, generator: torch.Generator, deterministic: bool = False) -> Tensor:
        """Actions `[N, *action]` for observations `[N, *obs]`: samples, or the mode of the policy."""
        ...

    def env_actions(self, actions: Tensor) -> Tensor:
        """The actions as the environment wants them: inside the bounds, in the action space's shape and offset."""
        ...
