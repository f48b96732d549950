"""Processes: forked ones end with the process that forked them, and whoever waits for one learns why it died; ranks
tell each other what one of them writes down for all."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pg_lightning.signals import SIGNALS

T = TypeVar("T")
GRACE = 3.0  # seconds that a process has to end by itself, up to SIGKILL
PR_SET_PDEATHSIG = 1


class WorkerError(RuntimeError):
    """A forked process died, or raised what is not the user's mistake. The message names it and the cause."""


def die_with(main: int) -> None:
    """Has the kernel kill this process when the main process dies, were it by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != main:
        os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """The signals that end a run take effect afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cause_of_death(exitcode: int | None) -> str:
    """What became of a process that ended before its time, as the rest of a sentence that it begins."""
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"exited with code {exitcode} before training ended"


def of_all_ranks(value: T) -> list[T]:
    """The values of all ranks of a distributed training, in their order; every rank must ask. Alone, just this one.

    Args:
        value: of tensors and plain types, as a checkpoint is.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    packed: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(packed, buffer.getvalue())
    return [torch.load(io.BytesIO(each), weights_only=True) for each in packed]
