"""Signals that end a run: Ctrl-C (SIGINT), SIGTERM, and SIGUSR1, with which SLURM asks a job to requeue itself.

A handler saves nothing and waits for nobody. It notes the signal, and raises only where nothing is lost by it: outside
of training, and inside `unless_stopped`, where rollouts and evaluations are played. A rollout and the update after it
run to their end, if that is soon: from there a run can resume as if it had never stopped.
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

# The exit status after each: what a shell reports of a process that the signal ended, and for SIGUSR1 "temporary
# failure, try again" (EX_TEMPFAIL of sysexits.h).
EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
SIGNALS = tuple(EXIT_STATUS)
BOUNDARY_PATIENCE_S = 1.5  # that a rollout and its update have to reach the rollout boundary
TIDY_UP_LIMIT_S = 10.0  # that tidying up may take: an environment may hang

LATE_OFFSET = 1000  # added to a signal's number by a rank that has no time left to learn from its rollout

T = TypeVar("T")


class Stopped(SystemExit):
    """A signal ends the run, with the exit status that belongs to it.

    Attributes:
        signum: the signal.
        consistent: raised between two rollouts, on every rank: weights, optimizer and counters belong together.
    """

    def __init__(self, signum: int, consistent: bool = False) -> None:
        self.signum = signal.Signals(signum)
        self.consistent = consistent
        super().__init__(EXIT_STATUS[self.signum])

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


class _Cut(BaseException):
    """What is being played is given up."""


class Phase(Enum):
    """Where the run is, and so what a signal does."""

    OPEN = auto()  # outside of training: it raises `Stopped`
    HELD = auto()  # between two calls of `unless_stopped`: it waits for the rollout boundary, while there is patience
    PLAYS_ON = auto()  # what is played comes to its end, while there is patience; then it is given up
    GIVES_UP = auto()  # what is played is given up at once
    ENDING = auto()  # `Stopped` has been raised: it does nothing


@dataclass
class _Listener:
    """What has come, and what may be done about it. One for each process: signals are the process's."""

    pid: int = 0  # of the process that listens; one that is forked inherits a listener that is not its own
    before: dict[int, Any] = field(default_factory=dict)  # the handlers that there were
    received: int = 0  # the first signal
    since: float = 0.0  # when it came, by `time.monotonic`
    phase: Phase = Phase.OPEN
    patience: float | None = None  # seconds until a signal that is held raises; None for never
    is_overdue: bool = False  # the next signal is the timer's, which says that patience is over
    launcher: Any = None  # what has started further processes of the run
    timer: threading.Timer | None = None  # of patience, then of the limit on tidying up

    @property
    def age(self) -> float:
        """Seconds since the signal came."""
        return time.monotonic() - self.since

    def end(self, signum: int, consistent: bool = False) -> Stopped:
        """Later signals do nothing; returns what is to be raised."""
        self.received, self.phase = signum, Phase.ENDING
        return Stopped(signum, consistent)

    def set_timer(self, timer: threading.Timer | None) -> None:
        """Starts a timer in place of the one before."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer
        if timer is not None:
            timer.daemon = True
            timer.start()


_listener = _Listener()


def listen() -> bool:
    """Handles the signals from now on; returns False if that is so already, or cannot be in this thread.

    A signal that the process was started to ignore, as a shell does with Ctrl-C for what runs in the background, stays
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
    """Gives the signals back to whom they belonged before `listen`."""
    global _listener
    listener, _listener = _listener, _Listener()
    listener.set_timer(None)
    for signum, handler in listener.before.items():
        signal.signal(signum, handler or signal.SIG_DFL)


def launches(launcher: Any) -> None:
    """Names who starts further processes of the run: what it starts hears the signals too, and ends with this one."""
    _listener.launcher = launcher


def hold(patience: float | None = BOUNDARY_PATIENCE_S) -> None:
    """From now on signals are noted, and heeded by `raise_if_stopped`.

    Args:
        patience: seconds until a signal that has not been heeded raises wherever that may be; None for never.
    """
    _listener.phase, _listener.patience = Phase.HELD, patience


def are_held() -> bool:
    """Whether signals wait for a rollout boundary."""
    return _listener.phase in (Phase.HELD, Phase.PLAYS_ON, Phase.GIVES_UP)


def release() -> None:
    """From now on signals raise at once."""
    if _listener.phase is not Phase.ENDING:
        _listener.phase = Phase.OPEN
    _listener.set_timer(None)


