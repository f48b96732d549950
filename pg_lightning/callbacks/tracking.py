"""What a run leaves behind: a learning-curve picture, and the commit that it was started from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from pg_lightning.plot import new_figure, points_of, rows_of
from pg_lightning.processes.signals import Stopped


class LearningCurve(Callback):
    """Draws `learning_curve.png` from `metrics.csv` in the run's folder when training ends; W&B gets it too."""

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """After a signal: of what there is."""
        if isinstance(exception, Stopped) and exception.consistent:
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Return against env steps: of the training episodes, and of the evaluations."""
        folder = Path(trainer.log_dir or ".")  # asks rank 0, so every rank must
        if trainer.is_global_zero and (folder / "metrics.csv").is_file():
            env_id = trainer.datamodule.env_id  # type: ignore[attr-defined]
            try:
                draw_learning_curve(folder / "metrics.csv", folder / "learning_curve.png", env_id)
            except OSError as error:
                rank_zero_warn(f"learning_curve.png was not drawn: {error}; metrics.csv has its numbers")
                return
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("learning_curve", [str(folder / "learning_curve.png")])


def draw_learning_curve(metrics_csv: Path, png: Path, title: str) -> None:
    """Plots `rollout/return_mean` and `val/return_mean` of a `metrics.csv` against env steps."""
    rows = rows_of(metrics_csv)
    figure, axes = new_figure(title, "env steps", "return")
    curves = {
        "rollout/return_mean": ("training episodes", {"color": "#9db4d3", "linewidth": 1.5}),
        "val/return_mean": ("evaluation", {"color": "#1f4e9c", "linewidth": 2, "marker": "o", "markersize": 4}),
    }
    for key, (label, style) in curves.items():
        if points := points_of(rows, key):
            axes.plot(*zip(*points, strict=True), label=label, **style)  # type: ignore[arg-type]
    axes.legend(frameon=False)
    figure.savefig(png, dpi=150)


def commit() -> str | None:
    """Of the working tree that one is in, with a `+` where it has changes; None outside of one."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
