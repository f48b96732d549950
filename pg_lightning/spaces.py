"""Flattened observation spaces that keep their original space."""

from __future__ import annotations

from typing import Any

from gymnasium import Space, spaces


class FlattenedBox(spaces.Box):
    """The `Box` of observations flattened by `gymnasium.spaces.flatten`, with the original space as an attribute.

    Args:
        original: `Dict`, `Tuple`, `Discrete`, `MultiDiscrete`, `MultiBinary`, or a `Box` of numbers.
    """

    def __init__(self, original: Space[Any]) -> None:
        flat = spaces.flatten_space(original)
        assert isinstance(flat, spaces.Box)
        super().__init__(flat.low, flat.high, dtype=flat.dtype)
        self.original = original

    @property
    def groups(self) -> dict[str, slice]:
        """The columns of each entry of a `Dict`, by name, in the order of the vector; empty for other spaces."""
        groups: dict[str, slice] = {}
        if isinstance(self.original, spaces.Dict):
            start = 0
            for name, part in self.original.spaces.items():
                stop = start + spaces.flatdim(part)
                groups[name] = slice(start, stop)
                start = stop
        return groups
