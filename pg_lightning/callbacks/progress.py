"""Progress in env steps: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pg_lightning.learning import PolicyGradientModule


class EnvStepProgress(ProgressBar):
    """Shows the used share of the budget, the latest returns, the speed and the remaining time.

    Args:
        seconds: between two plain lines.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._start = (0.0, 0)
        self._printed = 0.0

    def enable(self) -> None:
        """Called by the Trainer on rank 0."""
        self._enabled = True

    def disable(self) -> None:
        """Called by the Trainer on the other ranks."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Opens the bar on a terminal."""
        self._start = (time.perf_counter(), pl_module.env_steps)
        self._printed = self._start[0]
        if self._enabled and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps"),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(
                f"{type(pl_module).__name__} {trainer.datamodule.env_id}",  # type: ignore[attr-defined]
                total=pl_module.total_steps,
                completed=pl_module.env_steps,
                numbers="",
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        """Moves the bar, or prints a line if enough time has passed."""
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=min(pl_module.env_steps, pl_module.total_steps),
                numbers=self._numbers(trainer, pl_module),
            )
        elif self._enabled and time.perf_counter() - self._printed > self.seconds:
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Closes the bar, or prints the last line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._enabled:
            self._print(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restores the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, trainer: Trainer, pl_module: PolicyGradientModule) -> None:
        now = time.perf_counter()
        self._printed = now
        done = pl_module.env_steps - self._start[1]
        left = (now - self._start[0]) * max(0, pl_module.total_steps - pl_module.env_steps) / max(1, done)
        with suppress(OSError):  # the output may be a file on a full disk
            print(
                f"{pl_module.env_steps:,}/{pl_module.total_steps:,} env steps  {self._numbers(trainer, pl_module)}  "
                f"{left:.0f} s left",
                flush=True,
            )

    def _numbers(self, trainer: Trainer, pl_module: PolicyGradientModule) -> str:
        seconds, steps = self._start
        speed = (pl_module.env_steps - steps) / max(1e-9, time.perf_counter() - seconds)
        metrics = trainer.callback_metrics
        shown = {"return": metrics.get("rollout/return_mean"), "val": metrics.get("val/return_mean")}
        returns = "  ".join(f"{name} {float(value):.1f}" for name, value in shown.items() if value is not None)
        return f"{returns}  {speed:,.0f} steps/s"
