"""Collection: steps a vector environment under a policy and writes down what happened, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from pg_lightning.envs import replay
from pg_lightning.envs.workers import RESTARTED, WorkerVectorEnv
from pg_lightning.errors import UserError
from pg_lightning.rollout import Actor, Rollout


class RolloutCollector:
    """Collects rollouts of `num_steps` rows; the environments keep running from one rollout to the next.

    With whole episodes, every environment starts afresh instead and plays until an episode of its own ends at or after
    `num_steps` rows. Every episode that is begun is in the rollout to its end, long or short: to leave out those that
    take longer would favour short ones. An environment that is done waits for the others in rows that are not valid.

    Where the vector environment had to replace an environment in a step, that row is not valid: what its action led to
    is not known. The row before ends a truncated episode, whose final observation is the one that was acted on, and
    whose return is not among `episode_returns`.

    Args:
        env: a vector environment with array observations, in any of Gymnasium's three autoreset modes.
        num_steps: rows T per rollout; with whole episodes the least.
        seeds: of the environments, one each, or one for an environment that draws all its copies from one stream.
        action_seed: of the noise that actions are sampled with.
        whole_episodes: as said above.
        max_episode_steps: where a rollout of whole episodes is given up, since one has no end.

    Attributes:
        is_given_up: a rollout was begun that nobody learns from: the environments are not where the policy is.
    """

    def __init__(
        self,
        env: VectorEnv,
        num_steps: int,
        seeds: list[int] | int,
        action_seed: int,
        whole_episodes: bool = False,
        max_episode_steps: int = 50_000,
    ) -> None:
        self.env = env
        self._workers = env if isinstance(env, WorkerVectorEnv) else None
        self.num_steps = num_steps
        self.whole_episodes = whole_episodes
        self.max_episode_steps = max_episode_steps
        self.mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.is_given_up = False
        self._seeds = seeds
        self._action_seed = action_seed
        self._generator: torch.Generator | None = None
        self._generator_state: tuple[str, Tensor] | None = None
        self._played: list[np.ndarray] = []
        self._trimmed = 1024
        space = env.single_observation_space
        self._obs_dtype = np.uint8 if space.dtype == np.uint8 else np.float32
        self._obs_shape = space.shape or ()
        self._mask: np.ndarray | None = None
        self._state: Tensor | None = None
        self._obs, self._in_reset_row, self._returns, self._lengths = self._reset(seeds)

    def collect(self, actor: Actor) -> Rollout:
        """One rollout under `actor` as it is now.

        Raises:
            UserError: if an observation, a reward or an action is not finite, naming the environment and the step; if
                an episode that is to be played to its end has none.
        """
        T, N = self.num_steps, self.env.num_envs
        if self._generator is None or self._generator.device != actor.device:
            self._generator = self._new_generator(actor.device)
        if self._state is None:
            self._state = actor.initial_state(N)
        elif self._state.device != actor.device:
            self._state = self._state.to(actor.device)
        obs = np.empty((T + 1, N, *self._obs_shape), dtype=self._obs_dtype)
        rewards = np.zeros((T, N), dtype=np.float32)
        terminated, truncated = np.zeros((T, N), dtype=bool), np.zeros((T, N), dtype=bool)
        valid, timesteps = np.ones((T, N), dtype=bool), np.zeros((T, N), dtype=np.int64)
        actions: list[Tensor] = []
        env_actions: list[Any] = [None] * T
        masks: list[np.ndarray] = []
        final_obs: list[np.ndarray] = []
        final_rows: list[int] = []
        episodes: list[tuple[float, int]] = []
        policy_version, first_state = actor.policy_version, self._state

        obs[0] = self._obs
        playing = np.ones(N, dtype=bool)
        next_step = self.mode == AutoresetMode.NEXT_STEP
        all_valid = not (next_step or self.whole_episodes)
        t = 0
        try:
            with actor.acting():
                while t < T or (self.whole_episodes and playing.any()):
                    if self.whole_episodes and self._lengths.max() >= self.max_episode_steps:
                        raise UserError(
                            f"data.whole_episodes: an episode has not ended after {self._lengths.max()} steps; "
                            "give the environment a time limit, data.env_kwargs {max_episode_steps: ...}"
                        )
                    if t == len(rewards):
                        obs, rewards, terminated, truncated, valid, timesteps = map(
                            _doubled, (obs, rewards, terminated, truncated, valid, timesteps)
                        )
                        env_actions += [None] * t
                    if self._mask is not None:
                        masks.append(self._mask)
                    if len(masks) not in (0, t + 1):
                        raise UserError(
                            "data.env_id: the environment gives info['action_mask'] in some steps only; "
                            "it must do so in reset and in every step, or never"
                        )
                    action, self._state = actor.act(
                        torch.from_numpy(obs[t]), self._generator, False, _tensor(self._mask), self._state
                    )
                    actions.append(action)
                    timesteps[t] = self._lengths
                    env_actions[t] = actor.env_actions(action).cpu().numpy()
                    obs[t + 1], rewards[t], terminated[t], truncated[t], infos = self.env.step(env_actions[t])
                    self._mask = _action_mask(infos)
                    ended = terminated[t] | truncated[t]
                    begins = ended
                    if not all_valid:
                        valid[t] = playing & ~self._in_reset_row
                        rewards[t] *= valid[t]
                    if next_step:
                        begins, self._in_reset_row = self._in_reset_row, ended
                    if RESTARTED in infos:
                        restarted = infos[RESTARTED]
                        truncated[max(0, t - 1), restarted & (timesteps[t] > 0)] = True
                        truncated[t, restarted], valid[t, restarted] = True, False
                        begins = begins | restarted
                        self._returns[restarted], self._lengths[restarted] = 0.0, 0
                        if self.whole_episodes and t + 1 >= T:
                            playing &= ~restarted
                    self._returns += rewards[t]
                    self._lengths += valid[t]
                    if self._state is not None and begins.any():
                        self._state = self._state * torch.from_numpy(~begins).unsqueeze(1).to(self._state.device)
                    t += 1
                    if not np.count_nonzero(ended):
                        continue
                    for n in np.flatnonzero(ended & playing):
                        episodes.append((self._returns[n], self._lengths[n]))
                        if truncated[t - 1, n] and not terminated[t - 1, n] and not next_step:
                            final = infos["final_obs"][n] if self.mode == AutoresetMode.SAME_STEP else obs[t, n]
                            final_obs.append(np.array(final, dtype=self._obs_dtype))
                            final_rows.append((t - 1) * N + int(n))
                    self._returns[ended] = 0.0
                    self._lengths[ended] = 0
                    if self.mode == AutoresetMode.DISABLED:
                        obs[t], infos = self.env.reset(options={"reset_mask": ended})
                        if self._mask is not None:
                            self._mask = np.where(ended[:, None], infos["action_mask"], self._mask)
                    if self.whole_episodes and t >= T:
                        playing &= ~ended
        except Exception:
            self._check_finite(
                obs[: t + 1], rewards[:t], final_obs, final_rows, torch.stack(actions or [torch.ones(0)])
            )
            raise
        T, all_actions = t, torch.stack(actions)
        self._check_finite(obs[: T + 1], rewards[:T], final_obs, final_rows, all_actions)
        self._obs = obs[T]
        self._played += env_actions[:T]
        if len(self._played) > self._trimmed:
            self._trim()
        if self.whole_episodes:
            self._obs, self._in_reset_row, self._returns, self._lengths = self._reset()

        returns, lengths = zip(*episodes, strict=True) if episodes else ((), ())
        return Rollout(
            obs=torch.from_numpy(obs[: T + 1]),
            actions=all_actions,
            rewards=torch.from_numpy(rewards[:T]),
            terminated=torch.from_numpy(terminated[:T]),
            truncated=torch.from_numpy(truncated[:T]),
            valid=torch.from_numpy(valid[:T]),
            timesteps=torch.from_numpy(timesteps[:T]),
            final_obs=torch.from_numpy(np.array(final_obs, dtype=self._obs_dtype).reshape(-1, *self._obs_shape)),
            final_rows=torch.tensor(final_rows, dtype=torch.int64),
            episode_returns=torch.tensor(returns, dtype=torch.float32),
            episode_lengths=torch.tensor(lengths, dtype=torch.float32),
            policy_version=policy_version,
            env_steps=int(valid[:T].sum()),
            env_restarts=None if self._workers is None else self._workers.restarts,
            action_mask=torch.from_numpy(np.stack(masks)) if masks else None,
            state=None if first_state is None else first_state.clone(),
        )

    def _reset(self, seeds: list[int] | int | None = None) -> tuple[np.ndarray, ...]:
        obs, infos = self.env.reset(seed=seeds)  # type: ignore[arg-type]
        N = self.env.num_envs
        self._mask, self._state = _action_mask(infos), None
        return np.array(obs, self._obs_dtype), np.zeros(N, bool), np.zeros(N), np.zeros(N, np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Where everything stands between two rollouts, in plain types and tensors."""
        generator = self._generator_state
        if self._generator is not None:
            generator = (self._generator.device.type, self._generator.get_state())
        mask = None if self._mask is None else torch.from_numpy(self._mask)
        return {
            "envs": replay.save(self.env, self._played, self._lengths, self._in_reset_row),
            "obs": torch.from_numpy(self._obs.copy()),
            "in_reset_row": torch.from_numpy(self._in_reset_row.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "action_mask": mask,
            "memory": None if self._state is None else self._state.cpu().clone(),
            "generator": generator,
        }

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Puts the environments, just reset, and all else where they stood.

        Returns:
            Nothing, or why the environments could not be put there; then they begin episodes from the seeds of now.
        """
        obs, in_reset_row, returns, lengths = (
            state[name].numpy().copy() for name in ("obs", "in_reset_row", "returns", "lengths")
        )
        if reason := replay.load(self.env, state["envs"], obs, returns, lengths):
            self._obs, self._in_reset_row, self._returns, self._lengths = self._reset(self._seeds)
            return reason
        self._obs, self._in_reset_row, self._returns, self._lengths = obs, in_reset_row, returns, lengths
        self._mask = None if state["action_mask"] is None else state["action_mask"].numpy().copy()
        self._state, self._generator_state = state["memory"], state["generator"]
        self._played = replay.history(state["envs"])
        return ""

    def _new_generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device).manual_seed(self._action_seed)
        if self._generator_state is not None and self._generator_state[0] == device.type:
            generator.set_state(self._generator_state[1])
        return generator

    def _trim(self) -> None:
        """Forgets the actions of episodes that are over; not every time, which would cost more than it saves."""
        kept = min(int(self._lengths.max()), replay.MAX_REPLAY)
        del self._played[: len(self._played) - kept]
        self._trimmed = 2 * kept + 1024

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def _check_finite(
        self,
        obs: np.ndarray,
        rewards: np.ndarray,
        final_obs: list[np.ndarray],
        final_rows: list[int],
        actions: Tensor,
    ) -> None:
        """Once per rollout: a policy fed with NaN learns nothing but NaN."""
        if actions.is_floating_point() and not actions.isfinite().all():
            t, n = (~actions.isfinite()).nonzero()[0, :2].tolist()
            if np.isfinite(obs[: t + 1, n]).all():  # else it is what came of that
                raise UserError(
                    f"model.lr: training has diverged: the policy gave a non-finite action to env {n} at step {t} of a "
                    f"rollout of {self.num_steps}; lower model.lr or model.max_grad_norm, or set model.normalize_obs"
                )
        for what, array in (("observation", obs), ("reward", rewards)):
            finite = np.isfinite(array)
            if not finite.all():
                t, n = np.argwhere(~finite.reshape(*array.shape[:2], -1).all(-1))[0]
                # The observation in row t + 1 is what step t gave.
                self._refuse(what, max(0, int(t) - 1) if array is obs else int(t), int(n))
        for final, row in zip(final_obs, final_rows, strict=True):
            if not np.isfinite(final).all():
                self._refuse("final observation", *divmod(row, self.env.num_envs))

    def _refuse(self, what: str, t: int, n: int) -> None:
        raise UserError(
            f"data.env_id: the environment gave a non-finite {what} in env {n} at step {t} of a rollout of "
            f"{self.num_steps}; nothing was learned from it"
        )


def _doubled(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.empty_like(rows)])


def _action_mask(infos: dict[str, Any]) -> np.ndarray | None:
    """A copy of the masks of all environments, which must be arrays; Gymnasium fills in zeros where one gave none."""
    if "action_mask" not in infos:
        return None
    masks, given = np.array(infos["action_mask"]), infos.get("_action_mask", np.True_)
    if masks.dtype == object or not np.all(given):
        raise UserError(
            "data.env_id: info['action_mask'] must be an array (for MultiDiscrete its parts in a row), "
            "from every environment, in reset and in every step"
        )
    return masks


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
