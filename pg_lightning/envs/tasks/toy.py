"""Environments so small that the exact answer is known: each tests one property of an algorithm.

Importing this module registers them: `pg_lightning.envs.tasks.toy:pg_lightning/ConstantReward-v0` can be used as an id.
V* is the value of the best policy, γ the discount factor.

| id, each `pg_lightning/…-v0` | question                                          | answer                          |
|------------------------------|---------------------------------------------------|---------------------------------|
| `ConstantReward`             | does the critic learn a constant?                 | V = 1                           |
| `ObservedReward`             | does the critic see the observation?              | V(o) = o                        |
| `DelayedReward`              | does value flow back in time, discounted?         | V(s0) = γ, V(s1) = 1            |
| `ActionReward`               | does the actor prefer the better action?          | a = 1, V* = 1                   |
| `ContextualReward`           | does the actor see the observation, context c?    | a = c, V* = 1                   |
| `ContinuousReward`           | as `ActionReward`, with a `Box` action            | a = (½, −½), V* = 0             |
| `ContinuousContextualReward` | as `ContextualReward`, with a `Box` action        | a = (2c − 1) (½, −½), V* = 0    |
| `MultiDiscreteReward`        | are the components of an action independent?      | a = (c, 2c), V* = 1             |
| `MultiBinaryReward`          | the same for bits                                 | a = (c, 1 − c), V* = 1          |
| `HiddenCoin`                 | control: nothing can be learned                   | V = ½ under every policy        |
| `Endless`                    | is truncation distinguished from termination?     | V = 1 / (1 − γ)                 |
| `Recall`                     | is the first observation, c, remembered?          | a = c at the end, V*(s0) = γ³   |
| `MaskedReward`               | are invalid actions excluded?                     | an outermost allowed a, V* = 1  |
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import Space, spaces

from pg_lightning.envs.contract import Info, SingleReset, SingleStep

ActionKind = Literal["discrete", "box", "multi_discrete", "multi_binary"]
ObservationKind = Literal["hidden", "box", "image", "discrete", "multi_discrete", "multi_binary", "tuple", "dict"]
Env = gym.Env[Any, Any]  # of any kind of observations and actions

_COIN, _SIGN = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,), np.float32)


class DelayedReward(Env):
    """`length` steps without a choice and reward 1 at the end: V(s_t) = γ^(length − 1 − t)."""

    def __init__(self, length: int = 2) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(1)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Starts at 0; the observation is the fraction of steps taken."""
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> SingleStep:
        """Moves by one."""
        self.steps += 1
        ended = self.steps == self.length
        return self._observation(), float(ended), ended, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.steps / self.length], dtype=np.float32)


class ObservedReward(Env):
    """One step whose reward is the observation, −1 or +1: V(o) = o."""

    def __init__(self) -> None:
        self.observation_space = _SIGN
        self.action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Draws the observation, with equal probabilities."""
        super().reset(seed=seed)
        self.sign = 2.0 * self.np_random.integers(2) - 1.0
        return np.array([self.sign], dtype=np.float32), {}

    def step(self, action: Any) -> SingleStep:
        """Returns the observation as the reward."""
        return np.array([self.sign], dtype=np.float32), self.sign, True, False, {}


class Target(Env):
    """One step, rewarded for matching a target: V* = 1 if the reward is the fraction matched, 0 for a `Box`.

    The context c is 0 or 1, equally likely. The target is c of `Discrete(2)`, (c, 2c) of `MultiDiscrete([2, 3])`,
    (c, 1 − c) of `MultiBinary(2)`, and (2c − 1) (½, −½) of a `Box`, whose reward is minus the squared distance.

    Args:
        action: kind of the action space.
        observation: how the context is shown; `hidden` shows nothing.
        contextual: whether the context is drawn; otherwise it is always 1.
    """

    def __init__(
        self, action: ActionKind = "discrete", observation: ObservationKind = "box", contextual: bool = True
    ) -> None:
        self.action_space = _action_space(action)
        self.observation_space = _observation_space(observation)
        self.action = action
        self.observation = observation
        self.contextual = contextual

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Draws the context."""
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(2)) if self.contextual else 1
        return _show(self.observation, self.context), {}

    def step(self, action: Any) -> SingleStep:
        """Compares the action with the target."""
        target = _target(self.action, self.context)
        if self.action == "box":
            reward = -float(np.square(np.asarray(action) - target).sum())
        else:
            reward = float(np.mean(np.asarray(action) == target))
        return _show(self.observation, self.context), reward, True, False, {}


