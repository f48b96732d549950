"""The one exception that means "the user can fix this": the command line prints it as a single line."""

import math
from pathlib import Path


class UserError(ValueError):
    """Bad input. The message is one line that names the field and the cure.

    Attributes:
        is_told: another process has the same to say, and says it.
    """

    is_told = False


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
    """What to raise where the folder of a run, or a file in it, cannot be written."""
    reason = error.strerror or str(error)
    return UserError(f"trainer.default_root_dir: cannot write {str(path)!r}: {reason}; give a folder that takes it")
