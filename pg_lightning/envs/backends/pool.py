"""EnvPool: environments in C++, stepped together by a thread pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pg_lightning.envs.backends.pool_ids import made, task_of
from pg_lightning.envs.contract import Capabilities, EnvKwargs, Info
from pg_lightning.spaces import FlattenedBox


class PoolVectorEnv(VectorEnv):
    """`num_envs` environments of EnvPool with the interface of a Gymnasium vector environment.

    Differences from EnvPool's own interface: `reset` takes seeds and creates the pool again; actions are `float32`, as
    in Gymnasium; `Dict` observations are flattened; and an episode that terminates in exactly the step of its time
    limit is terminated and truncated, see `pool_ids.Task`.

    Args:
        env_id: one of `pool_ids.SAME_AS_GYMNASIUM`, or EnvPool's name of an Atari game, a task of highway-env,
            dm_control or Meta-World, or a robot of MuJoCo Playground.
        num_envs: number of environments.
        env_kwargs: arguments of `envpool.make`, including `num_threads`.

    Raises:
        UserError: if EnvPool is not installed, or has no such environment or argument.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (as Gymnasium declares it)
    capabilities = Capabilities(seeds="per_env")

    def __init__(self, env_id: str, num_envs: int, env_kwargs: EnvKwargs | None = None) -> None:
        self.env_id, self.num_envs = env_id, num_envs
        self._task = task_of(env_id, num_envs, env_kwargs or {})
        space = self._task.observation_space
        self._names = [*space.spaces] if isinstance(space, spaces.Dict) else []
        self.single_observation_space = FlattenedBox(space) if self._names else space
        self.single_action_space = self._task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool: Any = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Starts new episodes in all environments; with one seed, environment i uses seed + i, as in Gymnasium."""
        if seed is not None or self._pool is None:
            seeds = (
                [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
            )
            self._pool = made("make_gymnasium", self.env_id, [_int32(seed) for seed in seeds], self._task.env_kwargs)
        self._out_of_time = np.zeros(self.num_envs, dtype=bool)
        obs, infos = self._pool.reset()
        return self._flat(obs), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """One step; after the end of an episode, the first observation of the next one and reward 0."""
        obs, rewards, terminated, truncated, infos = self._pool.step(actions)
        obs = self._flat(obs)
        if self._task.names_ends:
            return obs, rewards, terminated | (infos["terminated"] != 0), truncated, infos
        restarts = self._out_of_time
        if restarts.any():
            obs[restarts] = self._flat(self._pool.reset(np.flatnonzero(restarts).astype(np.int32))[0])
            rewards[restarts], terminated[restarts] = 0.0, False
        truncated = (infos["elapsed_step"] >= self._task.limit) & ~restarts
        self._out_of_time = truncated & ~terminated
        return obs, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: object) -> None:
        """Ends the threads."""
        self._pool = None

    def _flat(self, obs: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """`[N, D]` of a `Dict`, in the order of its space."""
        if isinstance(obs, np.ndarray):
            return obs
        parts = (obs[name] for name in self._names)
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


class PoolEnv(gym.Env[np.ndarray, Any]):
    """One environment of EnvPool, for evaluation, where each episode has its own seed.

    Args:
        env_id: see `PoolVectorEnv`, as `env_kwargs`.
        env_kwargs: without `num_threads`, which is 1.

    Raises:
        UserError: see `PoolVectorEnv`.
    """

    def __init__(self, env_id: str, env_kwargs: EnvKwargs | None = None) -> None:
        self._env = PoolVectorEnv(env_id, 1, {**(env_kwargs or {}), "num_threads": 1})
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Starts an episode."""
        return self._env.reset(seed=seed)[0][0], {}

    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, Info]:
        """One step."""
        obs, rewards, terminated, truncated, _ = self._env.step(np.asarray(action)[None])
        return obs[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def close(self) -> None:
        """Ends the thread."""
        self._env.close()


def _int32(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed % 2**31
