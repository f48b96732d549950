"""Environments that are hard on a trainer. Importing this module registers them."""

import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces


class Bandit(gym.Env[Any, Any]):
    """Episodes of two steps; subclasses say what is odd."""

    length = 2
    observation_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation(), self.reward(), self.steps == self.length, False, {}

    def observation(self) -> Any:
        return np.zeros(1, dtype=np.float32)

    def reward(self) -> float:
        return 0.0


class Flat(Bandit):
    """Every episode returns −2, whatever is learned."""

    def reward(self) -> float:
        return -1.0


class Fading(Bandit):
    """Every episode pays less than the one before, whatever is learned."""

    episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        Fading.episodes += 1
        return super().reset(**kwargs)

    def reward(self) -> float:
        return -float(Fading.episodes)


class Lottery(Bandit):
    """The seed says how long an episode is: 1 step or 40."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        self.length = 1 if self.np_random.random() < 0.5 else 40
        return obs, info


class BreaksDown(Bandit):
    """Gives NaN from its 200th step on, over all episodes, as `what` says: reward or observation."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        return super().step(action)

    def observation(self) -> Any:
        return np.full(1, np.nan if self.what == "observation" and self.total >= 200 else 0.0, dtype=np.float32)

    def reward(self) -> float:
        return float("nan") if self.what == "reward" and self.total >= 200 else 0.0


class Saboteur(Bandit):
    """In its 200th step ends or stops the process that it is in, if that is rank 1, or raises there."""

    def __init__(self, deed: str) -> None:
        self.deed = deed
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == 200 and os.environ.get("LOCAL_RANK") == "1":
            if self.deed == "OSError":
                raise OSError("the environment has lost its world")
            os.kill(os.getpid(), signal.Signals[self.deed])
        return super().step(action)


class Overpays(BreaksDown):
    """Pays more than can be squared in float32 from its 200th step on."""

    def __init__(self) -> None:
        super().__init__("pay")

    def reward(self) -> float:
        return 1e38 if self.total >= 200 else 0.0


class Faulty(Bandit):
    """Episodes of 10 steps, cut, that pay 1 a step and show (number since the seed, step).

    Where it was begun with the seed `victim`, or with any if that is None, the fault occurs in step `step` of its
    episode `episode`, or in the reset before where `step` is 0.
    """

    length = 10
    observation_space = spaces.Box(-1.0, 1000.0, (2,), np.float32)

    def __init__(self, fault: Any, victim: int | None = None, episode: int = 0, step: int = 1) -> None:
        self.fault, self.victim, self.when = fault, victim, (episode, step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.is_victim, self.episode = self.victim in (None, seed), -1
        self.episode += 1
        obs, _ = super().reset(seed=seed)
        self._break()
        return obs, {}

    def step(self, action: Any) -> Any:
        obs, _, ended, _, info = super().step(action)
        self._break()
        return obs, 1.0, False, ended, info

    def observation(self) -> Any:
        return np.array([self.episode, self.steps], dtype=np.float32)

    def _break(self) -> None:
        if self.is_victim and (self.episode, self.steps) == self.when:
            FAULTS[self.fault]()


def _raise() -> None:
    raise OSError("the simulator\nis gone")


def _hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


FAULTS = {
    "raises": _raise,
    "leaves": sys.exit,
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": _hang,
    "hangs in C": lambda: ctypes.PyDLL(None).sleep(1000),  # which keeps the interpreter's lock, so no Python code runs
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


class Interrupts(Bandit):
    """Sends a signal to its own process in its `at`-th step, over all episodes, and does not come back for a while."""

    def __init__(self, signum: int, at: int) -> None:
        self.signum, self.at, self.total = signum, at, 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == self.at:
            os.kill(os.getpid(), self.signum)
            time.sleep(60)
        return super().step(action)


class Slow(Bandit):
    """Takes its time for every step, and says in a file of this name that it has begun."""

    def __init__(self, seconds: float, started: str = "") -> None:
        self.seconds, self.started = seconds, started

    def step(self, action: Any) -> Any:
        if self.started:
            Path(self.started).touch()
        time.sleep(self.seconds)
        return super().step(action)


class TextObservation(Bandit):
    observation_space = spaces.Text(3)


class IntegerBoxAction(Bandit):
    action_space = spaces.Box(0, 3, (1,), np.int64)


class Privileged(gym.Env[Any, Any]):
    """Five steps that each pay z, which the critic alone sees, and 1 for the action that the actor is shown."""

    observation_space: Any = spaces.Dict(
        {"critic": spaces.Box(-np.inf, np.inf, (2,), np.float32), "policy": spaces.Box(0.0, 1.0, (2,), np.float32)}
    )
    action_space: Any = spaces.Discrete(2)

    def __init__(self, masked: bool = False) -> None:
        self.masked = masked

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.z = 0, float(self.np_random.normal())
        return self.observation()

    def step(self, action: Any) -> Any:
        reward = self.z + float(action == self.shown)
        self.steps += 1
        obs, info = self.observation()
        return obs, reward, self.steps == 5, False, info

    def observation(self) -> Any:
        self.shown = int(self.np_random.integers(2))
        seen = {"critic": [self.z, self.steps / 5], "policy": [self.shown, self.steps / 5]}
        info = {"action_mask": np.array([1, self.shown], np.int8)} if self.masked else {}
        return {name: np.array(values, np.float32) for name, values in seen.items()}, info


class CountsResets(gym.ObservationWrapper[Any, Any, Any]):
    """Its observations depend on episodes that are over."""

    resets = 0

    def reset(self, **kwargs: Any) -> Any:
        self.resets += 1
        return super().reset(**kwargs)

    def observation(self, obs: Any) -> Any:
        return obs + np.float32(1e-3 * self.resets)


class Draws(Bandit):
    """Shows numbers from the global generators of Python, NumPy and torch.

    Appends them to a file of its process in `folder`, and at its first reset those of its construction.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, folder: str = "") -> None:
        self.folder, self.unwritten = folder, [self.drawn()]

    def drawn(self) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand((), dtype=torch.float64))]  # noqa: NPY002

    def observation(self) -> Any:
        self.unwritten.append(self.drawn())
        obs = np.array(self.unwritten[-1])
        if self.folder:
            with (Path(self.folder) / f"{os.getpid()}.txt").open("a") as file:
                file.writelines(f"{numbers}\n" for numbers in self.unwritten)
            self.unwritten.clear()
        return obs


class Licensed(Bandit):
    """Asks for a key."""

    def __init__(self, api_key: str) -> None:
        self.api_key = api_key


for _class in (
    Draws,
    Licensed,
    Flat,
    Fading,
    Lottery,
    BreaksDown,
    Overpays,
    Saboteur,
    Faulty,
    Interrupts,
    Slow,
    TextObservation,
    IntegerBoxAction,
    Privileged,
):
    gym.register(f"{_class.__name__}-v0", entry_point=_class)
