"""Observations of simulators, tensors or nested dicts of tensors, as one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.spaces import FlattenedBox


class Tensors(Protocol):
    """Observations by name: a `dict` or a `TensorDict`."""

    def keys(self) -> Iterable[str]:
        """The names."""
        ...

    def __getitem__(self, name: str) -> Observations:
        """A tensor `[N, ...]`, or more observations by name."""
        ...


Observations: TypeAlias = Tensor | Tensors
Path = tuple[str, ...]


class ObservationLayout:
    """Converts the observations of a simulator to a tensor `[N, *obs]`: uint8 stays, all else becomes float32.

    Observations by name are flattened and concatenated in the order in which Gymnasium flattens a `Dict`. If there is
    only one name, its tensor keeps its shape.

    Args:
        obs: observations of N environments. Their names and shapes define the space, because the spaces of simulators
            do not list all groups.
        known: the simulator's space of one environment, of any class, whose bounds are used; None if it has none.

    Attributes:
        space: of one environment; a `FlattenedBox` if there are several names.
        device: of the tensors.
        is_double: whether a tensor is float64.

    Raises:
        UserError: if an observation is not a tensor.
    """

    def __init__(self, obs: Observations, known: object = None) -> None:
        self.space, self._paths = _described(obs, known)
        if isinstance(self.space, spaces.Dict):
            self.space = FlattenedBox(self.space)
        self._is_flat = isinstance(self.space, FlattenedBox)
        self._dtype = torch.uint8 if self.space.dtype == np.uint8 else torch.float32
        parts = [_at(obs, path) for path in self._paths]
        self.device = parts[0].device
        self.is_double = any(part.dtype == torch.float64 for part in parts)

    def flat(self, obs: Observations) -> Tensor:
        """The tensor `[N, *obs]`; it may share memory with `obs`."""
        parts = [_at(obs, path) for path in self._paths]
        if self._is_flat:
            return torch.cat([part.reshape(len(part), -1).to(self._dtype) for part in parts], 1)
        return _column(parts[0]).to(self._dtype)


def box_of(space: object) -> Space:
    """A space of Gymnasium, for a space that has its attributes: itself, or a `Box` with `shape`, `low` and `high`."""
    if isinstance(space, Space):
        return space
    shape = tuple(getattr(space, "shape", ()))
    return _box(shape, space, np.float32)


def _described(obs: Observations, known: object) -> tuple[Space, Sequence[Path]]:
    """The space of one environment, and the paths to its tensors in the order of the space."""
    if isinstance(obs, Tensor):
        return _box(tuple(_column(obs).shape[1:]), known, np.uint8 if obs.dtype == torch.uint8 else np.float32), [()]
    if not hasattr(obs, "keys"):
        raise UserError(
            f"data.backend: the observations of this simulator are {type(obs).__name__}, not tensors; "
            "set it to vector, or to sync for single environments"
        )
    parts = getattr(known, "spaces", None) or {}
    inner = {name: _described(obs[name], parts.get(name)) for name in obs.keys()}  # noqa: SIM118 - not of a TensorDict
    if len(inner) == 1:
        ((name, (space, paths)),) = inner.items()
        return space, [(name, *path) for path in paths]
    together = spaces.Dict({name: space for name, (space, _) in inner.items()})
    return together, [(name, *path) for name in together.spaces for path in inner[name][1]]


def _box(shape: tuple[int, ...], known: object, dtype: type[np.uint8] | type[np.float32]) -> spaces.Box:
    """A `Box` with the bounds of another space, if they have this shape."""
    if dtype is np.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    low, high = (np.asarray(getattr(known, *bound), np.float32) for bound in (("low", -np.inf), ("high", np.inf)))
    if any(bound.shape not in ((), shape) for bound in (low, high)):
        return spaces.Box(-np.inf, np.inf, shape, np.float32)
    return spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape, np.float32)


def _at(obs: Observations, path: Path) -> Tensor:
    for name in path:
        obs = obs[name]  # type: ignore[index]
    return obs  # type: ignore[return-value]


def _column(x: Tensor) -> Tensor:
    """`[N, 1]` instead of `[N]`."""
    return x if x.dim() > 1 else x.unsqueeze(1)
