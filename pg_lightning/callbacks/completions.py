"""Completions of a language model, for people to read: a file of all, and a table of some while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import WandbLogger

from pg_lightning.callbacks.evaluation import writable
from pg_lightning.collectives import all_gather_object
from pg_lightning.errors import one_line, require
from pg_lightning.rollout import Episode
from pg_lightning.run.files import write_file


class CompletionWriter(BasePredictionWriter):
    """Writes the completions of `predict` in the order of the prompts, to `predict/completions.jsonl` of the run."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__("batch")
        self.folder = run_folder / "predict"
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out before the first completion whether the folder can be written."""
        with writable(self.folder):
            pass

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Episode,
        batch_indices: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps a completion until the end."""
        self._rows.append(prediction.columns)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file and prints its place."""
        ranks = all_gather_object(self._rows)
        if not trainer.is_global_zero:
            return
        rows = [own[i] for i in range(len(ranks[0])) for own in ranks if i < len(own)]
        path = self.folder / "completions.jsonl"
        with writable(self.folder):
            write_file(path, "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows))
        mean = sum(row["reward"] for row in rows) / max(1, len(rows))
        print(f"predict: {len(rows)} completions with a mean reward of {mean:.3f} written to {path}")


class CompletionTable(Callback):
    """Shows some completions of every evaluation in the terminal, and as a table in W&B.

    Args:
        rows: completions of an evaluation.
        width: most characters of a prompt, and of a completion, in the terminal.
    """

    def __init__(self, rows: int = 4, width: int = 60) -> None:
        require("CompletionTable.rows", rows, 1)
        require("CompletionTable.width", width, 10)
        self.rows, self.width = rows, width
        self._columns: list[dict[str, Any]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Episode, *_: object
    ) -> None:
        """Keeps the first completions of an evaluation."""
        if len(self._columns) < self.rows and batch.columns:
            self._columns.append(batch.columns)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows them."""
        rows, self._columns = self._columns, []
        if not rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        for row in rows:
            prompt, completion = (self._short(row[name]) for name in ("prompt", "completion"))
            print(f"{row['reward']:6.2f}  {prompt} → {completion}{'' if row['ended'] else ' (cut)'}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                names = ["prompt", "completion", "reward", "tokens"]
                table = [[str(row["prompt"]), *(row[name] for name in names[1:])] for row in rows]
                logger.log_table("completions", columns=names, data=table)

    def _short(self, text: Any) -> str:
        line = one_line(text if isinstance(text, str) else text[-1]["content"])
        return line if len(line) <= self.width else f"{line[: self.width - 1]}…"
