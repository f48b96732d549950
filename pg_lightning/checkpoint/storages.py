"""Tensors as a checkpoint file describes them: where their numbers are in their storage, and whether that can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pg_lightning.checkpoint.values import Damage, Unchecked

KINDS = {
    **{"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8},
    **{"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1},
}


@dataclass(frozen=True)
class Described:
    """A storage, or a tensor in it.

    Attributes:
        key: of the storage.
        itemsize: bytes of an element.
        numel: elements of the storage.
        numbers: elements of the tensor.
        span: elements of the storage up to the last of the tensor.
        overlaps: whether two of its elements may be one in the storage, as after `Tensor.expand`.
    """

    key: str
    itemsize: int
    numel: int
    numbers: int = 0
    span: int = 0
    overlaps: bool = False


def element_size(kind: str) -> int:
    """Bytes of an element of a storage, by the name of its class.

    Raises:
        Damage: if there is no such class.
    """
    size = KINDS.get(kind.removesuffix("Storage"))
    if size is None:
        raise Damage("data.pkl", f"names a storage of {kind[:40]}")
    return size


def rebuild_functions() -> dict[str, Callable[..., Unchecked]]:
    """Functions that describe a tensor, by the name of the function of torch that creates it."""
    return {
        "torch._utils._rebuild_tensor_v2": _described,
        "torch._utils._rebuild_tensor_v3": _described_as,
        "torch._utils._rebuild_parameter": _parameter,
    }


def check_storages(tensors: Sequence[Described], storages: Mapping[str, int]) -> None:
    """Refuses tensors that together are much larger than the storages that they are in.

    Raises:
        Damage: naming the sizes.
    """
    unique = {id(x): x for x in tensors}.values()
    total, there = sum(x.numbers * x.itemsize for x in unique), sum(storages.values())
    if total > 4 * there + 2**20:
        raise Damage("data.pkl", f"describes tensors of {total} bytes, in storages of {there}")


def _described(storage: object, offset: object, size: object, stride: object, *_: object) -> Described:
    if not isinstance(storage, Described) or not (_is_count(offset) and _are_counts(size) and _are_counts(stride)):
        raise Damage("data.pkl", "describes a tensor with a shape that is none")
    assert isinstance(size, tuple)
    assert isinstance(stride, tuple)
    assert isinstance(offset, int)
    if len(size) != len(stride):
        raise Damage("data.pkl", f"describes a tensor of {len(size)} dimensions with {len(stride)} strides")
    numbers, span, overlaps = 1, 1, False
    for step, length in sorted(zip(stride, size, strict=True)):
        overlaps |= length > 1 and step < span
        numbers *= length
        span += step * max(0, length - 1)
    if numbers and offset + span > storage.numel:
        raise Damage(f"data/{storage.key}", f"has {storage.numel} elements, a tensor needs {offset + span}")
    return replace(storage, numbers=numbers, span=offset + span, overlaps=overlaps)


def _described_as(
    storage: object, offset: object, size: object, stride: object, grad: object, hooks: object, dtype: str, *_: object
) -> Described:
    kind = getattr(torch, str(dtype), None)
    if not isinstance(storage, Described) or not isinstance(kind, torch.dtype):
        raise Damage("data.pkl", "describes a tensor of an unknown dtype")
    numel = storage.numel * storage.itemsize // kind.itemsize
    return _described(replace(storage, itemsize=kind.itemsize, numel=numel), offset, size, stride)


def _parameter(tensor: object, *_: object) -> object:
    return tensor


def _is_count(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**48


def _are_counts(x: object) -> bool:
    return isinstance(x, tuple) and all(map(_is_count, x))
