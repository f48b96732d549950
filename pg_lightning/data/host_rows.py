"""Rows on the host: T steps of N environments as NumPy arrays, and converted to a `Rollout`.

`DeviceRows` has the same interface and gives the same rollout for the same steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pg_lightning.data.episodes import HostEpisodes
from pg_lightning.data.finite import check_finite
from pg_lightning.data.precision import Resolution, observation_dtype
from pg_lightning.data.shapes import Shapes
from pg_lightning.envs.contract import Environments, VectorStep
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout


class HostRows:
    """Rows of environments that return NumPy arrays.

    Args:
        env: the environments.
        num_steps: rows T; the minimum with whole episodes.
        whole_episodes: rows are added until every environment has finished its episodes.
        double: whether the policy computes in float64: see `observation_dtype`.

    Attributes:
        t: number of rows.
        now: `[N, *obs]` observations for the next actions.
        mask: `[N, A]` their action mask, or None.
        actions: of each row; appended before the environments step.
        episodes: the current ones.
        num_columns: of the rollout.
    """

    episodes: HostEpisodes

    def __init__(self, env: Environments, num_steps: int, whole_episodes: bool, double: bool = False) -> None:
        self.num_steps, self.num_envs, self.whole_episodes = num_steps, env.num_envs, whole_episodes
        self.num_columns = self.num_envs
        space = env.single_observation_space
        self._obs_shape = space.shape or ()
        self._obs_dtype = observation_dtype(space.dtype, double)
        self._shapes = Shapes(env)
        self._resolution = Resolution(space.dtype, self._obs_dtype)
        self.episodes = HostEpisodes(env.num_envs)

    def show(self, obs: np.ndarray, mask: np.ndarray | None) -> None:
        """Sets the first observations after a reset of all environments."""
        self._shapes.check_obs(obs)
        self._resolution.check(obs)
        self._last = np.array(obs, self._obs_dtype)
        self.now = torch.from_numpy(self._last)
        self._mask = None if mask is None else np.array(mask)
        self.mask = None if self._mask is None else torch.from_numpy(self._mask)
        self.episodes.clear()

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state from a `state_dict` of the collector."""
        self.show(state["obs"].numpy(), None if state["action_mask"] is None else state["action_mask"].numpy())
        self.episodes.load_state_dict(state)

    def begin(self) -> None:
        """Starts a rollout with the current observations. Its arrays are new: the last rollout keeps its own."""
        T, N = self.num_steps, self.num_envs
        self.t, self._room = 0, T
        self._obs = np.empty((T + 1, N, *self._obs_shape), self._obs_dtype)
        self._rewards, self._timesteps = np.empty((T, N), np.float32), np.empty((T, N), np.int64)
        self._terminated, self._truncated, self._valid = np.ones((3, T, N), bool)
        self.actions: list[Tensor] = []
        self._masks = None if self._mask is None else [self._mask]
        self._final_obs: list[np.ndarray] = []
        self._final_rows: list[int] = []
        self._obs[0] = self._last

    def add(self, step: VectorStep[np.ndarray]) -> None:
        """Adds the result of the actions of row t."""
        t, episodes = self.t, self.episodes
        self._given = step.obs
        if step.obs.shape != self._shapes.obs or step.rewards.shape != self._shapes.rewards:
            raise self._shapes.of_step(step)
        if t == self._room:
            self._grow()
        self._timesteps[t] = episodes.lengths
        self._obs[t + 1], self._terminated[t], self._truncated[t] = step.obs, step.terminated, step.truncated
        rewards, valid = self._rewards[t], self._valid[t]
        rewards[...] = step.rewards
        if step.valid is not None or self.whole_episodes:
            valid[...] = episodes.playing if step.valid is None else episodes.playing & step.valid
            rewards *= valid
        if step.restarted is not None:
            self._truncated[max(0, t - 1), step.restarted & (self._timesteps[t] > 0)] = True
            self._truncated[t, step.restarted] = True
        self.t = t + 1
        self.now = torch.from_numpy(self._obs[t + 1])
        if self._masks is not None or step.action_mask is not None:
            self._keep_mask(step.action_mask)
        ended = episodes.advance(step, rewards, valid, self.whole_episodes and t + 1 >= self.num_steps)
        if ended is not None and step.truncated.any():
            self._keep_final_obs(step, ended)

    def on_turn(self, memory: Tensor) -> Tensor:
        """`[N, S]` the recurrent state for the next actions, of the states `[N, S]` of all columns."""
        return memory

    def carried(self, memory: Tensor, state: Tensor, begins: np.ndarray) -> Tensor:
        """`[N, S]` the recurrent states of all columns after a step, reset where an episode starts.

        Args:
            memory: before the step.
            state: `[N, S]` after the actions.
            begins: `[N]` bool, see `VectorStep`.
        """
        return state * torch.from_numpy(~begins).unsqueeze(1).to(state.device) if begins.any() else state

    def check(self) -> None:
        """Raises if a non-finite number may have caused a failure; `rollout` calls it too.

        Raises:
            UserError: if an observation, a reward or an action is not finite, naming the environment and the step.
        """
        finals = zip(self._final_obs, self._final_rows, strict=True)
        actions = torch.stack(self.actions or [torch.ones(0)])
        check_finite(self._obs[: self.t + 1], self._rewards[: self.t], finals, actions, self.num_steps)

    def rollout(self, policy_version: int, state: Tensor | None, restarts: int | None) -> Rollout:
        """The rows as a rollout.

        Args:
            policy_version: of the policy that acted.
            state: `[N, S]` recurrent state before the first row, or None.
            restarts: environments replaced so far, or None.

        Raises:
            UserError: see `check`: a policy that learns from NaN becomes NaN.
        """
        T, actions = self.t, torch.stack(self.actions)
        if self._resolution.may_suffer:
            self._resolution.check(self._given)
        obs, rewards, finals = self._obs[: T + 1], self._rewards[:T], self._final_obs
        check_finite(obs, rewards, zip(finals, self._final_rows, strict=True), actions, self.num_steps)
        self._last = obs[T]
        returns, lengths = self.episodes.take_finished()
        return Rollout(
            obs=torch.from_numpy(obs),
            actions=actions,
            rewards=torch.from_numpy(rewards),
            terminated=torch.from_numpy(self._terminated[:T]),
            truncated=torch.from_numpy(self._truncated[:T]),
            valid=torch.from_numpy(self._valid[:T]),
            timesteps=torch.from_numpy(self._timesteps[:T]),
            final_obs=torch.from_numpy(np.array(finals, self._obs_dtype).reshape(-1, *self._obs_shape)),
            final_rows=torch.tensor(self._final_rows, dtype=torch.int64),
            episode_returns=returns,
            episode_lengths=lengths,
            policy_version=policy_version,
            env_steps=int(self._valid[:T].sum()),
            env_restarts=restarts,
            action_mask=None if self._masks is None else torch.from_numpy(np.stack(self._masks[:T])),
            state=None if state is None else state.clone(),
        )

    def _keep_mask(self, mask: np.ndarray | None) -> None:
        if mask is None or self._masks is None:
            raise sometimes_masked()
        self._mask = np.array(mask)
        self.mask = torch.from_numpy(self._mask)
        self._masks.append(self._mask)

    def _keep_final_obs(self, step: VectorStep[np.ndarray], ended: np.ndarray) -> None:
        """Stores the final observations of episodes that were truncated and reset within the step; if one is unknown,
        the one before, so that V(s_t) replaces V(s_{t+1})."""
        t = self.t - 1
        for n in ended[(step.begins & ~self._terminated[t])[ended]].tolist():
            final = self._obs[t, n] if step.final_obs is None else step.final_obs[n]
            self._final_obs.append(np.array(final, dtype=self._obs_dtype))
            self._final_rows.append(t * self.num_envs + n)

    def _grow(self) -> None:
        self._room *= 2
        for name in ("_obs", "_rewards", "_terminated", "_truncated", "_valid", "_timesteps"):
            rows = getattr(self, name)
            setattr(self, name, np.concatenate([rows, np.empty_like(rows)]))


def sometimes_masked() -> UserError:
    """The error for an environment that gives its action mask in some steps only."""
    return UserError(
        "data.env_id: the environment gives info['action_mask'] in some steps only; "
        "it must do so in reset and in every step, or never"
    )
