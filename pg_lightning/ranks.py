"""Ranks: processes that learn together, each from rollouts of its own, and what they tell each other.

Every function that talks to the other ranks must be called by all of them, in the same order: who does not holds up the
rest. The tensors must be where the Trainer learns: NCCL knows no others.
"""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pg_lightning import board
from pg_lightning.board import Board

T = TypeVar("T")
Gather = Callable[[Tensor], Tensor]
Moments = tuple[int | Tensor, Tensor, Tensor]
_board: Board | None = None  # that of this process, as there is one default process group


def meet(capacity: int, timeout: float) -> None:
    """Has ranks that learn on the CPUs of one host exchange messages through memory from now on, until they `part`.

    Where they are on several hosts, or this is not Linux on processors of the x86 kind, all goes on through gloo.

    Args:
        capacity: bytes of the longest message that is worth it.
        timeout: seconds that a rank waits for another.
    """
    global _board
    part()
    rank, num_ranks = distributed.get_rank(), distributed.get_world_size()
    machines: list[str] = [""] * num_ranks
    distributed.all_gather_object(machines, platform.machine())  # all are there before there is a file
    if not {"x86_64", "AMD64"}.issuperset(machines):
        return
    told = [board.create(num_ranks, capacity) if rank == 0 else None]
    try:
        distributed.broadcast_object_list(told)
        if (path := told[0]) is None:
            return
        mine = None
        with suppress(OSError):
            mine = Board(path, rank, num_ranks, capacity, timeout)
        found: list[bool] = [False] * num_ranks
        distributed.all_gather_object(found, mine is not None)
    finally:
        if rank == 0 and told[0] is not None:
            os.unlink(told[0])
    if all(found):
        _board = mine
    elif mine is not None:
        mine.close()


def part() -> None:
    """Leaves the others: who still waits for this rank learns that it is gone."""
    global _board
    if _board is not None:
        _board.close()
        _board = None


def _board_for(x: Tensor) -> Board | None:
    return _board if _board is not None and x.device.type == "cpu" and x.nbytes <= _board.capacity else None


def gather(x: Tensor) -> Tensor:
    """`[K, *shape]`: the tensors `[*shape]` of all K ranks, in the order of their ranks."""
    if (here := _board_for(x)) is not None:
        return here.gather(x)
    gathered = x.new_empty(distributed.get_world_size(), *x.shape)
    distributed.all_gather(list(gathered.unbind()), x.contiguous())
    return gathered


def gather_together(*tensors: Tensor) -> list[Tensor]:
    """Several tensors of one dtype in one message: `[K, *shape]` of each."""
    gathered = gather(torch.cat([x.flatten() for x in tensors]))
    parts = gathered.split([x.numel() for x in tensors], 1)
    return [part.reshape(-1, *x.shape) for part, x in zip(parts, tensors, strict=True)]


def of_all_ranks(value: T) -> list[T]:
    """The values of all ranks of a distributed training, in their order; every rank must ask. Alone, just this one.

    Args:
        value: of tensors and plain types, as a checkpoint is.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    packed: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(packed, buffer.getvalue())
    return [torch.load(io.BytesIO(each), weights_only=True) for each in packed]


def add_up(x: Tensor) -> None:
    """Replaces a contiguous tensor by the sum over all ranks."""
    if (here := _board_for(x)) is not None:
        here.add_up(x)
    else:
        distributed.all_reduce(x)


def highest(number: int, strategy: Any) -> int:
    """The highest number that any rank of a `Strategy` tells; alone, this one's."""
    if getattr(strategy, "world_size", 1) == 1:
        return number
    return int(gather(torch.tensor(number, device=strategy.root_device)).max())


def moments(x: Tensor) -> Moments:
    """Number, mean `[*shape]` and variance `[*shape]` (the biased one), in float64, of B > 0 rows `[B, *shape]`."""
    x = x.double()
    return len(x), x.mean(0), x.var(0, correction=0)


def sums(x: Tensor) -> Tensor:
    """`[3, *shape]` number, mean and sum of squared deviations of rows `[B, *shape]`, in float64; 0 where B is."""
    x = x.double()
    mean = x.sum(0) / max(1, len(x))
    return torch.stack([torch.full_like(mean, len(x)), mean, (x - mean).square().sum(0)])


def merged(sums: Tensor) -> Moments:
    """Number, mean and variance (the biased one) of the rows of all ranks, from the `sums` `[K, 3, *shape]` of each.

    All add them up in the same order, to the same bits (Chan et al. 1979, eq. 2.1). There must be a row on some rank.
    """
    counts, means, squares = sums.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count.max(), mean, (squares + counts * (means - mean).square()).sum(0) / count


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """`[M]` the mean of the K rows of `x` `[K, M]`, weighted by `[K]`; rows without weight may hold NaN."""
    shares = (weights / weights.sum()).unsqueeze(1)
    return torch.where(shares > 0, shares * x, 0.0).sum(0)
