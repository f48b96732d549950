"""The worker side of an environment process, and the memory that it shares with the main process."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from pg_lightning.envs import failures
from pg_lightning.envs.backends import answers
from pg_lightning.envs.contract import Info
from pg_lightning.errors import EnvironmentFailed, UserError, show_traceback
from pg_lightning.processes import seed_generators


class Rows(NamedTuple):
    """One row for each environment, in shared memory; in a worker, only its own row."""

    actions: np.ndarray
    obs: np.ndarray
    final_obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def of(self, n: int) -> Rows:
        """Row n of each; single numbers stay arrays."""
        return Rows(*(array[n : n + 1].reshape(array.shape[1:]) for array in self))


def shared_zeros(num_envs: int, shape: Iterable[int] | None, dtype: npt.DTypeLike | None) -> np.ndarray:
    """`[N, *shape]` zeros that forked processes share."""
    shape, dtype = (num_envs, *(shape or ())), np.dtype(dtype)
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype, count).reshape(shape)


class Worker:
    """Runs the environment in its process.

    Args:
        env: the environment.
        row: its row of the shared arrays.
        mode: the autoreset mode.
        index: of the environment.
    """

    def __init__(self, env: gym.Env, row: Rows, mode: AutoresetMode, index: int = 0) -> None:
        self.env = env
        self.row = row
        self.mode = mode
        self.index = index
        self.steps = 0
        self.has_ended = False
        # Python integers: environments check the type of an action, which takes ten times as long for NumPy integers.
        self.action = row.actions.item if isinstance(env.action_space, gym.spaces.Discrete) else row.actions.copy

    def reset(self, seed: int | None, options: Info | None) -> Info:
        """Starts an episode; returns the infos that are read."""
        place = self.index, self.steps
        if seed is not None:  # an episode with a seed is the same again, from whatever generator it is drawn
            seed_generators(seed)
        try:
            answer = self.env.reset(seed=seed, options=options)
        except (TypeError, ValueError) as error:
            answers.refuse_misfit(error, place)
            raise
        obs, info = answers.first(answer, place)
        self.row.obs[...] = answers.observation(obs, self.env.observation_space, place)
        self.has_ended = False
        return answers.mask_of(info, place)

    def step(self) -> Info:
        """Takes the action in the row, or resets if the autoreset mode requires it."""
        row = self.row
        self.steps += 1
        place = self.index, self.steps
        if self.has_ended and self.mode == AutoresetMode.NEXT_STEP:
            row.rewards[...], row.terminated[...], row.truncated[...] = 0.0, False, False
            return self.reset(None, None)
        try:
            obs, reward, terminated, truncated, info = self.env.step(self.action())
        except (TypeError, ValueError) as error:
            answers.refuse_misfit(error, place)
            raise
        try:
            row.rewards[...], row.terminated[...], row.truncated[...] = reward, terminated, truncated
        except (TypeError, ValueError):
            found = answers.outcome(reward, terminated, truncated, place)
            row.rewards[...], row.terminated[...], row.truncated[...] = found
        obs = answers.observation(obs, self.env.observation_space, place)
        self.has_ended = bool(row.terminated or row.truncated)
        if self.has_ended and self.mode == AutoresetMode.SAME_STEP:
            row.final_obs[...] = obs
            return self.reset(None, None)
        row.obs[...] = obs
        return answers.mask_of(info, place)

    def set_attr(self, name: str, value: object) -> None:
        """Sets an attribute of the environment."""
        setattr(self.env, name, value)

    def call(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Calls a method of the environment or of a wrapper, or returns an attribute."""
        found = self.env.get_wrapper_attr(name)
        return found(*args, **kwargs) if callable(found) else found


def serve(
    make: Callable[[], gym.Env], row: Rows, mode: AutoresetMode, index: int, pipe: Connection, at_exit: ExitStack
) -> None:
    """Answers `(method of Worker, *arguments)` with `(True, answer)`, until the method is `"close"`.

    Any exception of the environment, even SystemExit, is sent as the last answer: `(False, cause)`. A `UserError` is
    sent itself, because a new process would fail in the same way; but not that its code raised, which may be by chance.
    """
    try:
        env = make()
        at_exit.callback(failures.close, env, f"env {index}")
        worker = Worker(env, row, mode, index)
        while (command := pipe.recv())[0] != "close":
            pipe.send((True, getattr(worker, command[0])(*command[1:])))
    except BaseException as error:  # an environment may call sys.exit
        show_traceback(error)
        by_contract = isinstance(error, UserError) and not isinstance(error, EnvironmentFailed)
        with suppress(OSError):
            pipe.send((False, error if by_contract else _cause(error)))


def _cause(error: BaseException) -> str:
    if isinstance(error, EnvironmentFailed):
        return f"could not be made: {error}"
    return f"{failures.deed_of(error)} ({failures.place_of(error)})"