class Endless(Env):
    """Reward 1 per step, endless: V = 1 / (1 − γ) under any time limit; V(s_t) = (1 − γ^(n − t)) / (1 − γ) with an end.

    Registered with a time limit of 8, which `max_episode_steps` changes. A time limit truncates the episode, and the
    values must not depend on it. `terminate_after` ends the task: then the observation counts the steps, because V
    depends on them and falls to 1 in the last step. If both are at the same step, it is terminated *and* truncated and
    counts as terminated.

    Args:
        terminate_after: number of steps n after which the task itself ends; never if null.
        first_reward: of the first step of an episode, instead of 1. V of the first observation then differs by
            `first_reward` − 1 from V of all later ones.
    """

    def __init__(self, terminate_after: int | None = None, first_reward: float = 1.0) -> None:
        self.counted = terminate_after or 1
        self.observation_space = spaces.Discrete(self.counted + 1)
        self.action_space = spaces.Discrete(2)
        self.terminate_after = terminate_after
        self.first_reward = first_reward

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Starts counting at 0."""
        super().reset(seed=seed)
        self.steps = 0
        return 0, {}

    def step(self, action: Any) -> SingleStep:
        """Returns the reward; the observation is the number of steps, up to the counted maximum."""
        self.steps += 1
        reward = self.first_reward if self.steps == 1 else 1.0
        return min(self.steps, self.counted), reward, self.steps == self.terminate_after, False, {}


class Recall(Env):
    """The cue shown first, −1 or +1, decides which action, 0 or 1, pays 1 at the last step: V*(s_t) = γ^(delay − t).

    An observation is (cue, whether this is the last step); the cue is 0 except in the first. Earlier actions have no
    effect. The last observation is the same after both cues, so every policy without memory gets ½ of the return of the
    best policy with memory.

    Args:
        delay: number of steps between the cue and the rewarded action. With 0 no memory is needed.
    """

    def __init__(self, delay: int = 3) -> None:
        if delay < 0:
            raise ValueError(f"delay must be at least 0, not {delay}")
        self.observation_space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        self.action_space = spaces.Discrete(2)
        self.delay = delay

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Draws the cue, with equal probabilities, and shows it."""
        super().reset(seed=seed)
        self.steps = 0
        self.cue = int(self.np_random.integers(2))
        return self._observation(2 * self.cue - 1), {}

    def step(self, action: Any) -> SingleStep:
        """Pays in the last step if the action matches the cue."""
        self.steps += 1
        ended = self.steps > self.delay
        return self._observation(0), float(ended and action == self.cue), ended, False, {}

    def _observation(self, cue: int) -> np.ndarray:
        return np.array([cue, self.steps >= self.delay], dtype=np.float32)


