"""Reads files that may come from someone else: bounded in size and time, with errors in one line.

A FIFO would block `open`, a device or a huge file would fill the memory, and a few lines of YAML with aliases can
expand to billions of nodes. None of them is read here.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import yaml  # type: ignore[import-untyped]

from pg_lightning.errors import UserError

MAX_CONFIG_BYTES = 256 * 1024
MAX_NODES = 10_000  # of a YAML document, aliases expanded
MAX_DEPTH = 50
MAX_PLAIN_SCALAR = 1000  # characters; converting a longer number takes time quadratic in its length

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # either constructs plain types only


@contextmanager
def opened(path: Path, field: str, limit: int) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Args:
        path: the file.
        field: the option that named it, for the error message.
        limit: bytes; a larger file is refused.

    Raises:
        UserError: if it is missing, too large, no regular file (a folder, a FIFO, a device), or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block without it
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise UserError(f"{field}: {str(path)!r} is {kind}")
            if status.st_size > limit:
                raise UserError(f"{field}: {str(path)!r} is too large; at most {_size(limit)} are read")
            yield file
    except OSError as error:
        raise UserError(f"{field}: cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise UserError(f"{field}: a path contains a NUL character") from error


def read_bytes(path: Path, field: str, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: as `opened`.
    """
    with opened(path, field, limit) as file:
        return file.read(limit)


def read_text(path: Path, field: str, limit: int = MAX_CONFIG_BYTES) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        UserError: as `read_bytes`, or if it is not UTF-8.
    """
    try:
        return read_bytes(path, field, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{field}: {str(path)!r} is not text in UTF-8") from error


def read_yaml(path: Path, field: str) -> object:
    """The content of a YAML file in plain types.

    Raises:
        UserError: as `read_text`, or if it is not YAML, or too large; names the file and the line, not their content.
    """
    text = read_text(path, field)
    try:
        return plain_yaml(text)
    except TooLargeError as error:
        raise UserError(f"{field}: {str(path)!r} is refused: {error}") from error
    except ValueError as error:
        raise UserError(f"{field}: {str(path)!r} is not YAML: {error}") from error


def read_config(path: Path, field: str) -> dict[str, object]:
    """The content of a YAML file that holds keys.

    Raises:
        UserError: as `read_yaml`, or if it holds none.
    """
    content = read_yaml(path, field)
    if not isinstance(content, dict):
        raise UserError(f"{field}: {str(path)!r} contains no keys")
    return {str(key): value for key, value in content.items()}


def read_json(path: Path, field: str) -> object:
    """The content of a JSON file.

    Raises:
        UserError: as `read_text`, or if it is not JSON.
    """
    try:
        return json.loads(read_text(path, field))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{field}: {str(path)!r} is not JSON") from error


def plain_yaml(text: str) -> object:
    """A YAML document in plain types.

    Raises:
        ValueError: if it is not YAML; names the line, not its content.
        TooLargeError: if it has more than `MAX_NODES` nodes or `MAX_DEPTH` levels.
    """
    try:
        _require_small(yaml.parse(text, Loader=Loader))
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        problem = re.sub(
            r"'[^']*'|\"[^\"]*\"", "…", str(getattr(error, "problem", None) or "a character is not allowed")
        )
        raise ValueError(f"{line}{problem}") from error
    except TooLargeError:
        raise
    except (ValueError, OverflowError) as error:
        raise ValueError("a number or a date is out of range") from error


class TooLargeError(ValueError):
    """A YAML document exceeds a bound."""


def _require_small(events: Iterable[yaml.Event]) -> None:
    """Counts nodes from the parser's events, without recursion, and with the nodes that aliases repeat.

    Raises:
        ValueError: if there are too many, they are nested too deeply, or an alias contains itself.
    """
    sizes = [0]  # of the open collections; the first is the document
    anchors: list[str | None] = [None]
    known: dict[str, int] = {}
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop() + 1, anchors.pop()
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.append(0)
            anchors.append(event.anchor)
            if len(sizes) > MAX_DEPTH:
                raise TooLargeError(f"line {event.start_mark.line + 1}: nested more than {MAX_DEPTH} levels deep")
            continue
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise TooLargeError(f"line {event.start_mark.line + 1}: an alias contains itself")
            size, anchor = known.get(event.anchor, 1), None
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = 1, event.anchor
            if event.implicit[0] and len(event.value) > MAX_PLAIN_SCALAR:
                line = event.start_mark.line + 1
                raise TooLargeError(f"line {line}: a value of more than {MAX_PLAIN_SCALAR} characters without quotes")
        else:
            continue
        sizes[-1] += size
        if anchor is not None:
            known[anchor] = size
        if sizes[-1] > MAX_NODES:
            raise TooLargeError(f"line {event.start_mark.line + 1}: more than {MAX_NODES:,} values, aliases included")


def _size(limit: int) -> str:
    return f"{limit // 1024} KiB" if limit < 1024**2 else f"{limit // 1024**2} MiB"
