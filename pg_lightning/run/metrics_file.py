"""`metrics.csv`; a resumed run continues it exactly."""

from __future__ import annotations

import csv
import io
import os
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from pg_lightning.collectives import all_gather_object
from pg_lightning.errors import unwritable
from pg_lightning.run.files import write_csv
from pg_lightning.run.folder import next_free_version
from pg_lightning.run.lock import FolderLock

FIELD = "trainer.default_root_dir"
MOST = 10_000  # rows buffered while the disk is not writable; about 20 MB


class MetricsFile(CSVLogger):
    """Lightning's `CSVLogger`, one row per call, which continues an existing `metrics.csv`.

    After a kill at any moment at most the last row is missing: if a new column changes the header, the file is
    replaced atomically. A full disk causes one warning; the rows are written when there is space again.

    Raises:
        UserError: at the first access to `log_dir`, if it cannot be created.
    """

    def __init__(self, save_dir: str, name: str, version: str | None = None) -> None:
        super().__init__(save_dir, name, flush_logs_every_n_steps=1)
        self._known_version: int | str | None = version
        self._rows: MetricsWriter | None = None
        self._made: list[Path] = []
        self._lock: FolderLock | None = None

    @property
    def version(self) -> int | str:
        """`version_K`, or the number K; by default the next free number, whose folder is created."""
        if self._known_version is None:
            self._known_version = self._next_version()
        return self._known_version

    def _next_version(self) -> int:
        """Also creates the folder: if two runs start at the same moment, the second takes the next number."""
        try:
            version = next_free_version(Path(self.root_dir))
            while _is_first_process():
                folder = Path(self.root_dir, f"version_{version}")
                missing = [path for path in (folder, *folder.parents) if not path.exists()]
                try:
                    folder.mkdir(parents=True)
                except FileExistsError:
                    version += 1
                else:
                    self._made = missing
                    self._lock = FolderLock(folder, "fit", FIELD)
                    break
        except OSError as error:
            raise unwritable(Path(self.root_dir), error) from error
        return version

    def claim(self) -> None:
        """Locks the folder of a run that continues, on rank 0, until `release` or the end of the process.

        Raises:
            UserError: if another process trains in it, or it cannot be written.
        """
        folder = Path(self.log_dir)
        try:
            if _is_first_process():
                self._lock = FolderLock(folder, "fit", FIELD)
        except OSError as error:
            raise unwritable(folder, error) from error

    def agree(self) -> None:
        """Shares rank 0's folder with all ranks. A collective: all ranks must call it."""
        self._known_version = all_gather_object(self.version)[0]

    def release(self) -> None:
        """Ends the lock; removes the folder if it is empty, and the parent folders that were created for it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; on other ranks than 0 an object that does nothing."""
        if self._rows is None:
            self._rows = MetricsWriter(Path(self.log_dir))
        return self._rows

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Tries once more to write buffered rows, and reports the missing ones."""
        if self._rows is not None:
            self._rows.save()
            self._rows.end()


class MetricsWriter:
    """Writes rows to the file one by one. Rows that cannot be written stay in memory until the next write.

    Attributes:
        metrics: rows that are not yet in the file.
        count: rows in the file.
        lost: rows that were dropped, because there were more than `MOST` in memory.
        trouble: why the last write failed; None if it succeeded.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        self.metrics: list[dict[str, object]] = []
        self.count = 0
        self.lost = 0
        self.trouble: str | None = None
        self._columns: list[str] = []
        self._torn_at: int | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Adds a row, which `save` writes; tensors are converted to numbers."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append({**row, "step": step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Does nothing: `config.yaml` has the hyper-parameters."""

    def save(self) -> None:
        """Appends new and buffered rows."""
        if not self.metrics:
            return
        try:
            self._cut()
            keys = sorted(set(self._columns).union(*self.metrics))
            if keys == self._columns and self.path.is_file():
                self.append()
            else:
                self.replace(keys, [*self._read(), *self.metrics])
        except OSError as error:
            self.lost += max(0, len(self.metrics) - MOST)
            del self.metrics[:-MOST]
            if self.trouble is None:
                _warn(
                    f"cannot write {str(self.path)!r}: {error.strerror}; training continues, and its rows are "
                    "buffered in memory"
                )
            self.trouble = error.strerror
        else:
            self.count += len(self.metrics)
            self.metrics = []

    def end(self) -> None:
        """Reports once how many rows were never written."""
        if missing := len(self.metrics) + self.lost:
            _warn(f"{str(self.path)!r} lacks {missing} rows: {self.trouble}")
            self.metrics, self.lost = [], 0

    def keep(self, count: int, unwritten: list[dict[str, Any]]) -> None:
        """Keeps only the first `count` rows and their columns, and adds `unwritten` rows to the buffer.

        Raises:
            OSError: the file is unchanged.
        """
        rows = self._read(count)
        keys = sorted({key for row in rows for key, value in row.items() if value})
        if self.path.is_file():
            self.replace(keys, [{key: row[key] for key in keys} for row in rows])
        self.count, self.metrics = len(rows), [*unwritten]

    def _read(self, count: int | None = None) -> list[dict[str, object]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(islice(csv.DictReader(file), count))

    def append(self) -> None:
        """Appends the rows in memory to the file, all or none.

        Raises:
            OSError: a partial write is removed, at once or before the next write.
        """
        whole = self.path.stat().st_size
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(self.metrics)
        data = text.getvalue().encode()
        try:
            with self.path.open("ab", buffering=0) as file:  # a buffer could write its rest later
                while data:
                    data = data[file.write(data) :]
        except OSError:
            self._torn_at = whole
            with suppress(OSError):
                self._cut()
            raise

    def _cut(self) -> None:
        """Removes a partial write from the end of the file."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None

    def replace(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        """Writes the whole file again.

        Raises:
            OSError: the file is unchanged.
        """
        write_csv(self.path, rows, columns)
        self._columns = columns
        self._torn_at = None


def _is_first_process() -> bool:
    """Whether this is rank 0, or will be: before it has a strategy, the main process of another node does not know."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return cast(Any, rank_zero_only).rank == 0 and node == "0"


def _warn(message: str) -> None:
    with suppress(OSError):  # stderr may be a file on the same disk
        print(f"warning: {message}", file=sys.stderr, flush=True)
