"""Evaluation: whole episodes, exactly as many as asked for, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import IterableDataset

from pg_lightning.envs.workers import RESTARTED
from pg_lightning.processes.signals import unless_stopped
from pg_lightning.rollout import Actor, Episode


class EvaluationDataset(IterableDataset[Episode]):
    """Plays one episode per seed and yields each when it ends.

    Parallel environments do not favour short episodes: which episodes are played is settled before the first step, and
    every one that is begun is counted.

    Args:
        env: a vector environment with autoreset disabled.
        actor: the policy to evaluate.
        seeds: one per episode.
        action_seed: of the noise of sampled actions.
        deterministic: play the mode of the policy instead of a sample.
        max_episode_steps: where an episode that the environment does not end is stopped.
        record: keep the trajectories.
    """

    def __init__(
        self,
        env: VectorEnv,
        actor: Actor,
        seeds: list[int],
        action_seed: int,
        deterministic: bool,
        max_episode_steps: int,
        record: bool = False,
    ) -> None:
        self.env = env
        self.actor = actor
        self.seeds = seeds
        self.action_seed = action_seed
        self.deterministic = deterministic
        self.max_episode_steps = max_episode_steps
        self.record = record

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[Episode]:
        """The episodes, in the order in which they end; no more once a signal has come that ends a training."""
        episodes = self._play()
        while (episode := unless_stopped(next, episodes, None)) is not None:
            yield episode

    def _play(self) -> Iterator[Episode]:
        if not self.seeds:
            return
        N = self.env.num_envs
        generator = torch.Generator(self.actor.device).manual_seed(self.action_seed)
        pending = iter(self.seeds[N:])
        counted = np.arange(N) < len(self.seeds)
        first = [self.seeds[n % len(self.seeds)] for n in range(N)]
        obs, mask = self._reset(first)
        state = self.actor.initial_state(N)
        returns, lengths = np.zeros(N), np.zeros(N, dtype=np.int64)
        tracks: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(N)]
        while counted.any():
            with self.actor.acting():
                actions, state = self.actor.act(self._tensor(obs), generator, self.deterministic, mask, state)
                env_actions = self.actor.env_actions(actions).cpu().numpy()
            next_obs, rewards, terminated, truncated, infos = self.env.step(env_actions)
            next_obs, next_mask = np.array(next_obs), _mask(infos)
            returns += rewards
            lengths += 1
            if self.record:
                for n in np.flatnonzero(counted):
                    tracks[n].append((obs[n], env_actions[n], rewards[n], terminated[n], truncated[n]))
            if RESTARTED in infos:  # these have begun another episode, which counts in the place of the one that broke
                restarted = infos[RESTARTED]
                returns[restarted], lengths[restarted] = 0.0, 0
                tracks = [[] if again else track for track, again in zip(tracks, restarted, strict=True)]
                if state is not None:
                    state = state * ~torch.from_numpy(restarted)[:, None].to(state.device)
            capped = ~(terminated | truncated) & (lengths >= self.max_episode_steps)
            if (capped & counted).any():
                rank_zero_warn(
                    f"an evaluation episode was stopped after data.eval_max_episode_steps = {self.max_episode_steps} "
                    "steps: the environment has no time limit, and the return counts only up to there"
                )
            ended = terminated | truncated | capped
            for n in np.flatnonzero(ended & counted):
                yield Episode(
                    torch.tensor([returns[n]], dtype=torch.float64),
                    torch.tensor([lengths[n]], dtype=torch.float64),
                    bool(capped[n]),
                    _trajectory(tracks[n], next_obs[n]) if self.record else {},
                )
            if ended.any():
                next_seeds: list[int | None] = [None] * N
                for n in np.flatnonzero(ended):
                    next_seeds[n] = next(pending, None)
                    counted[n] &= next_seeds[n] is not None
                    tracks[n] = []
                returns[ended], lengths[ended] = 0.0, 0
                # An environment whose share is done plays on uncounted, so that the batch keeps its shape.
                next_obs, reset_mask = self._reset(next_seeds, {"reset_mask": ended})
                begins = torch.from_numpy(ended)[:, None]
                if next_mask is not None and reset_mask is not None:
                    next_mask = torch.where(begins, reset_mask, next_mask)
                if state is not None:
                    state = state * ~begins.to(state.device)
            obs, mask = next_obs, next_mask

    def _reset(
        self, seeds: Sequence[int | None], options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, Tensor | None]:
        obs, infos = self.env.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        return np.array(obs), _mask(infos)

    def _tensor(self, obs: np.ndarray) -> Tensor:
        return torch.from_numpy(obs if obs.dtype == np.uint8 else obs.astype(np.float32))


def _mask(infos: dict[str, Any]) -> Tensor | None:
    return torch.from_numpy(np.array(infos["action_mask"])) if "action_mask" in infos else None


def _trajectory(track: list[tuple[np.ndarray, ...]], last_obs: np.ndarray) -> dict[str, Tensor]:
    obs, actions, rewards, terminated, truncated = zip(*track, strict=True)
    arrays = {"obs": (*obs, last_obs), "actions": actions, "rewards": rewards}
    arrays |= {"terminated": terminated, "truncated": truncated}
    return {name: torch.from_numpy(np.stack(values)) for name, values in arrays.items()}
