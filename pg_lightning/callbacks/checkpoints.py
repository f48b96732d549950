"""When a run's checkpoints are written: after evaluations, at intervals, at the end, and on a signal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from pg_lightning.callbacks.evaluation import EvaluateEverySteps
from pg_lightning.errors import UserError
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.learning.restoring import lies_in
from pg_lightning.lightning_private import FallibleModelCheckpoint, count_whole_batches
from pg_lightning.processes.signals import Stopped
from pg_lightning.run.folder import relative, run_folder
from pg_lightning.run.found_config import options_to_trust


class RunCheckpoint(FallibleModelCheckpoint):
    """`best.ckpt` and `last.ckpt`; a separate class, so that they differ from a `ModelCheckpoint` of the user.

    Both are written after evaluations. `last.ckpt`, which monitors no metric, is also written at the first rollout
    boundary at or past every multiple of `data.save_every_steps`, when training ends, and when a signal ends it.

    Args:
        evaluations: the callback that schedules evaluations; it must come before this one.
        filename: of the checkpoint, without its suffix.
        monitor: the metric of the best; None for the last.
        mode: `max` or `min` of the metric.

    Attributes:
        failed: whether the last save failed.
        saved_at: env steps of the last successful save.
    """

    def __init__(
        self, evaluations: EvaluateEverySteps, filename: str, monitor: str | None = None, mode: str = "min"
    ) -> None:
        super().__init__(filename=filename, monitor=monitor, mode=mode, enable_version_counter=False)
        self.failed = False
        self.saved_at = 0
        self._evaluations = evaluations
        self._goes_on = False
        self._next: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Schedules the next save; passes the best checkpoint so far to loggers."""
        super().on_train_start(trainer, pl_module)
        self._aim(trainer, pl_module)
        if self._goes_on and self.monitor is not None and self.best_model_path and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        """Saves if a save is due, unless an evaluation follows at once, after which there is a save anyway."""
        if self.monitor is None and self._next is not None and pl_module.env_steps >= self._next:
            self._aim(trainer, pl_module)
            if not self._evaluations.is_due or not trainer.enable_validation:
                self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, unless the last evaluation already did."""
        if self.monitor is None:
            self.save_now(trainer)

    def on_signal(self, trainer: Any, stop: Stopped) -> None:
        """Saves, and prints the command that resumes the run."""
        if self.monitor is not None:
            return
        if stop.consistent:
            self.save_now(trainer)
        path = Path(self.last_saved_path)
        if trainer.is_global_zero and path.is_file():
            given = f"{relative(path)}{options_to_trust(run_folder(path) / 'config.yaml')}"
            print(f"\nsaved: {self.saved_at:,} env steps\nnext:  python -m pg_lightning fit --ckpt_path {given}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Makes the file of a resumed run equal to that of an uninterrupted one, byte for byte."""
        count_whole_batches(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks whether a run continues in its own folder. A new run has no best checkpoint yet.

        Raises:
            UserError: if the checkpoint names another file as that of this callback.
        """
        self._goes_on = lies_in(trainer.ckpt_path, str(self.dirpath))
        if not self._goes_on:
            checkpoint["callbacks"].pop(self.state_key, None)
            return
        state = checkpoint["callbacks"].get(self.state_key) or {"best_model_path": "", "best_k_models": {}}
        named = {Path(path).name for path in (state["best_model_path"], *state["best_k_models"]) if path}
        if named - {f"{self.filename}{self.FILE_EXTENSION}"}:
            raise UserError(
                f"ckpt_path: {str(trainer.ckpt_path)!r} names another file as {self.filename}{self.FILE_EXTENSION}; "
                "give another checkpoint"
            )

    def state_dict(self) -> dict[str, object]:
        """Includes the state that the main process of asynchronous workers needs."""
        return super().state_dict() | {"failed": self.failed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict.get("current_score")  # Lightning saves it, but does not restore it
        self.failed = state_dict.get("failed", False)

    def _aim(self, trainer: Any, pl_module: PolicyGradientModule) -> None:
        every = trainer.datamodule.save_every_steps
        self._next = None if every is None else (pl_module.env_steps // every + 1) * every

    def save_succeeded(self, trainer: Trainer) -> bool:
        """The result of rank 0, which writes the file, on every rank: a failed save is not the best."""
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        self.failed = trainer.strategy.broadcast(failure is not None)
        if not self.failed:
            self.saved_at = cast(Any, trainer).lightning_module.env_steps
        return not self.failed
