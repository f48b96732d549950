"""Checkpoints that survive a crash, a full disk and a signal: how they are written, and when."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer

from pg_lightning.errors import UserError
from pg_lightning.lightning_private import FallibleModelCheckpoint
from pg_lightning.signals import Stopped

PARTIAL = ".partial"  # what a file under way is called; it is no `*.ckpt`
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. The message is one line that names the file and the cure."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes files that are whole at any moment, keeps the one before, and loads nothing but tensors and plain types.

    Args:
        warn: a failed save is a line on stderr, not an exception: training goes on, and the next save tries again.
            Until one succeeds nothing is removed.

    Attributes:
        failure: of the last save; None if it succeeded.
    """

    def __init__(self, warn: bool = False) -> None:
        self.warn = warn
        self.failure: CheckpointError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint; other than to a local folder as Lightning does.

        Raises:
            CheckpointError: if that fails, unless it is to warn.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        self.failure = None
        try:
            replace_file(Path(path), buffer.getvalue())
        except OSError as error:
            self.failure = CheckpointError(_complaint(Path(path), buffer.tell(), error))
            if not self.warn:
                raise self.failure from error
            print(f"warning: {self.failure}; training goes on, the next save tries again", file=sys.stderr, flush=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, whatever `weights_only` says without trust.

        Raises:
            UserError: if it is torn, naming the one before.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint that another has taken the place of, if that one was written."""
        if self.failure is None:
            super().remove_checkpoint(path)


def previous_of(path: Path) -> Path:
    """Where the file that was replaced last is kept: `last.previous.ckpt` for `last.ckpt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file so that a crash at any moment leaves the old or the new one; the old one is kept (`previous_of`).

    The bytes are on the disk, and have been read back, before the name is theirs (`os.replace` is atomic).

    Raises:
        OSError: the old file is untouched.
    """
    folder, previous = path.parent, previous_of(path)
    folder.mkdir(parents=True, exist_ok=True)
    _remove(*folder.glob(f".*{PARTIAL}"))  # of a process that was killed
    partial, link = (folder / f".{name}{PARTIAL}" for name in (path.stem, previous.stem))
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if partial.read_bytes() != data:
            raise OSError(errno.EIO, "what was read back is not what was written")
        if path.exists():
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, link)
            os.replace(link, previous)
        os.replace(partial, path)
    finally:
        _remove(partial, link)
    _sync(folder)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint, read without trust: tensors and plain types only.

    Raises:
        UserError: if it cannot be read, is torn or damaged, naming the one before if that can.
    """
    try:
        if zipfile.is_zipfile(path):  # torch writes checksums, and does not look at them
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
                cure = f"; the one before it is whole: --ckpt_path {previous}"
        raise UserError(f"ckpt_path: cannot read {str(path)!r}: {reason}{cure}") from error


class RunCheckpoint(FallibleModelCheckpoint):
    """`best.ckpt` and `last.ckpt`: of a class of their own, so that a `ModelCheckpoint` of the user's is told apart.

    Both are written after evaluations. `last.ckpt`, which monitors nothing, also at the first rollout boundary at or
    past every multiple of `data.save_every_steps`, when training ends, and when a signal ends it.

    Attributes:
        failed: the last save did.
        saved_at: env steps of the last that did not.
    """

    failed = False
    saved_at = 0
    _goes_on = False
    _next: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Aims at the first multiple to come; tells loggers of the best so far."""
        super().on_train_start(trainer, pl_module)
        self._aim(trainer, pl_module)
        if self._goes_on and self.monitor is not None and self.best_model_path and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Saves if that is due, unless an evaluation is about to be made here, which is followed by a save."""
        if self.monitor is None and self._next is not None and pl_module.env_steps >= self._next:
            self._aim(trainer, pl_module)
            if trainer.val_check_batch != 1 or not trainer.enable_validation:
                self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves what no evaluation has come after."""
        if self.monitor is None:
            self.save_now(trainer)

    def on_signal(self, trainer: Any, stop: Stopped) -> None:
        """Saves, and says where the run can be taken up again."""
        if self.monitor is not None:
            return
        if stop.consistent:
            self.save_now(trainer)
        path = Path(self.last_saved_path)
        if trainer.is_global_zero and path.is_file():
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            print(f"\nsaved: {self.saved_at:,} env steps\nnext:  python -m pg_lightning fit --ckpt_path {shown}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Finds out whether a run goes on in its own folder."""
        path, folder = (Path(str(x)).resolve() for x in (trainer.ckpt_path, self.dirpath))
        self._goes_on = path.parent == folder

    def state_dict(self) -> dict[str, Any]:
        """With what the main process of asynchronous workers must know."""
        return super().state_dict() | {"failed": self.failed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Likewise; the folder of a run that goes on may have another name by now, or be named from elsewhere."""
        if self._goes_on:
            state_dict = _renamed(state_dict, state_dict["dirpath"], self.dirpath)
        super().load_state_dict(state_dict)
        self.failed = state_dict.get("failed", False)

    def _aim(self, trainer: Any, pl_module: Any) -> None:
        every = trainer.datamodule.save_every_steps
        self._next = None if every is None else (pl_module.env_steps // every + 1) * every

    def save_succeeded(self, trainer: Trainer) -> bool:
        """What rank 0, which writes, has found: the best is the best of those that were saved, on every rank."""
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        self.failed = trainer.strategy.broadcast(failure is not None)
        if not self.failed:
            self.saved_at = cast(Any, trainer).lightning_module.env_steps
        return not self.failed


def _renamed(x: Any, old: Any, new: Any) -> Any:
    """The paths in a state, those of a folder by its new name."""
    if isinstance(x, dict):
        return {_renamed(key, old, new): _renamed(value, old, new) for key, value in x.items()}
    return new + x.removeprefix(old) if isinstance(x, str) and x.startswith(old) else x


def _complaint(path: Path, size: int, error: OSError) -> str:
    cure = "see to that disk"
    if error.errno in NO_ROOM:
        cure = f"it takes {size / 1e6:.1f} MB: make room there"
    if error.errno in FORBIDDEN:
        cure = f"make {str(path.parent)!r} writable"
    kept = "; the file from before is untouched" if path.is_file() else ""
    return f"cannot save {str(path)!r}: {error.strerror or error}; {cure}{kept}"


def _sync(folder: Path) -> None:
    """Has the folder's names on the disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint was written by."""
    folder = checkpoint.absolute().parent
    return relative(folder.parent if folder.name == "checkpoints" else folder)


def relative(path: Path) -> Path:
    """A path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
