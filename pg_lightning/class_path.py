"""Classes named in a config: by a short name, by `package.module.Class`, or with `init_args`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

from pg_lightning.errors import UserError, one_line

ClassPath = str | dict[str, Any]

OWN = (__name__.partition(".")[0], "datetime")  # this package, and the durations in its configs

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


def is_installed(path: str) -> bool:
    """Whether the module of a class path is this package, or one that is installed for this interpreter.

    Installed is what lies in one of the interpreter's `site-packages`, or is a top-level module in the folder, or its
    `src`, of a distribution that is installed there in editable mode. The working folder, `PYTHONPATH` and the standard
    library do not count. Nothing is imported.
    """
    top = path.partition(":")[0].partition(".")[0]
    if top in OWN:
        return True
    places = _places(top)
    if not places or top == "__main__":
        return False
    roots = _site_folders()
    if all(any(place.is_relative_to(root) for root in roots) for place in places):
        return True
    folders = [folder / name for folder in _editable_folders(roots) for name in ("", "src")]
    return all(_folder_of(place) in folders for place in places)


def is_importable(path: str) -> bool:
    """Whether there is a module for the first part of a class path. Nothing is imported."""
    return bool(_places(path.partition(":")[0].partition(".")[0]))


def _places(module: str) -> list[Path]:
    """The file of a top-level module, or the folders of a namespace package; empty if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return [Path(module)] if module in sys.modules else []
    if spec is None:
        return []
    return [
        Path(place).resolve() for place in ([spec.origin] if spec.origin else spec.submodule_search_locations or [])
    ]


def _folder_of(place: Path) -> Path:
    """The folder that contains a top-level module or package."""
    return place.parent.parent if place.name == "__init__.py" else place.parent


def _site_folders() -> list[Path]:
    folders = [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))]
    return [Path(folder).resolve() for folder in folders]


def _editable_folders(roots: list[Path]) -> list[Path]:
    """The folders of distributions in editable mode, as their `direct_url.json` names them (PEP 610)."""
    folders = []
    for distribution in importlib.metadata.distributions(path=[str(root) for root in roots]):
        with suppress(OSError, ValueError, AttributeError):
            url = json.loads(distribution.read_text("direct_url.json") or "{}")
            if url.get("dir_info", {}).get("editable"):
                folders.append(Path(unquote(urlsplit(url["url"]).path)).resolve())
    return folders
