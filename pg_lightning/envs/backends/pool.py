"""EnvPool: classic control, MuJoCo and Atari in C++, stepped together by a thread pool."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pg_lightning.envs.contract import Capabilities, EnvKwargs, Info
from pg_lightning.errors import UserError, require

# Verified to step like Gymnasium's from the same states with the same actions. Missing are MuJoCo before v4, and of v4
# Humanoid and HumanoidStandup, whose contact forces are all zero, and Pusher, which Gymnasium itself cannot run.
_CLASSIC = ("CartPole-v0", "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1")
_MUJOCO = (
    *("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Reacher", "InvertedPendulum", "InvertedDoublePendulum"),
    *("Humanoid", "HumanoidStandup", "Pusher"),
)
SAME_AS_GYMNASIUM = frozenset(
    (*_CLASSIC, *(f"{name}-v5" for name in _MUJOCO), *(f"{name}-v4" for name in _MUJOCO[:-3]))
)

_FOR_EVER = 2**31 - 1


class PoolVectorEnv(VectorEnv):
    """`num_envs` environments of EnvPool with the interface of a Gymnasium vector environment.

    Differences from EnvPool's own interface: `reset` takes seeds and creates the pool again; actions are `float32`, as
    in Gymnasium; and an episode that terminates in exactly the step of its time limit is terminated and truncated,
    while EnvPool reports only truncated, so that a value function would bootstrap after the end.

    Args:
        env_id: one of `SAME_AS_GYMNASIUM`, or an Atari game with EnvPool's name, `Breakout-v5`.
        num_envs: number of environments.
        env_kwargs: arguments of `envpool.make`, including `num_threads`.

    Raises:
        UserError: if EnvPool is not installed, or has no such environment or argument.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (as Gymnasium declares it)
    capabilities = Capabilities(seeds="per_env")

    def __init__(self, env_id: str, num_envs: int, env_kwargs: EnvKwargs | None = None) -> None:
        self._atari = _is_atari(env_id)
        self.env_id, self.num_envs, self.env_kwargs = env_id, num_envs, dict(env_kwargs or {})
        spec = self._make("make_spec", [0] * num_envs)
        self._limit = spec.config.max_episode_steps
        require("data.env_kwargs.max_episode_steps", self._limit, 1)
        if not self._atari:
            self.env_kwargs["max_episode_steps"] = _FOR_EVER
        self.single_observation_space, self.single_action_space = spec.observation_space, _single(spec.action_space)
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
            self._pool = self._make("make_gymnasium", [_int32(seed) for seed in seeds])
        self._out_of_time = np.zeros(self.num_envs, dtype=bool)
        return self._pool.reset()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """One step; after the end of an episode, the first observation of the next one and reward 0."""
        obs, rewards, terminated, truncated, infos = self._pool.step(actions)
        if self._atari:
            return obs, rewards, terminated | (infos["terminated"] != 0), truncated, infos
        restarts = self._out_of_time
        if restarts.any():
            obs[restarts], _ = self._pool.reset(np.flatnonzero(restarts).astype(np.int32))
            rewards[restarts], terminated[restarts] = 0.0, False
        truncated = (infos["elapsed_step"] >= self._limit) & ~restarts
        self._out_of_time = truncated & ~terminated
        return obs, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: object) -> None:
        """Ends the threads."""
        self._pool = None

    def _make(self, how: str, seeds: list[int]) -> Any:
        make = getattr(_envpool(), how)
        try:
            return make(self.env_id, num_envs=self.num_envs, batch_size=self.num_envs, seed=seeds, **self.env_kwargs)
        except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as error:
            why = str(error).partition("\n")[0].partition(". The following")[0] or type(error).__name__
            raise UserError(f"data.env_kwargs: EnvPool cannot make {self.env_id!r}: {why}") from error


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


def _envpool() -> Any:
    try:
        import envpool
    except ImportError as error:
        raise UserError('data.backend: envpool is not installed; pip install "pg_lightning[envpool]"') from error
    return envpool


def _is_atari(env_id: str) -> bool:
    """Whether the id is an Atari game; refuses ids that are neither Atari games nor equal to Gymnasium's."""
    if env_id in SAME_AS_GYMNASIUM:
        return False
    specs = _envpool().registration.registry.specs
    if specs.get(env_id, ("",))[0] == "envpool.atari":
        return True
    game = env_id.rpartition("/")[2]
    if specs.get(game, ("",))[0] == "envpool.atari":
        why = f"EnvPool has its own preprocessing, so its {game!r} differs from {env_id!r}; to use it, set {game!r}"
    elif (newer := f"{game.rpartition('-')[0]}-v5") in SAME_AS_GYMNASIUM:
        why = f"EnvPool lacks {env_id!r}, or it differs from Gymnasium's; use {newer!r}, or another data.backend"
    else:
        why = (
            f"backend 'envpool' has classic control, MuJoCo v5 and Atari games ('Breakout-v5'), not {env_id!r}; "
            "use another data.backend"
        )
    raise UserError(f"data.env_id: {why}")


def _single(action_space: gym.Space) -> gym.Space:
    if not isinstance(action_space, spaces.Box):
        return action_space
    return spaces.Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32), dtype=np.float32)


def _int32(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed % 2**31
