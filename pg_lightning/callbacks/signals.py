"""What a signal does to a training: it ends at a rollout boundary, with a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pg_lightning.callbacks.checkpoints import RunCheckpoint
from pg_lightning.lightning_private import disable_signal_handlers
from pg_lightning.processes import signals


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 end `fit` with `signals.Stopped` between two rollouts.

    A rollout or an evaluation that is being played is given up; an update comes to its end, if that takes no longer
    than `signals.BOUNDARY_PATIENCE_S` seconds. Every rank ends with the one that the signal came to.

    Lightning's own handlers would gather ranks and save in the midst of anything, and end with status 0.
    """

    def __init__(self) -> None:
        self._listens = False

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Takes the signals over; after a program that has done so already, `listen` changes nothing."""
        if stage == "fit":
            self._listens = signals.listen()
            disable_signal_handlers(trainer)  # ranks agree on more than SIGTERM, in `signals.agree`

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save. No rank may leave the others waiting, however long an update is."""
        signals.hold(signals.BOUNDARY_PATIENCE_S if trainer.world_size == 1 else None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where an evaluation ends, be it given up."""
        if signals.are_held():
            signals.raise_if_stopped(trainer.strategy)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is saved: nothing is worth waiting for."""
        signals.release()

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves before anything else is done, and bounds that."""
        signals.release()
        if isinstance(exception, signals.Stopped):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, RunCheckpoint):
                    callback.on_signal(trainer, exception)
            signals.bound_the_end()
            cluster = getattr(trainer.strategy, "cluster_environment", None)
            if trainer.global_rank > 0 and cluster is not None and not cluster.creates_processes_externally:
                exception.code = 0  # Lightning kills the other ranks if one that it started ends with another
        if self._listens and not isinstance(exception, signals.Stopped):
            signals.forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        if self._listens:
            signals.forget()
