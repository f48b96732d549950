"""Signals that end a run: Ctrl-C (SIGINT), SIGTERM, SIGHUP, and SIGUSR1, with which SLURM has a job requeue itself.

A handler saves nothing and does not wait. It records the signal, and raises only where no state is lost: outside
of training, and inside `unless_stopped`, where rollouts and evaluations are collected. A rollout and the update after
it are completed if that is fast enough: then a resumed run is equal to an uninterrupted one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from pg_lightning.collectives import all_reduce_max

# The exit status for each signal: as a shell reports a process that the signal ended; for SIGUSR1 "temporary
# failure, try again" (EX_TEMPFAIL of sysexits.h).
EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75}
SIGNALS = tuple(EXIT_STATUS)
BOUNDARY_PATIENCE_S = 1.5  # for a rollout and its update to reach the rollout boundary
CLEAN_UP_LIMIT_S = 10.0  # for the clean-up: an environment may hang

LATE_OFFSET = 1000  # added to the signal number in the all-reduce: stop before the update

T = TypeVar("T")


class Stopped(SystemExit):
    """A signal ends the run, with its exit status.

    Attributes:
        signum: the signal.
        consistent: raised between two rollouts, on every rank: weights, optimizer and counters are consistent.
    """

    def __init__(self, signum: int, consistent: bool = False) -> None:
        self.signum = signal.Signals(signum)
        self.consistent = consistent
        super().__init__(EXIT_STATUS[self.signum])

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


class _Aborted(BaseException):
    """Aborts the current rollout or evaluation."""


class Phase(Enum):
    """The phase of the run, which determines the effect of a signal."""

    OPEN = auto()  # outside of training: a signal raises `Stopped`
    HELD = auto()  # between two calls of `unless_stopped`: a signal waits for the rollout boundary, up to the patience
    COMPLETING = auto()  # the rollout is completed within the patience, and aborted after it
    ABORTING = auto()  # the rollout or evaluation is aborted at once
    ENDING = auto()  # `Stopped` has been raised: further signals do nothing


@dataclass
class _Listener:
    """The received signal, and the state of its handling. One per process, because signals belong to a process."""

    pid: int = 0  # of the process that listens; a forked process inherits the listener of its parent
    before: dict[int, Any] = field(default_factory=dict)  # the previous handlers
    received: int = 0  # the first signal
    since: float = 0.0  # when it arrived, by `time.monotonic`
    phase: Phase = Phase.OPEN
    patience: float | None = None  # seconds until a held signal raises; None for never
    is_overdue: bool = False  # the next signal comes from the timer and means that the patience is over
    launcher: Any = None  # the launcher of further processes of the run
    timer: threading.Timer | None = None  # for the patience, then for the limit of the clean-up

    @property
    def age(self) -> float:
        """Seconds since the signal arrived."""
        return time.monotonic() - self.since

    def end(self, signum: int, consistent: bool = False) -> Stopped:
        """Disables later signals; returns the exception to raise."""
        self.received, self.phase = signum, Phase.ENDING
        return Stopped(signum, consistent)

    def set_timer(self, timer: threading.Timer | None) -> None:
        """Starts a timer instead of the previous one."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer
        if timer is not None:
            timer.daemon = True
            timer.start()


_listener = _Listener()


def listen() -> bool:
    """Handles the signals from now on; returns False if they are already handled, or cannot be in this thread.

    A signal that is ignored at the start of the process, as a shell sets Ctrl-C for background jobs, stays
    ignored.
    """
    global _listener
    if _listener.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        return False
    _listener = _Listener(pid=os.getpid())
    for signum in SIGNALS:
        _listener.before[signum] = signal.getsignal(signum)
        if _listener.before[signum] != signal.SIG_IGN:
            signal.signal(signum, _handle)
    return True


def forget() -> None:
    """Restores the handlers from before `listen`."""
    global _listener
    listener, _listener = _listener, _Listener()
    listener.set_timer(None)
    for signum, handler in listener.before.items():
        signal.signal(signum, handler or signal.SIG_DFL)


def launches(launcher: Any) -> None:
    """Registers the launcher whose child processes receive forwarded signals, and end with this process."""
    _listener.launcher = launcher


def hold(patience: float | None = BOUNDARY_PATIENCE_S) -> None:
    """From now on signals are recorded, and handled by `raise_if_stopped`.

    Args:
        patience: seconds until an unhandled signal raises at any point; None for never.
    """
    _listener.phase, _listener.patience = Phase.HELD, patience


def are_held() -> bool:
    """Whether signals wait for a rollout boundary."""
    return _listener.phase in (Phase.HELD, Phase.COMPLETING, Phase.ABORTING)


def release() -> None:
    """From now on signals raise at once."""
    if _listener.phase is not Phase.ENDING:
        _listener.phase = Phase.OPEN
    _listener.set_timer(None)


