"""Environments whose own code fails, where and how it is asked to. Importing this module registers them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from odd_envs import Bandit


def _raise() -> None:
    raise RuntimeError("the motor\nis gone")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _hang() -> None:
    """As a loop over a connection does that handles all errors."""
    while True:
        with suppress(Exception):
            time.sleep(1000)


DEEDS: dict[str, Callable[[], object]] = {
    "raises": _raise,
    "leaves": lambda: sys.exit(0),
    "interrupts": _interrupt,
    "hangs": _hang,
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exits": lambda: os._exit(0),
}


class Fails(Bandit):
    """Does the deed in `init`, `reset`, `close` or its `at`-th `step`, if it was made after `spared` others."""

    made = 0

    def __init__(self, deed: str, where: str, at: int = 3, spared: int = 0) -> None:
        Fails.made += 1
        self.deed, self.where, self.at, self.total = DEEDS[deed], where, at, 0
        if where == "init" and Fails.made > spared:
            self.deed()

    def reset(self, **kwargs: Any) -> Any:
        if self.where == "reset":
            self.deed()
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.where == "step" and self.total == self.at:
            self.deed()
        return super().step(action)

    def close(self) -> None:
        if self.where == "close":
            self.deed()


class Naps(Bandit):
    """Stops its process four times, for 0.6 seconds each."""

    total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total in (10, 25, 40, 55):
            subprocess.Popen(["sh", "-c", f"sleep 0.6; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(action)


class StopsWorker(Bandit):
    """Stops one of the workers of the hogwild strategy, at its third step."""

    total = 0

    def __init__(self, worker: int) -> None:
        self.stops = multiprocessing.current_process().name.endswith(f"worker {worker}")

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.stops and self.total == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(action)


class FailsTogether(VectorEnv[Any, Any, Any]):
    """The same in vectorised code."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        self.num_envs, self.one = num_envs, Fails(**kwargs)
        self.single_observation_space, self.single_action_space = Bandit.observation_space, Bandit.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.one.reset(seed=seed if isinstance(seed, int) else None)
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> Any:
        self.one.step(0)
        ends = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 1), np.float32), np.zeros(self.num_envs), ends, ends, {}

    def close_extras(self, **kwargs: Any) -> None:
        self.one.close()


class FailsAsSimulator(FailsTogether):
    """The same with tensors."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def reset(self, **kwargs: Any) -> Any:
        obs, infos = super().reset(**kwargs)
        return torch.from_numpy(obs), infos

    def step(self, actions: Any) -> Any:
        *values, infos = super().step(actions)
        return (*map(torch.from_numpy, values), infos)


class WrapsBadly(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot wrap."""

    def __init__(self, env: Any, deed: str) -> None:
        super().__init__(env)
        DEEDS[deed]()


gym.register("Fails-v0", entry_point=Fails, vector_entry_point=FailsTogether)
gym.register("Naps-v0", entry_point=Naps)
gym.register("StopsWorker-v0", entry_point=StopsWorker)
gym.register("FailsAsSimulator-v0", entry_point=Fails, vector_entry_point=FailsAsSimulator)
