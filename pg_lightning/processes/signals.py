"""Signals that end a run: Ctrl-C (SIGINT), SIGTERM, and SIGUSR1, which asks to be put back into the queue.

A handler saves nothing and waits for nobody. It notes the signal, and raises only where nothing is lost by it: outside
of training, and inside `unless_stopped`, where rollouts and evaluations are played. A rollout and the update after it
run to their end, if that is soon: from there a run can go on as if it had never stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from pg_lightning.collectives import all_reduce_max

# The exit status after each: what a shell reports of a process that the signal ended, and for SIGUSR1 "temporary
# failure, try again" (EX_TEMPFAIL of sysexits.h).
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
SIGNALS = tuple(STATUS)
PATIENCE = 1.5  # seconds that a rollout and its update have to come to their end
END = 10.0  # seconds that tidying up has, of which the environments may take any time

LATE = 1000  # what a rank adds to the signal, where it has no time to learn from its rollout first

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
        super().__init__(STATUS[self.signum])

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


class _Cut(BaseException):
    """What is being played is given up."""


class _Listener:
    """What has come, and what may be done about it. One for each process: signals are the process's."""

    def __init__(self) -> None:
        self.pid = 0
        self.before: dict[int, Any] = {}
        self.received = 0
        self.since = 0.0
        self.held = False
        self.patience: float | None = None
        self.playing = False
        self.plays_on = False
        self.hurried = False
        self.ending = False
        self.launcher: Any = None
        self.timer: threading.Timer | None = None


_listener = _Listener()


def listen() -> bool:
    """Handles the signals from now on; returns False if that is so already, or cannot be in this thread.

    A signal that the process was started to ignore, as a shell does with Ctrl-C for what runs in the background, stays
    ignored.
    """
    global _listener
    if _listener.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        return False
    _listener = _Listener()
    _listener.pid = os.getpid()
    for signum in SIGNALS:
        _listener.before[signum] = signal.getsignal(signum)
        if _listener.before[signum] != signal.SIG_IGN:
            signal.signal(signum, _handle)
    return True


def forget() -> None:
    """Gives the signals back to whom they belonged before `listen`."""
    global _listener
    listener, _listener = _listener, _Listener()
    _set_timer(listener, None)
    for signum, handler in listener.before.items():
        signal.signal(signum, handler or signal.SIG_DFL)


def launches(launcher: Any) -> None:
    """Names who starts further processes of the run: what it starts hears the signals too, and ends with this one."""
    _listener.launcher = launcher


def hold(patience: float | None = PATIENCE) -> None:
    """From now on signals are noted, and heeded by `raise_if_stopped`.

    Args:
        patience: seconds until a signal that has not been heeded raises wherever that may be; None for never.
    """
    _listener.held, _listener.patience = True, patience


def are_held() -> bool:
    """Whether signals wait for a rollout boundary."""
    return _listener.held


def release() -> None:
    """From now on signals raise at once."""
    _listener.held = False
    _set_timer(_listener, None)


def unless_stopped(function: Callable[..., T], *args: Any, patience: float = 0.0) -> T | None:
    """What the function returns, or None if a signal comes before that; outside of `hold` a signal raises as ever.

    For what may be given up anywhere: it must change nothing that is saved.

    Args:
        function: what is played.
        *args: its arguments.
        patience: 0 to give it up at once; else how old the signal may be when it begins, and up to `PATIENCE` seconds
            later it is given up.
    """
    listener = _listener
    if not listener.held:
        return function(*args)
    try:
        try:
            listener.playing, listener.plays_on = True, patience > 0
            return None if listener.received and _age(listener) >= patience else function(*args)
        except Exception:
            # If a signal went to the whole group, a process that plays for this one may have died of it first.
            time.sleep(0.2)
            if listener.received:
                return None
            raise
        finally:
            listener.playing = False
    except _Cut:
        return None


def raise_if_stopped(strategy: Any) -> None:
    """To be called by every rank of a `Strategy` at a rollout boundary.

    Raises:
        Stopped: on all of them, if a signal came to any.
    """
    if received := all_reduce_max(_listener.received, strategy):
        _listener.received, _listener.ending = received, True
        raise Stopped(received, consistent=True)


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
    late = is_given_up or bool(listener.received and _age(listener) + seconds > PATIENCE)
    told = all_reduce_max(listener.received + LATE * late, strategy)
    if told >= LATE:
        listener.received, listener.ending = told - LATE, True
        raise Stopped(listener.received, consistent=True)
    return told > 0


def may_wait() -> bool:
    """Whether there is time to wait for what a checkpoint can do without: no signal has come, or only just now."""
    listener = _listener
    if listener.received and not listener.since:  # another rank has told of it
        listener.since = time.monotonic()
    return not listener.received or _age(listener) < PATIENCE / 2


def _age(listener: _Listener) -> float:
    return time.monotonic() - listener.since


def bound_the_end() -> None:
    """What is not tidied up within `END` seconds is left: an environment may hang."""
    listener = _listener
    if listener.received:
        _set_timer(listener, threading.Timer(END, leave, [STATUS[signal.Signals(listener.received)]]))


def join() -> None:
    """Waits for the processes of the run to end as this one does; those that do not are killed."""
    deadline = time.monotonic() + END
    for process in getattr(_listener.launcher, "procs", ()):
        while _is_running(process) and time.monotonic() < deadline:
            time.sleep(0.02)
    if _listener.launcher is not None:
        _listener.launcher.kill(signal.SIGKILL)


def _is_running(process: Any) -> bool:
    return bool(process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None)


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
    again, hurried = bool(listener.received), listener.hurried
    listener.hurried = False
    if again and not hurried and signum == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
        leave(STATUS[signal.SIGINT])
    if listener.ending:
        return
    if not again:
        listener.received, listener.since = signum, time.monotonic()
        if listener.launcher is not None:
            listener.launcher.kill(signum)
        if listener.held:
            patience = PATIENCE if listener.patience is None else listener.patience
            _set_timer(listener, threading.Timer(patience, _hurry, [listener]))
    if listener.playing and (hurried or not listener.plays_on):
        listener.playing = False
        raise _Cut
    if not listener.held or (hurried and listener.patience is not None):
        listener.ending = True
        raise Stopped(listener.received)


def _hurry(listener: _Listener) -> None:
    listener.hurried = True
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, listener.received)


def _set_timer(listener: _Listener, timer: threading.Timer | None) -> None:
    if listener.timer is not None:
        listener.timer.cancel()
    listener.timer = timer
    if timer is not None:
        timer.daemon = True
        timer.start()