def unless_stopped(function: Callable[..., T], *args: Any, patience: float = 0.0) -> T | None:
    """The result of the function, or None if a signal comes before; outside of `hold` a signal raises as usual.

    For functions that may be aborted anywhere: they must not change any saved state.

    Args:
        function: collects a rollout or an evaluation.
        *args: its arguments.
        patience: 0 to abort at once; else the maximum age of a signal at the start, and the function is aborted
            `BOUNDARY_PATIENCE_S` seconds after the signal.
    """
    listener, before = _listener, _listener.phase
    if before in (Phase.OPEN, Phase.ENDING):
        return function(*args)
    try:
        try:
            listener.phase = Phase.COMPLETING if patience > 0 else Phase.ABORTING
            return None if listener.received and listener.age >= patience else function(*args)
        except Exception:
            # If a signal went to the whole group, a process that this one waits for may have died of it first.
            time.sleep(0.2)
            if listener.received:
                return None
            raise
        finally:
            listener.phase = before
    except _Aborted:
        return None


def raise_if_stopped(strategy: Any) -> None:
    """Raises on all ranks if any rank received a signal. A collective: all ranks must call it at a rollout boundary.

    Raises:
        Stopped: on all of them, if a signal came to any.
    """
    if received := all_reduce_max(_listener.received, strategy):
        raise _listener.end(received, consistent=True)


def agree(strategy: Any, is_given_up: bool, seconds: float) -> bool:
    """Decides on all ranks whether to learn from a rollout. A collective: all ranks must call it after a rollout.

    Args:
        strategy: of the training.
        is_given_up: whether this rank's rollout was aborted.
        seconds: time that learning takes.

    Returns:
        Whether any rank received a signal, so that the run ends at the next boundary.

    Raises:
        Stopped: on all ranks, if any of them has no time to learn first.
    """
    listener = _listener
    late = is_given_up or bool(listener.received and listener.age + seconds > BOUNDARY_PATIENCE_S)
    highest = all_reduce_max(listener.received + LATE_OFFSET * late, strategy)
    if highest >= LATE_OFFSET:
        raise listener.end(highest - LATE_OFFSET, consistent=True)
    return highest > 0


def may_wait() -> bool:
    """Whether there is time to wait for optional parts of a checkpoint: no signal has arrived, or only just now."""
    listener = _listener
    if listener.received and not listener.since:  # it arrived at another rank
        listener.since = time.monotonic()
    return not listener.received or listener.age < BOUNDARY_PATIENCE_S / 2


def limit_clean_up() -> None:
    """Exits if the clean-up takes longer than `CLEAN_UP_LIMIT_S`, because an environment may hang."""
    if _listener.received:
        status = EXIT_STATUS[signal.Signals(_listener.received)]
        _listener.set_timer(threading.Timer(CLEAN_UP_LIMIT_S, leave, [status]))


def join() -> None:
    """Waits until the processes of the run have ended too; kills those that do not end."""
    deadline = time.monotonic() + CLEAN_UP_LIMIT_S
    for process in getattr(_listener.launcher, "procs", ()):
        while _is_running(process) and time.monotonic() < deadline:
            time.sleep(0.02)
    if _listener.launcher is not None:
        _listener.launcher.kill(signal.SIGKILL)


def _is_running(process: BaseProcess | subprocess.Popen[bytes]) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def leave(status: int) -> None:
    """Ends this process and its child processes at once."""
    for child in multiprocessing.active_children():
        child.kill()
    if _listener.launcher is not None:
        _listener.launcher.kill(signal.SIGKILL)
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")  # the progress bar has hidden the cursor
    os._exit(status)


def _handle(signum: int, frame: FrameType | None) -> None:
    listener = _listener
    if os.getpid() != listener.pid:
        # A process of an environment, which has inherited this handler. The main process handles the signal.
        if signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        return
    is_again, is_overdue = bool(listener.received), listener.is_overdue
    listener.is_overdue = False
    if is_again and not is_overdue and signum == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
        leave(EXIT_STATUS[signal.SIGINT])
    phase = listener.phase
    if phase is Phase.ENDING:
        return
    if not is_again:
        _note(listener, signum)
    if phase is Phase.ABORTING or (phase is Phase.COMPLETING and is_overdue):
        listener.phase = Phase.HELD
        raise _Aborted
    if phase is Phase.OPEN or (is_overdue and listener.patience is not None):
        raise listener.end(listener.received)


def _note(listener: _Listener, signum: int) -> None:
    """Handles the first signal in any phase: forwards it to other processes of the run, and starts the patience."""
    listener.received, listener.since = signum, time.monotonic()
    if listener.launcher is not None:
        listener.launcher.kill(signum)
    if listener.phase is not Phase.OPEN:
        patience = BOUNDARY_PATIENCE_S if listener.patience is None else listener.patience
        listener.set_timer(threading.Timer(patience, _end_patience, [listener]))


def _end_patience(listener: _Listener) -> None:
    """Sends the signal again, from the timer's thread: only a handler can raise in the main thread."""
    listener.is_overdue = True
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, listener.received)
