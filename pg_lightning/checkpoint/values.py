"""Tests of single values in a checkpoint. Each raises `Damage`, which names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pg_lightning.errors import UserError

Unchecked: TypeAlias = Any  # what a checkpoint holds, until it is known to be of the right type

MOST = 400  # characters of an error
LARGEST = 2**53  # of a counter: beyond it, floating-point numbers skip integers


class Damage(ValueError):
    """A field of a checkpoint is missing, or not what it must be.

    Args:
        field: such as `optimizer_states[0].state[0].exp_avg`.
        problem: the rest of the sentence.
    """

    def __init__(self, field: str, problem: str) -> None:
        text = " ".join(f"{field} {problem}".split())
        # Names in the file may be anything, also codes that a terminal obeys.
        super().__init__("".join(x if x.isprintable() else "?" for x in text[:MOST]))

    def in_file(self, file: object, name: str = "ckpt_path") -> UserError:
        """The error for the user, in one line that names the file.

        Args:
            file: the checkpoint, if it is known.
            name: of the argument.
        """
        shown = repr(str(file)) if file else "the checkpoint"
        return UserError(f"{name}: {shown} cannot be used: {self}; give another checkpoint")


def is_number(value: object) -> bool:
    """Whether a value is an integer or a float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_mapping(field: str, value: object) -> None:
    """Refuses anything but a dict."""
    if not isinstance(value, Mapping):
        raise Damage(field, f"is {kind_of(value)}, not a dict")


def require_count(field: str, value: object) -> None:
    """Refuses anything but an integer from 0 to 2**53."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise Damage(field, f"is {kind_of(value)}, not a count")


def require_text(field: str, value: object) -> None:
    """Refuses anything but a string."""
    if not isinstance(value, str):
        raise Damage(field, f"is {kind_of(value)}, not a text")


def require_list(field: str, value: Unchecked) -> list[Unchecked]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise Damage(field, f"is {kind_of(value)}, not a list")
    return value


def require_vector(field: str, value: object) -> None:
    """Refuses anything but a floating-point tensor `[N]` of finite numbers."""
    if not isinstance(value, Tensor) or value.dim() != 1 or not value.is_floating_point():
        raise Damage(field, f"is {kind_of(value)}, not a vector")
    if not value.is_meta:
        require_finite(field, value)


def require_finite(field: str, value: Tensor, not_negative: bool = False) -> None:
    """Refuses a tensor with NaN or ∞, or on request with a negative number."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise Damage(field, "has numbers that are NaN or infinite")
    if not_negative and value.numel() and bool((value < 0).any()):
        raise Damage(field, "has negative numbers")


def require_like(field: str, value: Unchecked, own: Unchecked, not_negative: bool = False) -> None:
    """Refuses a value that is not of the kind of our own: the same type, shape, dtype, and finite numbers.

    A floating-point tensor may have more digits than ours, because it is converted.
    """
    if isinstance(own, Tensor):
        if not isinstance(value, Tensor) or value.shape != own.shape:
            raise Damage(field, f"is {kind_of(value)}, not {kind_of(own)}")
        is_finer = value.is_floating_point() and own.is_floating_point() and value.itemsize >= own.itemsize
        if value.layout != torch.strided or (value.dtype != own.dtype and not is_finer):
            raise Damage(field, f"is {kind_of(value)}, not {kind_of(own)}")
        require_finite(field, value, not_negative)
    elif is_number(own):
        if not is_number(value) or not math.isfinite(value) or (not_negative and value < 0):
            raise Damage(field, f"is {kind_of(value)}, not a {'positive ' * not_negative}finite number")
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(own):
            raise Damage(field, f"is {kind_of(value)}, not a list of {len(own)}")
        for i, (part, known) in enumerate(zip(value, own, strict=True)):
            require_like(f"{field}[{i}]", part, known, not_negative)
    elif isinstance(own, Mapping):
        require_mapping(field, value)
        for key in own:
            if key not in value:
                raise Damage(f"{field}.{key}", "is missing")
            require_like(f"{field}.{key}", value[key], own[key], not_negative)
    elif type(value) is not type(own):
        raise Damage(field, f"is {kind_of(value)}, not {kind_of(own)}")


def kind_of(value: object) -> str:
    """A value in a few words, for errors: a number as it is, a tensor by dtype and shape, else its type."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {[*value.shape]}"
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) <= LARGEST):
        return str(value)
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"a {type(value).__name__}"