def unless_stopped(function: Callable[..., T], *args: Any, patience: float = 0.0) -> T | None:
    """What the function returns, or None if a signal comes before that; outside of `hold` a signal raises as ever.

    For what may be given up anywhere: it must change nothing that is saved.

    Args:
        function: what is played.
        *args: its arguments.
        patience: 0 to give it up at once; else how old the signal may be when it begins, and up to
            `BOUNDARY_PATIENCE_S` seconds later it is given up.
    """
    listener, before = _listener, _listener.phase
    if before in (Phase.OPEN, Phase.ENDING):
        return function(*args)
    try:
        try:
            listener.phase = Phase.PLAYS_ON if patience > 0 else Phase.GIVES_UP
            return None if listener.received and listener.age >= patience else function(*args)
        except Exception:
            # If a signal went to the whole group, a process that plays for this one may have died of it first.
            time.sleep(0.2)
            if listener.received:
                return None
            raise
        finally:
            listener.phase = before
    except _Cut:
        return None


def raise_if_stopped(strategy: Any) -> None:
    """To be called by every rank of a `Strategy` at a rollout boundary.

    Raises:
        Stopped: on all of them, if a signal came to any.
    """
    if received := all_reduce_max(_listener.received, strategy):
        raise _listener.end(received, consistent=True)


def agree(strategy: Any, is_given_up: bool, seconds: float) -> bool:
    """To be called by every rank of a `Strategy` that has played a rollout, or given it up.

    Args:
        strategy: of the training.
        is_given_up: there is nothing to learn from.
        seconds: that learning takes.

    Returns:
        Whether a signal has come to any rank, and the run ends at the next boundary.

    Raises:
        Stopped: on all of them, if any has not the time to learn first.
    """
    listener = _listener
    late = is_given_up or bool(listener.received and listener.age + seconds > BOUNDARY_PATIENCE_S)
    highest = all_reduce_max(listener.received + LATE_OFFSET * late, strategy)
    if highest >= LATE_OFFSET:
        raise listener.end(highest - LATE_OFFSET, consistent=True)
    return highest > 0


def may_wait() -> bool:
    """Whether there is time to wait for what a checkpoint can do without: no signal has come, or only just now."""
    listener = _listener
    if listener.received and not listener.since:  # it came to another rank
        listener.since = time.monotonic()
    return not listener.received or listener.age < BOUNDARY_PATIENCE_S / 2


def bound_the_end() -> None:
    """What is not tidied up within `TIDY_UP_LIMIT_S` is left: an environment may hang."""
    if _listener.received:
        status = EXIT_STATUS[signal.Signals(_listener.received)]
        _listener.set_timer(threading.Timer(TIDY_UP_LIMIT_S, leave, [status]))


def join() -> None:
    """Waits for the processes of the run to end as this one does; those that do not are killed."""
    deadline = time.monotonic() + TIDY_UP_LIMIT_S
    for process in getattr(_listener.launcher, "procs", ()):
        while _is_running(process) and time.monotonic() < deadline:
            time.sleep(0.02)
    if _listener.launcher is not None:
        _listener.launcher.kill(signal.SIGKILL)


def _is_running(process: BaseProcess | subprocess.Popen[bytes]) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def leave(status: int) -> None:
    """Ends this process and those that it started, at once."""
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
        # A process of an environment, which has inherited this. What goes to the whole group is for the main process.
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
    if phase is Phase.GIVES_UP or (phase is Phase.PLAYS_ON and is_overdue):
        listener.phase = Phase.HELD
        raise _Cut
    if phase is Phase.OPEN or (is_overdue and listener.patience is not None):
        raise listener.end(listener.received)


def _note(listener: _Listener, signum: int) -> None:
    """What the first signal does wherever it comes: others of the run hear it too, and patience begins to run out."""
    listener.received, listener.since = signum, time.monotonic()
    if listener.launcher is not None:
        listener.launcher.kill(signum)
    if listener.phase is not Phase.OPEN:
        patience = BOUNDARY_PATIENCE_S if listener.patience is None else listener.patience
        listener.set_timer(threading.Timer(patience, _lose_patience, [listener]))


def _lose_patience(listener: _Listener) -> None:
    """Sends the signal once more, from the timer's thread: only a handler can raise in the main thread."""
    listener.is_overdue = True
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, listener.received)
