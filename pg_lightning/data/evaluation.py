"""Evaluation: whole episodes, exactly the requested number, each with its own seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import IterableDataset

from pg_lightning.actor import Actor
from pg_lightning.data.precision import observation_dtype
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.contract import ResettableEnvironments, VectorStep
from pg_lightning.processes import OwnStream
from pg_lightning.processes.signals import unless_stopped
from pg_lightning.rollout import Episode


class EvaluationDataset(IterableDataset[Episode]):
    """Plays one episode per seed and yields them in the order of the seeds.

    Parallel environments do not favour short episodes: the episodes are fixed before the first step, and every episode
    that is started is counted. A loop that stops early, because of `Trainer.limit_val_batches` for example, gets the
    first episodes that were started, not the first that ended, which are the shortest.

    Args:
        env: a vector environment with autoreset disabled, or an object with `envs.contract.ResettableEnvironments`.
        actor: the policy to evaluate.
        seeds: one per episode.
        action_seed: seed of the noise of sampled actions.
        deterministic: play the mode of the policy instead of a sample.
        max_episode_steps: limit after which an episode is stopped that the environment does not end.
        record: keep the trajectories.
        double: whether the policy computes in float64.
        groups: of each episode, see `Episode.group`; by default all are in one.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any] | ResettableEnvironments,
        actor: Actor,
        seeds: list[int],
        action_seed: int,
        deterministic: bool,
        max_episode_steps: int,
        record: bool = False,
        double: bool = False,
        groups: Sequence[int] | None = None,
    ) -> None:
        self.env = cast(ResettableEnvironments, environments(env))
        self.actor = actor
        self.seeds = seeds
        self.action_seed = action_seed
        self.deterministic = deterministic
        self.max_episode_steps = max_episode_steps
        self.record = record
        self.groups = [0] * len(seeds) if groups is None else groups
        self._dtype = observation_dtype(self.env.single_observation_space.dtype, double)

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[Episode]:
        """The episodes in the order of their seeds; stops after a signal that ends training.

        An environment may draw from the global generators. Here they follow a stream of this evaluation, so that it
        repeats itself and training does not depend on it.
        """
        episodes, stream = self._play(), OwnStream(self.action_seed)
        while True:
            with stream.active():
                episode = unless_stopped(next, episodes, None)
            if episode is None:
                return
            yield episode

    def _play(self) -> Iterator[Episode]:
        if not self.seeds:
            return
        N = self.env.num_envs
        generator = torch.Generator(self.actor.device).manual_seed(self.action_seed)
        share = _Share(self.seeds, N, self.record)
        ended_early: dict[int, Episode] = {}  # by the index of their seeds
        due = 0
        obs, mask = self._tensors(*self.env.reset(share.first))
        state = self.actor.initial_state(N)
        while share.counted.any():
            with self.actor.acting():
                actions, state = self.actor.act(self._input(obs), generator, self.deterministic, mask, state)
                env_actions = self.actor.env_actions(actions)
            step = self.env.step_and_wait(env_actions)
            next_obs, next_mask = self._tensors(step.obs, step.action_mask)
            share.add(step, obs, env_actions)
            begins = step.begins
            capped = ~step.done & (share.lengths >= self.max_episode_steps)
            if (capped & share.counted).any():
                rank_zero_warn(
                    f"an evaluation episode was stopped after data.eval_max_episode_steps = {self.max_episode_steps} "
                    "steps: the environment has no time limit, and the return counts only these steps"
                )
            ended = step.done | capped
            for n in np.flatnonzero(ended & share.counted).tolist():
                ended_early[share.indices[n]] = share.episode(n, bool(capped[n]), next_obs[n])
            while due in ended_early:
                yield replace(ended_early.pop(due), group=self.groups[due])
                due += 1
            if ended.any():
                # An environment that has finished its share plays on uncounted, so that the batch keeps its shape.
                next_obs, reset_mask = self._tensors(*self.env.begin(ended, share.next_seeds(ended)))
                if next_mask is not None and reset_mask is not None:
                    next_mask = torch.where(torch.from_numpy(ended)[:, None], reset_mask, next_mask)
                begins = begins | ended
            if state is not None and begins.any():
                state = state * ~torch.from_numpy(begins)[:, None].to(state.device)
            obs, mask = next_obs, next_mask

    def _tensors(self, obs: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, Tensor | None]:
        """A copy of the observations, and the mask."""
        return np.array(obs), None if mask is None else torch.from_numpy(mask)

    def _input(self, obs: np.ndarray) -> Tensor:
        return torch.from_numpy(obs.astype(self._dtype, copy=False))


class _Share:
    """The episodes that each of N environments plays, and the state of the current ones.

    Attributes:
        first: seeds of the first episodes, `[N]`; environments without a requested episode play uncounted ones.
        counted: `[N]` bool; whether the current episode is one of the requested ones.
        indices: of their seeds, where counted.
        lengths: `[N]` its env steps.
    """

    def __init__(self, seeds: Sequence[int], num_envs: int, record: bool) -> None:
        self.first = [seeds[n % len(seeds)] for n in range(num_envs)]
        self.counted = np.arange(num_envs) < len(seeds)
        self.indices = list(range(num_envs))
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self._returns = np.zeros(num_envs)
        self._pending = iter(range(num_envs, len(seeds)))
        self._seeds = seeds
        self._record = record
        self._tracks: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(num_envs)]

    def add(self, step: VectorStep[np.ndarray], obs: np.ndarray, env_actions: Tensor) -> None:
        """Counts a step; `obs` `[N, *obs]` are the observations before it."""
        counts, rewards = (
            (1, step.rewards) if step.valid is None else (step.valid, np.where(step.valid, step.rewards, 0))
        )
        self._returns += rewards
        self.lengths += counts
        if self._record:
            actions = env_actions.cpu().numpy()
            for n in np.flatnonzero(self.counted & counts):
                row = (obs[n], actions[n], step.rewards[n], step.terminated[n], step.truncated[n])
                self._tracks[n].append(row)
        if step.restarted is not None:  # a new episode replaces the one that failed, and counts in its place
            self._clear(step.restarted)

    def episode(self, n: int, capped: bool, last_obs: np.ndarray) -> Episode:
        """The finished episode of environment n, with its last observation."""
        return Episode(
            torch.tensor([self._returns[n]], dtype=torch.float64),
            torch.tensor([self.lengths[n]], dtype=torch.float64),
            capped,
            _trajectory(self._tracks[n], last_obs) if self._record else {},
        )

    def next_seeds(self, ended: np.ndarray) -> list[int | None]:
        """Seeds of the next episodes of environments whose episode has ended, `[N]`; None if none are left."""
        seeds: list[int | None] = [None] * len(ended)
        for n in np.flatnonzero(ended):
            index = next(self._pending, None)
            if index is None:
                self.counted[n] = False
            else:
                self.indices[n], seeds[n] = index, self._seeds[index]
        self._clear(ended)
        return seeds

    def _clear(self, which: np.ndarray) -> None:
        self._returns[which], self.lengths[which] = 0.0, 0
        for n in np.flatnonzero(which):
            self._tracks[n] = []


def _trajectory(track: list[tuple[np.ndarray, ...]], last_obs: np.ndarray) -> dict[str, Tensor]:
    obs, actions, rewards, terminated, truncated = zip(*track, strict=True)
    arrays = {"obs": (*obs, last_obs), "actions": actions, "rewards": rewards}
    arrays |= {"terminated": terminated, "truncated": truncated}
    return {name: torch.from_numpy(np.stack(values)) for name, values in arrays.items()}
