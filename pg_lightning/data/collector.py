"""Collection: steps a vector environment under a policy and writes down what happened, row by row."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.rollout import Actor, Rollout


class RolloutCollector:
    """Collects rollouts of `num_steps` rows; the environments keep running from one rollout to the next.

    Args:
        env: a vector environment with array observations, in any of Gymnasium's three autoreset modes.
        num_steps: rows T per rollout.
        seeds: of the environments, one each, or one for an environment that draws all its copies from one stream.
        action_seed: of the noise that actions are sampled with.
    """

    def __init__(self, env: VectorEnv, num_steps: int, seeds: list[int] | int, action_seed: int) -> None:
        self.env = env
        self.num_steps = num_steps
        self.mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._action_seed = action_seed
        self._generator: torch.Generator | None = None
        space = env.single_observation_space
        self._obs_dtype = np.uint8 if space.dtype == np.uint8 else np.float32
        self._obs_shape = space.shape or ()
        self._obs = np.array(env.reset(seed=seeds)[0], dtype=self._obs_dtype)  # type: ignore[arg-type]
        self._in_reset_row = np.zeros(env.num_envs, dtype=bool)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)

    def collect(self, actor: Actor) -> Rollout:
        """One rollout under `actor` as it is now.

        Raises:
            UserError: if an observation or a reward is not finite, naming the environment and the step.
        """
        T, N = self.num_steps, self.env.num_envs
        if self._generator is None or self._generator.device != actor.device:
            self._generator = torch.Generator(actor.device).manual_seed(self._action_seed)
        obs = np.empty((T + 1, N, *self._obs_shape), dtype=self._obs_dtype)
        rewards = np.zeros((T, N), dtype=np.float32)
        terminated, truncated = np.zeros((T, N), dtype=bool), np.zeros((T, N), dtype=bool)
        valid = np.ones((T, N), dtype=bool)
        actions: list[Tensor] = []
        final_obs: list[np.ndarray] = []
        final_rows: list[int] = []
        episodes: list[tuple[float, int]] = []
        policy_version = actor.policy_version

        obs[0] = self._obs
        t = 0
        try:
            with actor.acting():
                for t in range(T):
                    actions.append(actor.act(torch.from_numpy(obs[t]), self._generator))
                    obs[t + 1], rewards[t], terminated[t], truncated[t], infos = self.env.step(
                        actor.env_actions(actions[-1]).cpu().numpy()
                    )
                    if self.mode == AutoresetMode.NEXT_STEP:
                        valid[t] = ~self._in_reset_row
                        rewards[t] *= valid[t]
                    self._returns += rewards[t]
                    self._lengths += valid[t]
                    ended = terminated[t] | truncated[t]
                    if self.mode == AutoresetMode.NEXT_STEP:
                        self._in_reset_row = ended
                    if not ended.any():
                        continue
                    for n in np.flatnonzero(ended):
                        episodes.append((self._returns[n], self._lengths[n]))
                        if truncated[t, n] and not terminated[t, n] and self.mode != AutoresetMode.NEXT_STEP:
                            final = infos["final_obs"][n] if self.mode == AutoresetMode.SAME_STEP else obs[t + 1, n]
                            final_obs.append(np.array(final, dtype=self._obs_dtype))
                            final_rows.append(t * N + int(n))
                    self._returns[ended] = 0.0
                    self._lengths[ended] = 0
                    if self.mode == AutoresetMode.DISABLED:
                        obs[t + 1] = self.env.reset(options={"reset_mask": ended})[0]
        except Exception:
            self._check_finite(obs[: t + 1], rewards[:t], final_obs, final_rows)
            raise
        self._check_finite(obs, rewards, final_obs, final_rows)
        self._obs = obs[T]

        returns, lengths = zip(*episodes, strict=True) if episodes else ((), ())
        return Rollout(
            obs=torch.from_numpy(obs),
            actions=torch.stack(actions),
            rewards=torch.from_numpy(rewards),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
            final_obs=torch.from_numpy(np.array(final_obs, dtype=self._obs_dtype).reshape(-1, *self._obs_shape)),
            final_rows=torch.tensor(final_rows, dtype=torch.int64),
            episode_returns=torch.tensor(returns, dtype=torch.float32),
            episode_lengths=torch.tensor(lengths, dtype=torch.float32),
            policy_version=policy_version,
            env_steps=int(valid.sum()),
        )

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def _check_finite(
        self, obs: np.ndarray, rewards: np.ndarray, final_obs: list[np.ndarray], final_rows: list[int]
    ) -> None:
        """Once per rollout: a policy fed with NaN learns nothing but NaN."""
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
