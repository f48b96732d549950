"""Classes named in a config: by a short name, by `package.module.Class`, or with `init_args`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pg_lightning.errors import UserError, one_line

ClassPath = str | dict[str, Any]


MOVED = {
    "pg_lightning.algorithms.base": "pg_lightning.learning",
    "pg_lightning.callbacks.CheckpointError": "pg_lightning.run.CheckpointError",
    "pg_lightning.callbacks.FaultTolerantWandbLogger": "pg_lightning.run.FaultTolerantWandbLogger",
    "pg_lightning.callbacks.MetricsFile": "pg_lightning.run.MetricsFile",
    "pg_lightning.callbacks.SafeCheckpointIO": "pg_lightning.run.SafeCheckpointIO",
    "pg_lightning.envs.atari": "pg_lightning.envs.wrappers.atari",
    "pg_lightning.envs.gridworld": "pg_lightning.envs.tasks.gridworld",
    "pg_lightning.envs.toy": "pg_lightning.envs.tasks.toy",
    "pg_lightning.networks.torsos.Memory": "pg_lightning.policies.recurrent.Memory",
    "pg_lightning.networks": "pg_lightning.policies",
}


def new_name(path: str) -> str:
    """The current name of a class path or an environment id whose module has moved; else an empty string."""
    old = next((old for old in MOVED if f"{path}.".startswith((f"{old}.", f"{old}:"))), None)
    return "" if old is None else MOVED[old] + path[len(old) :]


def require_imported(field: str, spec: object) -> None:
    """Refuses a class path whose module this program has not imported: an import runs the code of the module.

    For class paths from a checkpoint, which comes from anyone.

    Args:
        field: for the error message.
        spec: a class path or `{class_path, init_args}`; anything else, and a short name, is accepted.

    Raises:
        UserError: naming the field and the module.
    """
    path = spec.get("class_path") if isinstance(spec, Mapping) else spec
    module = path.rpartition(".")[0] if isinstance(path, str) else ""
    if module and module not in sys.modules:
        raise UserError(
            f"{field}: cannot import {path!r}: a checkpoint imports nothing by itself; if you trust it, import "
            f"{module!r} first"
        )


def resolve(field: str, spec: ClassPath, names: Mapping[str, Callable[..., Any]] = {}) -> tuple[Any, dict[str, Any]]:
    """The class that a config names, and its arguments.

    Args:
        field: the key in the config, for the error message.
        spec: a class path, or `{class_path, init_args}`.
        names: short names of classes.

    Raises:
        UserError: if there is no such class, naming the field.
    """
    given: dict[str, Any] = {"class_path": spec} if isinstance(spec, str) else spec
    path = str(given.get("class_path", ""))
    if path in names:
        return names[path], given.get("init_args", {})
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name), given.get("init_args", {})
    except (ImportError, AttributeError, ValueError) as error:
        if name := new_name(path):
            raise UserError(f"{field}: {path!r} is now {name!r}") from error
        short = f"; short names are {', '.join(names)}" if names else ""
        raise UserError(f"{field}: cannot import {path!r}: {one_line(error)}{short}") from error


def with_functions(field: str, make: Callable[..., object], arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments, with functions instead of their paths where a class or a function takes a function.

    Args:
        field: the key in the config, for the error message.
        make: the class or function; its type hints tell which arguments are functions.
        arguments: from a config.

    Raises:
        UserError: if there is no such function.
    """
    try:
        hints = get_type_hints(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
    except (AttributeError, NameError, TypeError):
        return dict(arguments)
    return {
        name: resolve(field, value)[0] if isinstance(value, str) and _is_function(hints.get(name)) else value
        for name, value in arguments.items()
    }


def _is_function(hint: object) -> bool:
    """Whether a type hint is that of a function, perhaps of an optional one, but not of a text."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return str not in kinds and any((get_origin(kind) or kind) is Callable for kind in kinds)


def require_id(env_id: object) -> None:
    """Refuses an environment, its class or its `EnvSpec` instead of an id: other processes and checkpoints need the id.

    Raises:
        UserError: with the way to an id.
    """
    if isinstance(env_id, str):
        return
    if isinstance(known := getattr(env_id, "id", None), str):
        raise UserError(f"data.env_id: give the id {known!r}, not {type(env_id).__name__}")
    name = getattr(env_id, "__name__", type(env_id).__name__)
    raise UserError(
        f"data.env_id: give the id of a registered environment, not {name}; register it in a module my_module with "
        f'gymnasium.register("My-v0", entry_point={name}), and give "my_module:My-v0"'
    )
