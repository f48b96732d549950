"""Writes and reads checkpoints so that they survive a crash, a full disk and a signal."""

from __future__ import annotations

import errno
import shutil
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pg_lightning.errors import UserError
from pg_lightning.run.files import remove_partial, write_file

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. The message is one line that names the file and the cure."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes files atomically, keeps the previous one, and loads only tensors and plain types.

    Args:
        warn: a failed save is a line on stderr, not an exception: training continues, and the next save tries again.
            Until one succeeds nothing is removed.

    Attributes:
        failure: of the last save; None if it succeeded.
    """

    def __init__(self, warn: bool = False) -> None:
        self.warn = warn
        self.failure: CheckpointError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint; to a remote folder as Lightning does.

        Raises:
            CheckpointError: if that fails, unless `warn` is set.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(canonical(checkpoint), buffer)
        self.failure = None
        try:
            file = Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_partial(file.parent)
            write_checkpoint(file, buffer.getvalue())
        except OSError as error:
            self.failure = CheckpointError(_complaint(Path(path), buffer.tell(), error))
            if not self.warn:
                raise self.failure from error
            print(
                f"warning: {self.failure}; training continues, and the next save tries again",
                file=sys.stderr,
                flush=True,
            )

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, always with `weights_only`, whatever the argument says.

        Raises:
            UserError: if the file is truncated, naming the previous one.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint that was replaced, if the new one was written."""
        if self.failure is None:
            super().remove_checkpoint(path)


def canonical(value: object) -> object:
    """A copy of nested dicts, lists and tuples in which no two are one object, and equal strings are one.

    Pickle writes an object that occurs again as a reference. Strings of the program and of a checkpoint that was loaded
    are equal but not one object, so without this the file of a resumed run would differ from that of an uninterrupted
    one.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict or type(value) is OrderedDict:
        copy = type(value)((canonical(key), canonical(part)) for key, part in value.items())
        if isinstance(copy, OrderedDict):
            vars(copy).update({name: canonical(part) for name, part in vars(value).items()})  # of a module's state
        return copy
    if type(value) is list or type(value) is tuple:
        return type(value)(canonical(part) for part in value)
    return value


def previous_of(path: Path) -> Path:
    """The path of the previous version of a file: `last.previous.ckpt` for `last.ckpt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint, read with `weights_only`: tensors and plain types only.

    Raises:
        UserError: if it cannot be read, is truncated or damaged; names the previous one if that one can be read.
    """
    try:
        if zipfile.is_zipfile(path):  # torch writes checksums, but does not verify them
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"damaged at {damaged}")
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).split(". ")[0] or type(error).__name__
        previous, cure = previous_of(path), ""
        if previous.is_file():
            with suppress(UserError):
                read_checkpoint(previous, "meta")
                cure = f"; the previous checkpoint is complete: --ckpt_path {previous}"
        raise UserError(f"ckpt_path: cannot read {str(path)!r}: {reason}{cure}") from error


def read_own_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this package without the values of its tensors; its own part is under the key `pg_lightning`.

    Raises:
        UserError: if there is no such file, or it is truncated, or from another program.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt_path: no file {str(path)!r}")
    checkpoint: Any = read_checkpoint(Path(path), "meta")
    if not isinstance(checkpoint, dict) or "pg_lightning" not in checkpoint:
        raise UserError(f"ckpt_path: {str(path)!r} is not a checkpoint of pg_lightning")
    return checkpoint


def write_checkpoint(file: Path, content: bytes) -> None:
    """Writes the bytes of a checkpoint and keeps the previous one, which yields if there is no room for a third file.

    Raises:
        OSError: the newest checkpoint is unchanged.
    """
    previous = previous_of(file)
    newest = file.stat().st_ino if file.is_file() else None
    try:
        write_file(file, content, previous)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or newest is None or not previous.is_file():
            raise
        if file.stat().st_ino != newest:
            raise  # it is written, but perhaps not on the disk
        if shutil.disk_usage(file.parent).free + previous.stat().st_size < len(content):
            raise  # there would still be no room
        previous.unlink()
        write_file(file, content, previous)


def _complaint(path: Path, size: int, error: OSError) -> str:
    cure = "check the disk"
    if error.errno in NO_ROOM:
        cure = f"it needs {size / 1e6:.1f} MB: free space there"
    if error.errno in FORBIDDEN:
        cure = f"make {str(path.parent)!r} writable"
    kept = "; the previous file is unchanged" if path.is_file() else ""
    return f"cannot save {str(path)!r}: {error.strerror or error}; {cure}{kept}"
