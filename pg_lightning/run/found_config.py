"""A config that was found beside a checkpoint: it may come from someone else, and a config is code.

A class path, a function or an environment id in it is imported, and importing a module runs it. So a config that
nobody named on the command line may only name what this package ships and what is installed, and start no program;
anything else is refused before the first import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pg_lightning.class_path import is_importable, is_installed
from pg_lightning.errors import UserError, one_line
from pg_lightning.run.reading import TooLargeError, plain_yaml, read_yaml

# `package.module.Class`, or `package.module:CartPole-v1` as an environment id.
IMPORT = re.compile(r"\s*[^\W\d]\w*((\.\w+)+|(\.\w+)*:(?!//)[\w./-]+)\s*")
CALLED = (".data.prompts.", ".data.eval_prompts.", ".data.reward.")  # keys whose function gets arguments of the config
CALLABLE = ("pg_lightning.text.brackets.", "torchmetrics.text.", "reasoning_gym:")  # what such a function may be
PROGRAM = "command"  # the key of a program that is started, as an opponent in a game
UNREAD = ("env_kwargs", "train_env_kwargs")  # a file named in them is the environment's, and not read as a config


def require_harmless(config: Path) -> None:
    """Refuses a config that imports what is not installed, starts a program, or refers to another file.

    Args:
        config: the file, found beside a checkpoint.

    Raises:
        UserError: naming the key, its value, and the option that trusts the file; or if it cannot be read.
    """
    content = read_yaml(config, "config")
    allow = f"; if you trust that file: --config {config}"
    beside = f"config: {str(config)!r}, found beside the checkpoint,"
    if not isinstance(content, dict):
        raise UserError(f"{beside} contains no keys")
    for key, value in _strings("", content):
        if key.rpartition(".")[2] == PROGRAM:
            raise UserError(f"{beside} starts the program {value[:100]!r} ({key}){allow}")
        if IMPORT.fullmatch(value) and is_importable(value.strip()) and not is_installed(value.strip()):
            raise UserError(f"{beside} names {value!r} ({key}), which is not installed{allow}")
        if _is_called(key, value):
            raise UserError(f"{beside} calls {value!r} ({key}), and its arguments could make it do anything{allow}")
        if not any(f".{name}" in f".{key}" for name in UNREAD) and _is_file(value, config.parent):
            raise UserError(f"{beside} refers to the file {value!r} ({key}){allow}")
        if value.count("\n") > 20 or len(value) > 2000:
            raise UserError(f"{beside} has a text of {len(value):,} characters ({key}){allow}")


def options_to_trust(config: Path) -> str:
    """` --config FILE` if a later command on the checkpoint beside it needs that; else an empty string."""
    try:
        require_harmless(config)
    except UserError:
        return f" --config {config}" if config.is_file() else ""
    return ""


def _strings(key: str, value: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every string in a config with its key; also in a string that is YAML itself, as the parser reads it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _strings(f"{key}.{name}" if key else one_line(name), part, depth)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(key, part, depth)
    elif isinstance(value, str):
        yield key, value
        try:
            inside = plain_yaml(value)
        except TooLargeError as error:
            raise UserError(f"config: a text in it is YAML that is too large ({key}): {error}") from error
        except ValueError:
            return
        if inside != value and depth < 5:
            yield from _strings(key, inside, depth + 1)


def _is_called(key: str, value: str) -> bool:
    """Whether a string is the path of a function that is called with arguments of the config, and may do anything."""
    path = value.strip()
    named = any(name in f".{key}." for name in CALLED)
    return named and bool(IMPORT.fullmatch(value)) and is_importable(path) and not path.startswith(CALLABLE)


def _is_file(value: str, folder: Path) -> bool:
    """Whether a string names an existing file that the parser would read in its place."""
    if not 0 < len(value) < 1000 or "\0" in value:
        return False
    path = Path(value.strip())
    try:
        places = [path.expanduser(), folder / path]
        return any(place.exists() and not place.is_dir() for place in places)
    except (OSError, RuntimeError):  # too long a name, or no such home
        return False
