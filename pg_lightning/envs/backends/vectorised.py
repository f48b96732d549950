"""Environments with their own vectorised code, as registered in Gymnasium."""

from __future__ import annotations

from typing import Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from pg_lightning.envs import failures
from pg_lightning.envs.backends import answers
from pg_lightning.envs.contract import Capabilities, EnvKwargs, Info, SingleReset
from pg_lightning.envs.flattened import Flattened
from pg_lightning.envs.seeds import Seeds
from pg_lightning.envs.stateful import refuse_statistics
from pg_lightning.errors import UserError, cause_of

AutoresetName = Literal["next_step", "same_step", "disabled"]
MODES: dict[AutoresetName, AutoresetMode] = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}
REFUSALS = (gym.error.Error, ImportError, TypeError, ValueError, AssertionError)
CAPABILITIES = Capabilities(can_save_state="by_copy")


class Vectorised(VectorWrapper):
    """Vectorised code whose results are those of the contract; it may write into the actions, which are a copy.

    Args:
        env: the environment.

    Raises:
        UserError: by `step` and `reset`, if a result is not as its spaces and Gymnasium's interface promise.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._space = batch_space(env.single_observation_space, env.num_envs)
        self._resets_in_step = env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP
        self._steps = 0

    def reset(self, *, seed: Seeds = None, options: Info | None = None) -> SingleReset:
        """As in Gymnasium."""
        place = None, self._steps
        try:
            answer = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        except BaseException as error:
            answers.refuse(error, place)
            raise
        obs, info = answers.first(answer, place)
        return answers.observation(obs, self._space, place), info or {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """As in Gymnasium."""
        self._steps += 1
        place = None, self._steps
        try:
            obs, rewards, terminated, truncated, infos = self.env.step(actions.copy())
        except BaseException as error:
            answers.refuse(error, place)
            raise
        terminated = answers.column(terminated, "terminated", place, self.num_envs, np.bool_)
        truncated = answers.column(truncated, "truncated", place, self.num_envs, np.bool_)
        if self._resets_in_step and (done := terminated | truncated).any():
            infos = {**infos, "final_obs": self._final_obs(infos, done, place)}
        rewards = answers.column(rewards, "rewards", place, self.num_envs, np.float64)
        return answers.observation(obs, self._space, place), rewards, terminated, truncated, infos or {}

    def close(self, **kwargs: object) -> None:
        """Closes the environments; if they cannot be closed, that is reported in one line."""
        failures.close(self.env, "the vector environment")

    def _final_obs(self, infos: Info | None, done: np.ndarray, place: answers.Place) -> np.ndarray:
        """`[N, *obs]` the last observations of the episodes that ended, which Gymnasium's `SAME_STEP` requires."""
        given = (infos or {}).get("final_obs")
        if given is None or len(given) != self.num_envs:
            raise answers.without_final_obs(place, self.num_envs)
        final_obs = np.zeros(self._space.shape or (), self._space.dtype)
        for n in np.flatnonzero(done):
            final_obs[n] = answers.observation(given[n], self.single_observation_space, place)
        return final_obs


def refused_field(error: BaseException) -> str:
    """The setting that is at fault if Gymnasium cannot make an environment: its id, or its arguments."""
    of_id = "must inherit from the gymnasium.Env", "Empty module name"
    is_id = isinstance(error, (gym.error.Error, ImportError)) or any(sign in str(error) for sign in of_id)
    return "data.env_id" if is_id else "data.env_kwargs"


def make_vectorised(
    env_id: str,
    num_envs: int,
    env_kwargs: EnvKwargs | None,
    autoreset_mode: AutoresetName | None,
) -> VectorEnv:
    """`num_envs` environments in vectorised code, which share one random stream.

    Args:
        env_id: see `make_env`.
        num_envs: N.
        env_kwargs: arguments of the environment.
        autoreset_mode: the required mode; None for the code's own.

    Raises:
        UserError: if there is no such code, or it has another autoreset mode.
    """
    with failures.made("data.env_id", env_id):
        try:
            env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **(env_kwargs or {}))
            if not isinstance(env.single_observation_space, spaces.Box) or not env.single_observation_space.shape:
                env = gym.wrappers.vector.VectorizeTransformObservation(env, Flattened)
        except REFUSALS as error:
            cause = cause_of(error) + failures.in_code(error)
            raise UserError(f"data.backend: no vectorised {env_id!r}: {cause}") from error
    refuse_statistics(env, "data.env_id")
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if autoreset_mode is not None and mode != MODES[autoreset_mode]:
        env.close()
        raise UserError(
            f"data.autoreset_mode: the vectorised {env_id!r} resets as {AutoresetMode(mode).name.lower()}, "
            f"not {autoreset_mode}"
        )
    env = Vectorised(env)
    env.capabilities = CAPABILITIES  # type: ignore[attr-defined]
    return env
