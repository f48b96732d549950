"""Chooses the collectives of this process; also the all-gather of objects and the all-reduce of a maximum."""

from __future__ import annotations

import io
import os
import platform
from contextlib import suppress
from typing import Protocol, TypeVar

import torch
from torch import distributed

from pg_lightning.collectives import shared_memory
from pg_lightning.collectives.contract import Alone, Collectives
from pg_lightning.collectives.process_group import ProcessGroup
from pg_lightning.collectives.shared_memory import Board, SharedMemory

T = TypeVar("T")
_shared: SharedMemory | None = None  # at most one, for the default process group


class Strategy(Protocol):
    """The part of Lightning's strategies that is used here."""

    @property
    def root_device(self) -> torch.device:
        """The device that this process learns on."""
        ...


def connect(world_size: int, device: torch.device, capacity: int, timeout: float) -> Collectives:
    """The collectives of a training. A collective: all ranks must call it.

    Ranks on the CPUs of one host communicate through shared memory until they `disconnect`. On several hosts, on other
    systems than Linux and on other processors than x86, gloo is used.

    Args:
        world_size: number of ranks of the training.
        device: of this rank.
        capacity: bytes of the longest message in shared memory.
        timeout: seconds that a rank waits for another.
    """
    global _shared
    disconnect()
    if world_size == 1:
        return Alone()
    if device.type != "cpu":
        return ProcessGroup()
    _shared = _share(capacity, timeout)
    return _shared or ProcessGroup()


def disconnect() -> None:
    """Leaves the group: a rank that waits for this one gets an error instead of a deadlock."""
    global _shared
    if _shared is not None:
        _shared.close()
        _shared = None


def all_gather_object(value: T) -> list[T]:
    """The values of all ranks of a distributed training, in the order of the ranks; a single process returns `[value]`.

    A collective: every rank must call it, in the same order.

    Args:
        value: tensors and plain types, as in a checkpoint.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    packed: list[bytes] = [b""] * distributed.get_world_size()
    distributed.all_gather_object(packed, buffer.getvalue())
    return [torch.load(io.BytesIO(each), weights_only=True) for each in packed]


def all_reduce_max(number: int, strategy: Strategy) -> int:
    """The maximum over the ranks of a strategy; a single process returns its own number. A collective."""
    if getattr(strategy, "world_size", 1) == 1:
        return number
    group = _shared or ProcessGroup()
    return int(group.all_gather(torch.tensor(number, device=strategy.root_device)).max())


def _share(capacity: int, timeout: float) -> SharedMemory | None:
    """Shared memory of all ranks, or None on all ranks."""
    rank, num_ranks = distributed.get_rank(), distributed.get_world_size()
    machines: list[str] = [""] * num_ranks
    distributed.all_gather_object(machines, platform.machine())  # all ranks have arrived before the file is created
    if not {"x86_64", "AMD64"}.issuperset(machines):
        return None
    paths = [shared_memory.create(num_ranks, capacity) if rank == 0 else None]
    try:
        distributed.broadcast_object_list(paths)
        if (path := paths[0]) is None:
            return None
        board = None
        with suppress(OSError):
            board = Board(path, rank, num_ranks, capacity, timeout)
        found: list[bool] = [False] * num_ranks
        distributed.all_gather_object(found, board is not None)
    finally:
        if rank == 0 and paths[0] is not None:
            os.unlink(paths[0])
    if board is not None and not all(found):
        board.close()
        return None
    return None if board is None else SharedMemory(board)
