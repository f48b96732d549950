"""Continues `metrics.csv` of a resumed run after the rows of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from pg_lightning.collectives import all_gather_object
from pg_lightning.errors import UserError, unwritable
from pg_lightning.run.metrics_file import MetricsFile, MetricsWriter


class ContinuedMetrics(Callback):
    """Continues `metrics.csv` of a run that is resumed in its own folder, after the rows known to its checkpoint.

    Args:
        logger: of the run.
        checkpoint: from which the run is resumed, or None; it must be the same on all ranks.
    """

    def __init__(self, logger: MetricsFile, checkpoint: Path | None) -> None:
        self.logger = logger
        self.checkpoint = checkpoint
        self._restored: dict[str, object] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shares the run folder with all ranks; compares the checkpoints that they found, before any rank loads one.

        Raises:
            UserError: if they disagree.
        """
        self.logger.agree()
        found = all_gather_object(str(self.checkpoint))
        if len(set(found)) > 1:
            raise UserError(f"ckpt_path: the processes have found different checkpoints: {', '.join(found)}")

    def state_dict(self) -> dict[str, object]:
        """The number of rows in the file, and the rows that are not yet written."""
        rows = self.logger.experiment
        if not isinstance(rows, MetricsWriter):  # not rank 0; the checkpoint is that of rank 0
            return {}
        return {"rows": rows.count, "unwritten": [{k: str(v) for k, v in row.items()} for row in rows.metrics]}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Keeps the state until everything is restored."""
        self._restored = state_dict

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the rows that will be written again.

        Raises:
            UserError: if the file cannot be written.
        """
        if not self._restored:
            return
        try:
            self.logger.experiment.keep(self._restored["rows"], self._restored.get("unwritten", []))
        except OSError as error:
            raise unwritable(self.logger.experiment.path, error) from error
