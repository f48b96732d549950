"""`UserError`, the exception for mistakes that the user can fix; the command line prints it as a single line."""

import math
import os
import traceback
from pathlib import Path

TRACEBACK = "PG_LIGHTNING_TRACEBACK"  # the environment variable that adds the traceback to a line


class UserError(ValueError):
    """Bad input. The message is one line that names the field and the cure.

    Attributes:
        status: the exit status of the command line.
    """

    status = 2


class EnvironmentFailed(UserError):
    """The code of an environment raised. The message is one line that names the environment, the step and the place."""

    status = 1


class ReportedElsewhere(Exception):
    """An error whose cause another process prints; this process exits without a message."""


def one_line(text: object) -> str:
    """The text of an object in one line."""
    return " ".join(str(text).split())


def cause_of(error: BaseException) -> str:
    """The message of an exception in one line; the name of its class if it has none."""
    return one_line(error) or type(error).__name__


def named_cause_of(error: BaseException) -> str:
    """The class and the message of an exception in one line."""
    return one_line(f"{type(error).__name__}: {error}")


def show_traceback(error: BaseException) -> None:
    """Prints the traceback of an error that is reported in one line, if the environment variable `TRACEBACK` is set."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)


def require(field: str, value: float, low: float, high: float | None = None) -> None:
    """Refuses a number outside [low, high]; without `high`, outside [low, ∞).

    Raises:
        UserError: naming the field, the bounds and the number.
    """
    if not (low <= value < math.inf if high is None else low <= value <= high):
        bounds = f"at least {low:g}" if high in (None, math.inf) else f"between {low:g} and {high:g}"
        finite = "finite and " if high is None and value == math.inf else ""
        raise UserError(f"{field}: must be {finite}{bounds}, got {value:g}")


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a run folder, or a file in it, that cannot be written."""
    reason = error.strerror or str(error)
    return UserError(f"trainer.default_root_dir: cannot write {str(path)!r}: {reason}; give a writable folder")
