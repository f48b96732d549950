"""Writes and reads checkpoints so that they survive a crash, a full disk and a signal."""

from __future__ import annotations

import errno
import shutil
import sys
from collections import OrderedDict
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pg_lightning.checkpoint import archive, schema
from pg_lightning.checkpoint.schema import Use
from pg_lightning.checkpoint.values import Damage
from pg_lightning.errors import UserError, cause_of
from pg_lightning.run.files import remove_partial, write_file

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. The message is one line that names the file and the cure."""


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but loads only tensors and plain types, of sizes that the file has, and removes only files.

    Attributes:
        use: what checkpoints are loaded for; those without the parts for that are refused.
    """

    use: Use | None = None

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, always with `weights_only`, whatever the argument says.

        Raises:
            UserError: if the file is truncated or damaged, naming the previous one.
        """
        if "://" not in str(path):
            return read_checkpoint(Path(path), map_location, self.use)
        checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        check_structure(checkpoint, path, self.use)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file; never a folder."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        elif Path(path).is_file():
            Path(path).unlink()


class SafeCheckpointIO(CheckedCheckpointIO):
    """Writes files atomically, and keeps the previous one.

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

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint that was replaced, if the new one was written; only a file, never a folder."""
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


def read_checkpoint(path: Path, map_location: Any = "cpu", use: Use | None = None) -> dict[str, Any]:
    """A checkpoint, read with `weights_only`: tensors and plain types only, of sizes that the file has.

    Args:
        path: the file.
        map_location: of `torch.load`; "meta" for tensors without values.
        use: what it is needed for; None for its content as it is.

    Raises:
        UserError: if it cannot be read, is truncated or damaged; names the previous one if that one can be read.
    """
    try:
        checkpoint = archive.read(path, map_location)
    except Exception as error:
        reason = cause_of(error).split(". ")[0]
        previous, cure = previous_of(path), ""
        if previous.is_file():
            with suppress(UserError):
                read_checkpoint(previous, "meta")
                cure = f"; the previous checkpoint is complete: --ckpt_path {previous}"
        raise UserError(f"ckpt_path: cannot read {str(path)!r}: {reason}{cure}") from error
    check_structure(checkpoint, path, use)
    return checkpoint


def check_structure(checkpoint: object, path: object, use: Use | None) -> None:
    """Refuses a checkpoint without the parts that are needed.

    Raises:
        UserError: naming the file, the field and what is wrong with it.
    """
    try:
        if use is not None:
            schema.check(checkpoint, use)
    except Damage as damage:
        raise damage.in_file(path) from None


def read_own_checkpoint(path: str | Path, use: Use = "evaluate") -> dict[str, Any]:
    """A checkpoint of this package without the values of its tensors; its own part is under the key `pg_lightning`.

    Raises:
        UserError: if there is no such file, or it is truncated, from another program, or lacks what it is needed for.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt_path: no file {str(path)!r}")
    return read_checkpoint(Path(path), "meta", use)


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
