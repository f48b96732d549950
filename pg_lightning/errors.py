"""The one exception that means "the user can fix this": the command line prints it as a single line."""

import math


class UserError(ValueError):
    """Bad input. The message is one line that names the field and the cure."""


def require(field: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuses a number outside [low, high].

    Raises:
        UserError: naming the field, the bounds and the number.
    """
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{field}: must be {bounds}, got {value:g}")
