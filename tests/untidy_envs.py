"""Environments that do not keep to their spaces, or to Gymnasium's interface. Importing this module registers them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

LENGTH = 3  # steps of an episode


class Tidy(gym.Env[Any, Any]):
    """Episodes of three steps that pay the action, and show the step and the last action; subclasses are untidy."""

    observation_space: Any = spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.last = 0, 0.0
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.last = float(np.asarray(action).reshape(-1)[0])
        return self.shown(), self.last, self.steps == LENGTH, False, {}

    def shown(self) -> Any:
        return np.array([self.steps, self.last], np.float32)


# What it shows instead, and whether that is another way to write the same numbers.
SHOWN: dict[str, tuple[Any, bool]] = {
    "a list": (lambda x: x.tolist(), True),
    "a tensor": (torch.from_numpy, True),
    "float64": (lambda x: x.astype(np.float64), True),
    "whole numbers": (lambda x: x.astype(np.int64), True),
    "a row too many": (lambda x: x[None], False),
    "one number": (lambda x: x[:1], False),
    "nothing": (lambda x: None, False),
    "words": (lambda x: ["left", "right"], False),
    "ragged": (lambda x: [[1.0], [2.0, 3.0]], False),
}


class Shows(Tidy):
    def __init__(self, kind: str, first: int = 0) -> None:
        self.kind, self.first = kind, first

    def shown(self) -> Any:
        x = super().shown()
        return SHOWN[self.kind][0](x) if self.steps >= self.first else x


class Bytes(Tidy):
    """An image of bytes, as it says, but of the dtype `dtype` and as bright as `value`."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def __init__(self, dtype: str, value: float) -> None:
        self.dtype, self.value = dtype, value

    def shown(self) -> Any:
        return np.full(2, self.value, self.dtype)


# How it writes the numbers and truth values that `step` returns.
WRITTEN: dict[str, Any] = {
    "arrays [1]": lambda x: np.array([x]),
    "arrays []": lambda x: np.array(x),
    "lists": lambda x: [x],
    "tensors": lambda x: torch.tensor([x]),
    "NumPy scalars": lambda x: np.array([x])[0],
    "arrays [1, 1]": lambda x: np.array([[x]]),
}


class Writes(Tidy):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(self, action: Any) -> Any:
        obs, *values, info = super().step(action)
        return obs, *map(WRITTEN[self.kind], values), info


class Pair(Tidy):
    """The reward, or an end, is a pair."""

    def __init__(self, which: str) -> None:
        self.which = which

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        pair = np.array([0.0, 1.0])
        if self.which == "reward":
            return obs, pair, terminated, truncated, info
        return (
            (obs, reward, pair > 0, truncated, info)
            if self.which == "terminated"
            else (obs, reward, False, pair > 0, info)
        )


class Chatty(Tidy):
    """Infos named like those that vector environments add."""

    def info(self) -> dict[str, Any]:
        names = ("final_obs", "_final_obs", "final_info", "_action_mask", "episode", "pg_lightning/restarted")
        return dict.fromkeys(names, np.full(2, 77.0, np.float32))

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], self.info()

    def step(self, action: Any) -> Any:
        obs, reward, _, _, _ = super().step(action)
        return obs, reward, False, self.steps == LENGTH, self.info()


class Silent(Tidy):
    """None instead of infos."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], None

    def step(self, action: Any) -> Any:
        return *super().step(action)[:-1], None


class Mumbles(Tidy):
    """A number instead of infos."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:-1], 5


class Rescales(Tidy):
    """Writes into its action."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        action *= 0.1
        return result


class Goal(Tidy):
    """Reads its options unless they are None."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        goal = 0.5 if options is None else options["goal"]
        return super().reset(seed=seed)[0] * goal, {}


