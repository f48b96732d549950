"""Atomic writes of files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # suffix of a file that is being written
OWNER = re.compile(rf"\.(\d+)-[0-9a-f]+{PARTIAL}$")  # the process that writes it

_writing: set[Path] = set()  # partial files of this process


def write_file(path: Path, content: bytes | str, previous: Path | None = None, durable: bool = True) -> None:
    """Writes a file so that a crash at any moment leaves the old file or the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk and read back, and then renamed;
    `os.replace` is atomic.

    Args:
        path: the file; its folder must exist.
        content: text is encoded as UTF-8, with line ends as they are.
        previous: where the old file is kept.
        durable: the file and its name are on the disk when this returns. Without it, the file survives a crash of the
            program, but may be empty after a power failure; it saves a few milliseconds.

    Raises:
        OSError: the old file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = _partial(path)
    link = None if previous is None else _partial(previous)
    _writing.update(x for x in (partial, link) if x is not None)
    try:
        with partial.open("xb") as file:  # a new file: never through a link that someone else has made
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if durable and partial.read_bytes() != data:
            raise OSError(errno.EIO, "the file differs from the data that was written")
        if previous is not None and link is not None and path.exists():
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, link)
            os.replace(link, previous)
        os.replace(partial, path)
    finally:
        _writing.difference_update((partial, link))
        _remove(partial, link)
    if durable:
        _sync(path.parent)


def write_json(path: Path, content: object) -> None:
    """Writes plain types as indented JSON, as `write_file` does.

    Raises:
        OSError: the old file is unchanged.
    """
    write_file(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Writes a table, one line per row, as `write_file` does; the default `columns` are those of the first row.

    Raises:
        OSError: the old file is unchanged.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else columns)
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def remove_partial(folder: Path) -> None:
    """Removes partial files of processes that were killed from a folder."""
    for file in folder.glob(f".*{PARTIAL}"):
        owner = OWNER.search(file.name)
        if owner is None or not _is_written(file, int(owner[1])):
            _remove(file)


def _is_written(file: Path, pid: int) -> bool:
    """Whether a process with this id, on this host, may be writing a partial file."""
    if pid == os.getpid():  # or an earlier one: in a container the ids begin anew
        return file in _writing
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _partial(path: Path) -> Path:
    """A name of its own for every write, such as `.last_ckpt.17-a3f0.partial`, without the file's suffix."""
    return path.with_name(f".{path.name.replace('.', '_')}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def _remove(*paths: Path | None) -> None:
    for path in paths:
        with suppress(OSError):
            if path is not None:
                path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Flushes the names in a folder to the disk, if the file system can do it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
