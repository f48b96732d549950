"""Exceptions of an environment's own code, in one line: the environment, the step, and the place in the code."""

from __future__ import annotations

import logging
import math
import os
import signal
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from pg_lightning.errors import TRACEBACK, EnvironmentFailed, UserError, one_line, show_traceback
from pg_lightning.processes.signals import Stopped

# The index of an environment, None for vectorised code, and its number of steps so far.
Place = tuple[int | None, int]
OURS = str(Path(__file__).parents[1]) + os.sep
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
HINT = f"{TRACEBACK}=1 shows the traceback"

log = logging.getLogger(__name__)


class Closable(Protocol):
    """Anything that can be closed."""

    def close(self) -> object:
        """Closes it."""
        ...


def is_of_code(error: BaseException) -> bool:
    """Whether the code of an environment raised it on its own: not the handler of a signal, and not this package.

    An environment may call `sys.exit`, which would end the run with the status that the environment chose. A
    `KeyboardInterrupt` is Ctrl-C only while Python's own handler is installed.
    """
    if isinstance(error, (UserError, Stopped, torch.OutOfMemoryError)):
        return False
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if not isinstance(error, (Exception, SystemExit)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or not frames[-1].filename.startswith(OURS)


def place_of(error: BaseException) -> str:
    """`file:line` where it was raised: the innermost line outside of installed packages, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith((OURS, "<", *INSTALLED))]
    frame = (others or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def in_code(error: BaseException) -> str:
    """` (file:line)` where the user's own code raised an error; empty if the code of an installed package did."""
    place = place_of(error)
    return "" if place.startswith((OURS, "<", *INSTALLED)) else f" ({place})"


def deed_of(error: BaseException) -> str:
    """What the code did, as the predicate of a sentence."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else one_line(repr(error.code))})"
    what = one_line(error.msg if isinstance(error, SyntaxError) else error)
    return f"raised {type(error).__name__}{f': {what}' if what else ''}"


def who(place: Place) -> str:
    """The subject of a message."""
    return "the vector environment" if place[0] is None else f"env {place[0]}"


def when(place: Place) -> str:
    """The call in which it happened."""
    return f"step {place[1]}" if place[1] else "reset"


def raise_as_line(error: BaseException, place: Place) -> None:
    """Raises `EnvironmentFailed` if the error is of the environment's code; else the caller raises it again."""
    if is_of_code(error):
        raise EnvironmentFailed(
            f"data.env_id: {who(place)} failed in {when(place)}: it {deed_of(error)} ({place_of(error)}); {HINT}"
        ) from error


@contextmanager
def made(field: str, name: str) -> Iterator[None]:
    """A block that imports or makes an environment or a wrapper.

    Args:
        field: the setting that names it.
        name: its name.

    Raises:
        EnvironmentFailed: if its code raises anything that is not a `UserError`.
    """
    try:
        yield
    except BaseException as error:
        if is_of_code(error):
            line = f"{field}: {name!r} cannot be made: its code {deed_of(error)} ({place_of(error)}); {HINT}"
            raise EnvironmentFailed(line) from error
        raise


def close(env: Closable, name: str = "an environment", limit_s: float = math.inf) -> None:
    """Closes an environment; that its code raises or hangs is reported in one line, because its results stand.

    Args:
        env: the environment.
        name: the subject of the line.
        limit_s: the value of `data.env_timeout`: see `closes_within`.
    """
    try:
        with closes_within(limit_s):
            env.close()
    except BaseException as error:
        if not is_of_code(error):
            raise
        show_traceback(error)
        log.warning("data.env_id: %s could not be closed: it %s (%s)", name, deed_of(error), place_of(error))


class _TimeIsUp(BaseException):
    """Raised by the alarm; no `Exception`, so that the code of an environment does not catch it by chance."""


@contextmanager
def closes_within(limit_s: float) -> Iterator[None]:
    """A block that closes environments; if it takes too long, it is left, and a line says where it was.

    The alarm (SIGALRM) is heard in the main thread only, and by Python code only: C code may hang on.

    Args:
        limit_s: the value of `data.env_timeout`.
    """

    def ring(*_: object) -> None:
        raise _TimeIsUp

    if limit_s == math.inf or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    others, since = signal.setitimer(signal.ITIMER_REAL, limit_s)[0], time.monotonic()
    try:
        yield
    except _TimeIsUp as error:
        show_traceback(error)
        log.warning(
            "data.env_timeout: the environments have not closed within %g s and are left (%s)", limit_s, place_of(error)
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.01, others - (time.monotonic() - since)) if others else 0)
        signal.signal(signal.SIGALRM, before)
