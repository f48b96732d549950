"""Observations flattened to vectors, after a check that they belong to their space.

Gymnasium's `flatten` gives the same vectors, but believes its argument: a category too many falls into the columns of
the next part, −1 is the last category, and floats become bytes. It also takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gymnasium as gym
import numpy as np
from gymnasium import Space, spaces

from pg_lightning.envs.backends.answers import Unfit, fitted, named
from pg_lightning.errors import one_line
from pg_lightning.spaces import FlattenedBox

Flatten = Callable[[object], np.ndarray]


class Flattened(gym.wrappers.FlattenObservation):
    """Gymnasium's wrapper, with the check; its space is a `FlattenedBox`.

    Raises:
        Unfit: by `reset` and `step`, if a part of an observation does not fit into its space.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.func = flattener(env.observation_space)
        self.observation_space = FlattenedBox(env.observation_space)


def flattener(space: Space, name: str = "an observation") -> Flatten:
    """The function `gymnasium.spaces.flatten` of a space, which raises `Unfit` for other arguments.

    Args:
        space: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, and `Tuple` or `Dict` of these.
        name: of the observation, or of the part of it.
    """
    if isinstance(space, spaces.Dict):
        return _of_dict({key: flattener(part, f"{name}[{key!r}]") for key, part in space.spaces.items()}, name)
    if isinstance(space, spaces.Tuple):
        return _of_tuple([flattener(part, f"{name}[{i}]") for i, part in enumerate(space.spaces)], name)
    if isinstance(space, spaces.Discrete):
        return _of_discrete(space, name)
    if isinstance(space, spaces.MultiDiscrete):
        return _of_multi_discrete(space, name)
    if isinstance(space, spaces.MultiBinary):
        return lambda x: _whole(x, space, name, 0, 1).astype(space.dtype).ravel()
    return lambda x: fitted(x, space, name).flatten()


def _of_dict(parts: Mapping[str, Flatten], name: str) -> Flatten:
    def flatten(x: object) -> np.ndarray:
        if not isinstance(x, Mapping) or not parts.keys() <= x.keys():
            lacks = f" without {sorted(parts.keys() - x.keys())}" if isinstance(x, Mapping) else f", {named(x)}"
            raise Unfit(f"{name}{lacks}", f"its observation_space has {sorted(parts)}")
        return np.concatenate([flat(x[key]) for key, flat in parts.items()])

    return flatten


def _of_tuple(parts: list[Flatten], name: str) -> Flatten:
    def flatten(x: object) -> np.ndarray:
        if not isinstance(x, (tuple, list)) or len(x) != len(parts):
            raise Unfit(f"{name}, {named(x)}", f"its observation_space is a tuple of {len(parts)}")
        return np.concatenate([flat(part) for flat, part in zip(parts, x, strict=True)])

    return flatten


def _of_discrete(space: spaces.Discrete, name: str) -> Flatten:
    start, count = int(space.start), int(space.n)
    unit = np.zeros(2 * count - 1, space.dtype)  # its windows of `count` numbers are all one-hot vectors
    unit[count - 1] = 1

    def flatten(x: object) -> np.ndarray:
        category = (
            x if x.__class__ is int or x.__class__ is np.int64 else _whole(x, space, name, start, start + count - 1)
        )
        if not 0 <= (index := category - start) < count:
            raise _unfit(x, space, name)
        return unit[count - 1 - index : 2 * count - 1 - index].copy()

    return flatten


def _of_multi_discrete(space: spaces.MultiDiscrete, name: str) -> Flatten:
    high = space.start + space.nvec - 1
    sizes = space.nvec.ravel().astype(np.int64)
    offsets = np.cumsum(sizes) - sizes - space.start.ravel().astype(np.int64)
    total = int(sizes.sum())

    def flatten(x: object) -> np.ndarray:
        flat = np.zeros(total, space.dtype)
        flat[offsets + _whole(x, space, name, space.start, high).ravel()] = 1
        return flat

    return flatten


def _whole(x: object, space: Space, name: str, low: int | np.ndarray, high: int | np.ndarray) -> np.ndarray:
    """Whole numbers within bounds, in the shape of the space; a single one may come as an array of one."""
    given, shape = np.asarray(x), space.shape
    if given.dtype.kind in "iub" and (given.shape == shape or (not shape and given.shape == (1,))):
        whole = given.reshape(shape or ()).astype(np.int64)
        if ((whole >= low) & (whole <= high)).all():
            return whole
    raise _unfit(x, space, name)


def _unfit(x: object, space: Space, name: str) -> Unfit:
    return Unfit(f"{name}, {named(x)}", f"its observation_space is {one_line(space)}")
