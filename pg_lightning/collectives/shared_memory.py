"""Shared-memory all-gather and all-reduce for ranks on the CPUs of one host.

A message through gloo takes 0.3 to 2 ms, because threads on both ends wake each other; a gradient step on a small
network takes less time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time

import numpy as np
import torch
from torch import Tensor

from pg_lightning.collectives.contract import Statistics
from pg_lightning.collectives.process_group import ProcessGroup

FOLDER = "/dev/shm"
CACHE_LINE = 64  # bytes; two counters in one line would slow down both ranks
PAGE = 4096  # bytes
SPIN_S = 0.005  # a rank polls for this time without pause, and then sleeps between polls
SLEEP_S = 0.0005
LIVENESS_S = 0.5  # between two checks that the other ranks are alive


class RankLost(RuntimeError):
    """Another rank has died or does not answer."""


class SharedMemory(Statistics):
    """Sends short messages through a `Board`; longer ones, and tensors that are not on a CPU, through gloo.

    Args:
        board: of this rank.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.process_group = ProcessGroup()

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self.board.num_ranks

    def all_gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`, in the order of the ranks."""
        return self.board.gather(x) if self._fits(x) else self.process_group.all_gather(x)

    def all_reduce_(self, x: Tensor) -> None:
        """Sums over all ranks, in place."""
        if self._fits(x):
            self.board.add_up(x)
        else:
            self.process_group.all_reduce_(x)

    def close(self) -> None:
        """Releases this rank's lock: ranks that wait for it raise `RankLost`."""
        self.board.close()

    def _fits(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and x.nbytes <= self.board.capacity


def create(num_ranks: int, capacity: int) -> str | None:
    """The path of a file for K slots of `capacity` bytes; None if there is no space or no shared memory."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="pg_lightning-", dir=FOLDER)
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, _size(num_ranks, capacity))
    except OSError:
        os.unlink(path)
        return None
    finally:
        os.close(descriptor)
    return path


def _size(num_ranks: int, capacity: int) -> int:
    return _pages(num_ranks * CACHE_LINE) + 2 * num_ranks * _pages(capacity)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class Board:
    """Shared-memory all-gather and all-reduce for ranks on one host.

    The file has K slots, each for two messages: a rank may write its next message while another still reads the last.
    Every rank writes its message and then increments its counter; it reads when all counters have the same value. A
    process that reads the counter must also see the message; x86 processors guarantee this, others do not.

    A rank holds a lock on a byte of the file, which the system releases if it dies.

    Args:
        path: the result of `create`.
        rank: of this process.
        num_ranks: K.
        capacity: bytes of the longest message, as passed to `create`.
        timeout: seconds that one rank waits for another.

    Raises:
        OSError: if the file does not exist, as on another host.
    """

    def __init__(self, path: str, rank: int, num_ranks: int, capacity: int, timeout: float) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self.capacity, self.timeout = _pages(capacity), timeout
        self._count = 0
        self._descriptor = os.open(path, os.O_RDWR)
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        memory = mmap.mmap(self._descriptor, _size(num_ranks, capacity))
        self._counts = np.frombuffer(memory, np.int64, num_ranks * CACHE_LINE // 8)[:: CACHE_LINE // 8]
        places = torch.frombuffer(memory, dtype=torch.uint8, offset=_pages(num_ranks * CACHE_LINE))
        self._places = places.view(2, num_ranks, self.capacity)
        # Kept, because creating the views takes as long as sending.
        self._views: dict[tuple[torch.dtype, torch.Size], tuple[Tensor, ...]] = {}

    def gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`: the tensors `[*shape]` of all ranks, of one shape and dtype, in the order of the ranks."""
        return self._read(x).clone()

    def add_up(self, x: Tensor) -> None:
        """Replaces a contiguous tensor by the sum over all ranks; all ranks add in the same order."""
        torch.sum(self._read(x), 0, out=x)

    def _read(self, x: Tensor) -> Tensor:
        """The messages of all ranks, without a copy: valid until the message after the next."""
        kind = (x.dtype, x.shape)
        if kind not in self._views:
            self._views[kind] = (
                self._places[:, :, : x.nbytes].view(x.dtype).view(2, len(self._counts), *x.shape).unbind()
            )
        places = self._views[kind][self._count % 2]
        places[self.rank].copy_(x)
        self._count += 1
        self._counts[self.rank] = self._count
        self._wait()
        return places

    def _wait(self) -> None:
        began = looked = time.monotonic()
        while self._counts.min() < self._count:
            now = time.monotonic()
            if now - began < SPIN_S:
                os.sched_yield()
                continue
            time.sleep(SLEEP_S)
            if now - looked > LIVENESS_S:
                looked = now
                self._look(now - began)

    def _look(self, waited: float) -> None:
        missing = np.flatnonzero(self._counts < self._count).tolist()
        for rank in missing:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            except OSError:
                continue
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, rank)
            if self._counts[rank] < self._count:
                raise RankLost(f"rank {rank} is gone")
        if missing and waited > self.timeout:
            raise RankLost(f"rank {missing[0]} has not answered for {waited:.0f} s")

    def close(self) -> None:
        """Leaves the group: ranks that wait for this rank raise `RankLost`."""
        os.close(self._descriptor)
