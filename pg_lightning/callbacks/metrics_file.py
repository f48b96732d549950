"""`metrics.csv`, which a resumed run continues as if it had never stopped."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from pg_lightning.errors import UserError
from pg_lightning.ranks import of_all_ranks


class MetricsFile(CSVLogger):
    """Lightning's `CSVLogger`, one row a call, that goes on in a folder where it finds a `metrics.csv`.

    A kill at any moment leaves all rows but perhaps the last: where a new column changes the header, the file is
    replaced, not written over.
    """

    def __init__(self, save_dir: str, name: str, version: str | None = None) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> Any:
        """The writer; on other ranks than the first Lightning's, which does nothing."""
        if self._experiment is None and cast(Any, rank_zero_only).rank == 0:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Rows(self.log_dir)
        return super().experiment


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.count = 0

    def save(self) -> None:
        """Appends the rows that are new."""
        self.count += len(self.metrics)
        super().save()

    def keep(self, count: int) -> None:
        """Drops all rows but the first `count`, and the columns that only others had."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            rows = [row for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
        self.count = len(rows)
        self.metrics_keys = sorted({key for row in rows for key, value in row.items() if value})
        self._replace([{key: row[key] for key in self.metrics_keys} for row in rows])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        self._replace(rows)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        path = f"{self.metrics_file_path}.new"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path, self.metrics_file_path)

    def _check_log_dir_exists(self) -> None:
        """What is there is kept."""


class ContinuedMetrics(Callback):
    """Has `metrics.csv` go on, in a run that is resumed in its own folder, after the row that its checkpoint knew of.

    Args:
        logger: of the run.
        checkpoint: that the run is resumed from, or None; all ranks must have found the same.
    """

    def __init__(self, logger: MetricsFile, checkpoint: Path | None) -> None:
        self.logger = logger
        self.checkpoint = checkpoint
        self._rows: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares what the ranks have found, before any of them loads it.

        Raises:
            UserError: if they disagree.
        """
        found = of_all_ranks(str(self.checkpoint))
        if len(set(found)) > 1:
            raise UserError(f"ckpt_path: the processes have found different checkpoints: {', '.join(found)}")

    def state_dict(self) -> dict[str, Any]:
        """The number of rows so far."""
        return {"rows": getattr(self.logger.experiment, "count", 0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it for when all is restored."""
        self._rows = state_dict["rows"]

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the rows that will be written again."""
        if self._rows is not None:
            self.logger.experiment.keep(self._rows)
