"""Processes: forked ones end with the process that forked them, and whoever waits for one learns why it died."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pg_lightning.signals import SIGNALS

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
