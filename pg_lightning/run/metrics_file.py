"""`metrics.csv`, which a resumed run continues as if it had never stopped."""

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

MOST = 10_000  # rows that wait in memory for a disk that takes none; about 20 MB


class MetricsFile(CSVLogger):
    """Lightning's `CSVLogger`, one row a call, that goes on in a folder where it finds a `metrics.csv`.

    A kill at any moment leaves all rows but perhaps the last: where a new column changes the header, the file is
    replaced, not written over. A disk that takes no rows costs one warning; they are written when it does again.

    Raises:
        UserError: by the first look at `log_dir`, if that cannot be made.
    """

    def __init__(self, save_dir: str, name: str, version: str | None = None) -> None:
        super().__init__(save_dir, name, flush_logs_every_n_steps=1)
        self._known_version: int | str | None = version
        self._rows: MetricsWriter | None = None
        self._made: list[Path] = []

    @property
    def version(self) -> int | str:
        """`version_K`, or the number K; of a run without one the next that is free, whose folder is made."""
        if self._known_version is None:
            self._known_version = self._next_version()
        return self._known_version

    def _next_version(self) -> int:
        """Makes the folder too: of two runs that start at the same moment the second takes the next number."""
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
                    break
        except OSError as error:
            raise unwritable(Path(self.root_dir), error) from error
        return version

    def agree(self) -> None:
        """Has all ranks know rank 0's folder; every rank must ask."""
        self._known_version = all_gather_object(self.version)[0]

    def release(self) -> None:
        """Removes the folder if nothing was written into it, and those above that were made for it."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; on other ranks than the first one that does nothing."""
        if self._rows is None:
            self._rows = MetricsWriter(Path(self.log_dir))
        return self._rows

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Tries once more to write the rows that have waited, and says what is missing in the end."""
        if self._rows is not None:
            self._rows.save()
            self._rows.end()


class MetricsWriter:
    """Rows go to the file one by one. Those that it does not take stay in memory, and are tried again with the next.

    Attributes:
        metrics: rows that are not in the file yet.
        count: rows that are.
        lost: rows that were given up, since there were more than `MOST` in memory.
        trouble: why the file took no rows, when it last did not.
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
        """Takes a row, to be written by `save`; a tensor as a number."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append({**row, "step": step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Nothing: `config.yaml` has them all."""

    def save(self) -> None:
        """Appends the rows that are new, and those that have waited."""
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
                _warn(f"cannot write {str(self.path)!r}: {error.strerror}; training goes on, its rows wait in memory")
            self.trouble = error.strerror
        else:
            self.count += len(self.metrics)
            self.metrics = []

    def end(self) -> None:
        """Says once how many rows never found room."""
        if missing := len(self.metrics) + self.lost:
            _warn(f"{str(self.path)!r} lacks {missing} rows: {self.trouble}")
            self.metrics, self.lost = [], 0

    def keep(self, count: int, unwritten: list[dict[str, Any]]) -> None:
        """Drops all rows but the first `count`, and the columns that only others had; further ones are to follow.

        Raises:
            OSError: the file is untouched.
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
        """Writes the rows in memory behind those of the file, all or none.

        Raises:
            OSError: what was written of them is removed, at once or before the next are written.
        """
        whole = self.path.stat().st_size
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(self.metrics)
        data = text.getvalue().encode()
        try:
            with self.path.open("ab", buffering=0) as file:  # what a buffer holds back would follow later
                while data:
                    data = data[file.write(data) :]
        except OSError:
            self._torn_at = whole
            with suppress(OSError):
                self._cut()
            raise

    def _cut(self) -> None:
        """Removes what was written of rows that did not find room."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None

    def replace(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        """Writes the file anew.

        Raises:
            OSError: the file is untouched.
        """
        write_csv(self.path, rows, columns)
        self._columns = columns
        self._torn_at = None


def _is_first_process() -> bool:
    """Whether this is rank 0, or will be: the main process of another node does not know before it has a strategy."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return cast(Any, rank_zero_only).rank == 0 and node == "0"


def _warn(message: str) -> None:
    with suppress(OSError):  # the terminal may be a file on the same disk
        print(f"warning: {message}", file=sys.stderr, flush=True)