class MaskedReward(Env):
    """One step with invalid actions: `info["action_mask"]`, of reset and step, is 1 where an action is allowed.

    Every non-empty set of allowed actions is equally likely, and the observation does not show it. The observation is
    the context, −1 or +1 with equal probability: for +1 the largest allowed action pays 1, for −1 the smallest;
    another allowed action pays 0, an invalid one −10. V* = 1: logits that increase, or decrease, steeply with
    the action are right under every mask. A uniform choice among allowed actions gives 887/1860 ≈ 0.477. Without the
    mask the best possible return is 16/31 − 10 · 15/31 = −134/31 ≈ −4.32, with action 4 or 0.

    With `multi_discrete`, each component of `MultiDiscrete([3, 4])` has its own mask and best option; the masks
    are concatenated to length 7. The reward is the fraction of best choices, so still V* = 1, or −10
    if either is not allowed.

    Args:
        action: kind of the action space.
        strict: raise ValueError for an invalid action, instead of paying −10.
    """

    def __init__(self, action: Literal["discrete", "multi_discrete"] = "discrete", strict: bool = False) -> None:
        self.sizes = [5] if action == "discrete" else [3, 4]
        self.action_space = spaces.Discrete(5) if action == "discrete" else spaces.MultiDiscrete(self.sizes)
        self.observation_space = _SIGN
        self.strict = strict

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Draws the context and the mask."""
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(2))
        self.allowed = [self._some_of(size) for size in self.sizes]
        return _show("box", self.context), self._info()

    def step(self, action: Any) -> SingleStep:
        """Pays for the best allowed action; the mask does not change."""
        choices = np.atleast_1d(action).tolist()
        valid = all(choice in allowed for choice, allowed in zip(choices, self.allowed, strict=True))
        if self.strict and not valid:
            raise ValueError(f"action {action} is not allowed; allowed are {self.allowed}")
        best = [max(allowed) if self.context else min(allowed) for allowed in self.allowed]
        reward = float(np.mean(np.equal(choices, best))) if valid else -10.0
        return _show("box", self.context), reward, True, False, self._info()

    def _some_of(self, size: int) -> list[int]:
        bits = int(self.np_random.integers(1, 2**size))
        return [option for option in range(size) if bits >> option & 1]

    def _info(self) -> Info:
        masks = [np.isin(np.arange(size), allowed) for size, allowed in zip(self.sizes, self.allowed, strict=True)]
        return {"action_mask": np.concatenate(masks).astype(np.int8)}


def _action_space(kind: ActionKind) -> Space[Any]:
    if kind == "discrete":
        return spaces.Discrete(2)
    if kind == "multi_discrete":
        return spaces.MultiDiscrete([2, 3])
    if kind == "multi_binary":
        return spaces.MultiBinary(2)
    return spaces.Box(-1.0, 1.0, (2,), np.float32)


def _target(kind: ActionKind, c: int) -> Any:
    targets = {"discrete": c, "multi_discrete": [c, 2 * c], "multi_binary": [c, 1 - c], "box": [c - 0.5, 0.5 - c]}
    return np.asarray(targets[kind])


def _observation_space(kind: ObservationKind) -> Space[Any]:
    kinds: dict[ObservationKind, Space[Any]] = {
        "hidden": spaces.Box(0.0, 1.0, (1,), np.float32),
        "box": _SIGN,
        "image": spaces.Box(0, 255, (2, 3, 1), np.uint8),
        "discrete": _COIN,
        "multi_discrete": spaces.MultiDiscrete([3, 2]),
        "multi_binary": spaces.MultiBinary(2),
        "tuple": spaces.Tuple((_SIGN, spaces.Tuple((_COIN,)))),
        "dict": spaces.Dict({"constant": _SIGN, "inner": spaces.Dict({"context": _COIN})}),
    }
    return kinds[kind]


def _show(kind: ObservationKind, c: int) -> Any:
    """The context in one entry of the observation; the other entries are constant."""
    nothing = np.zeros(1, dtype=np.float32)
    shown = {
        "hidden": nothing,
        "box": np.array([2 * c - 1], dtype=np.float32),
        "image": np.array([0, 0, 0, 0, 0, 255 * c], dtype=np.uint8).reshape(2, 3, 1),
        "discrete": c,
        "multi_discrete": np.array([2, c]),
        "multi_binary": np.array([1, c], dtype=np.int8),
        "tuple": (nothing, (c,)),
        "dict": {"constant": nothing, "inner": {"context": c}},
    }
    return shown[kind]


_REGISTERED: dict[str, tuple[type[Env], dict[str, object]]] = {
    "ConstantReward": (DelayedReward, {"length": 1}),
    "ObservedReward": (ObservedReward, {}),
    "DelayedReward": (DelayedReward, {"length": 2}),
    "ActionReward": (Target, {"contextual": False}),
    "ContextualReward": (Target, {}),
    "ContinuousReward": (Target, {"action": "box", "contextual": False}),
    "ContinuousContextualReward": (Target, {"action": "box"}),
    "MultiDiscreteReward": (Target, {"action": "multi_discrete"}),
    "MultiBinaryReward": (Target, {"action": "multi_binary"}),
    "HiddenCoin": (Target, {"observation": "hidden"}),
    "Endless": (Endless, {}),
    "Recall": (Recall, {}),
    "MaskedReward": (MaskedReward, {}),
}
for _name, (_class, _kwargs) in _REGISTERED.items():
    _limit = 8 if _class is Endless else None
    gym.register(f"pg_lightning/{_name}-v0", f"{__name__}:{_class.__name__}", max_episode_steps=_limit, kwargs=_kwargs)