# Spaces that are flattened, with an element, the same in other types, and elements of other spaces.
PAIR = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 255, (2,), np.uint8))
PARTS: dict[str, tuple[Any, Any, list[Any], list[Any]]] = {
    "Discrete": (
        spaces.Discrete(3, start=-1),
        1,
        [np.int64(1), np.array(1), np.array([1], np.uint8), torch.tensor(1)],
        [-2, 2, np.int64(2), 1.0, None, "1", np.array([1, 1])],
    ),
    "MultiDiscrete": (
        spaces.MultiDiscrete([2, 3], dtype=np.uint16),
        np.array([1, 2]),
        [[1, 2], (1, 2), np.array([1, 2], np.uint16), torch.tensor([1, 2])],
        [[2, 0], [-1, 0], [1, 3], [1], [1.0, 2.0], 1, None],
    ),
    "MultiBinary": (
        spaces.MultiBinary(2),
        np.array([1, 0], np.int8),
        [[1, 0], np.array([True, False])],
        [[2, 0], [1, 0, 0], [0.5, 0]],
    ),
    "Dict": (
        PAIR,
        {"a": 2, "b": np.array([3, 200], np.uint8)},
        [{"a": np.int32(2), "b": [3, 200], "c": "ignored"}],
        [{"a": 2}, {"a": 3, "b": [3, 200]}, {"a": 2, "b": [0.1, 0.9]}, {"a": 2, "b": [3, 256]}, [2, [3, 200]], None],
    ),
    "Tuple": (
        spaces.Tuple([spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2, 2), np.float32)]),
        (1, np.eye(2, dtype=np.float32)),
        [[1, [[1, 0], [0, 1]]]],
        [(1,), (1, np.zeros(4)), (1, np.zeros((2, 2)), 0), {0: 1}, 1],
    ),
}


class Parts(Tidy):
    """Shows an observation of `PARTS` in its steps, by number among those that are taken or refused."""

    def __init__(self, name: str, which: int = 0, refused: bool = False) -> None:
        self.observation_space, self.tidy, taken, others = PARTS[name]
        self.given = (others if refused else [self.tidy, *taken])[which]

    def shown(self) -> Any:
        return self.given if self.steps else self.tidy


class OldReset(Tidy):
    """Gym before 0.26: observations alone."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class OldStep(Tidy):
    """Gym before 0.26: four values."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class Confused(Tidy):
    """Unpacks what is no pair."""

    def step(self, action: Any) -> Any:
        _, _ = super().step(action)


class Fleet(VectorEnv[Any, Any, Any]):
    """Vectorised code: N of `Tidy`, untidy as `fault` says."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, num_envs: int, fault: str = "") -> None:
        self.num_envs, self.fault = num_envs, fault
        self.single_observation_space, self.single_action_space = Tidy.observation_space, Tidy.action_space
        self.observation_space = batch_space(Tidy.observation_space, num_envs)
        self.action_space = batch_space(Tidy.action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps = 0
        return self.shown(0.0), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        rewards: Any = actions[:, 0].astype(float)
        obs, ends = self.shown(rewards), np.full(self.num_envs, self.steps % (LENGTH + 1) == LENGTH)
        if self.steps % (LENGTH + 1) == 0:
            rewards = np.zeros(self.num_envs)
        if self.fault == "writes into its actions":
            actions *= 0.1
        if self.fault == "columns":
            return obs, rewards[:, None], ends[:, None], np.zeros((self.num_envs, 1)), {}
        if self.fault == "ends are numbers":
            return obs, rewards, ends.astype(np.int8), np.zeros(self.num_envs, np.int8), {}
        if self.fault == "one reward":
            return obs, rewards[:1], ends, np.zeros(self.num_envs, bool), {}
        return obs, rewards, ends, np.zeros(self.num_envs, bool), {}

    def shown(self, rewards: Any) -> Any:
        obs = np.zeros((self.num_envs, 2), np.float32)
        obs[:, 0], obs[:, 1] = self.steps % (LENGTH + 1), rewards
        faults = {"obs of one": obs[:1], "no numbers": obs.astype(str), "float64": obs.astype(np.float64)}
        return faults.get(self.fault, obs)


class SameStepFleet(Fleet):
    """Resets within the step, and gives the last observations as `final_obs` says."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, final_obs: str) -> None:
        super().__init__(num_envs)
        self.final_obs = final_obs

    def step(self, actions: Any) -> Any:
        self.steps += 1
        obs, infos = self.shown(actions[:, 0]), {}
        ends = np.full(self.num_envs, self.steps == LENGTH)
        if ends[0]:
            given = {"array": obs, "objects": np.array([*obs, None], object)[:-1], "one": obs[:1], "parts": obs[:, :1]}
            infos = {"final_obs": given[self.final_obs]} if self.final_obs in given else {"final_observation": obs}
            self.steps = 0
        return self.shown(0.0) if ends[0] else obs, actions[:, 0].astype(float), ends & False, ends, infos


for _class in (
    Tidy,
    Shows,
    Bytes,
    Writes,
    Pair,
    Chatty,
    Silent,
    Mumbles,
    Rescales,
    Goal,
    Parts,
    OldReset,
    OldStep,
    Confused,
):
    gym.register(f"{_class.__name__}-v0", entry_point=_class)
gym.register("SameStepFleet-v0", entry_point=Tidy, vector_entry_point=SameStepFleet)
gym.register("Fleet-v0", entry_point=Tidy, vector_entry_point=Fleet)
