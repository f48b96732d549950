"""Calls of the user's own functions: their mistakes in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pg_lightning.class_path import with_functions
from pg_lightning.envs.failures import deed_of, in_code
from pg_lightning.errors import UserError, show_traceback
from pg_lightning.processes.signals import Stopped


@contextmanager
def reported(who: str) -> Iterator[None]:
    """Raises what the user's code raises as a `UserError` in one line, with the place in the code.

    Args:
        who: the key in the config and the function, the beginning of the line.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except (Exception, SystemExit) as error:
        show_traceback(error)
        raise UserError(f"{who} {deed_of(error)}{in_code(error)}") from error


def parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters that can be given by name, and the one of kind `VAR_KEYWORD`; None if they cannot be known."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    return {name: parameter for name, parameter in known.items() if parameter.kind in _NAMED}


_NAMED = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


def takes_any(known: Mapping[str, inspect.Parameter]) -> bool:
    """Whether one of the parameters is `**kwargs`."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())


def arguments_for(field: str, path: str, make: Callable[..., object], given: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a config for a function or a class, functions among them imported.

    Args:
        field: the key in the config, for the error message.
        path: of the function.
        make: the function or class.
        given: its `init_args`.

    Raises:
        UserError: if it has no such parameter.
    """
    known = parameters(make)
    if known is not None and not takes_any(known) and (unknown := [name for name in given if name not in known]):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"{field}: init_args: {path} has no parameter {unknown[0]!r}; {has}")
    return with_functions(field, make, given)
