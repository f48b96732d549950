"""The plot of a finished run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from pg_lightning.analysis.plots import draw_learning_curve
from pg_lightning.processes.signals import Stopped


class LearningCurve(Callback):
    """Draws `learning_curve.png` from `metrics.csv` in the run's folder when training ends; W&B gets it too."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Also draws the curve after a signal."""
        if isinstance(exception, Stopped) and exception.consistent:
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the return against env steps: of the training episodes, and of the evaluations."""
        folder = Path(trainer.log_dir or ".")  # a collective: all ranks must read it
        if trainer.is_global_zero and (folder / "metrics.csv").is_file():
            env_id = trainer.datamodule.env_id  # type: ignore[attr-defined]
            try:
                draw_learning_curve(folder / "metrics.csv", folder / "learning_curve.png", env_id)
            except OSError as error:
                rank_zero_warn(f"learning_curve.png was not drawn: {error}; its numbers are in metrics.csv")
                return
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("learning_curve", [str(folder / "learning_curve.png")])
