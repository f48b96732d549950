"""How a signal ends training: at a rollout boundary, with a checkpoint."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from pg_lightning.callbacks.checkpoints import RunCheckpoint
from pg_lightning.lightning_private import disable_signal_handlers
from pg_lightning.processes import signals


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end `fit` with `signals.Stopped` between two rollouts.

    A rollout or an evaluation in progress is aborted; an update is completed, if that takes no longer
    than `signals.BOUNDARY_PATIENCE_S` seconds. All ranks end if any rank receives a signal.

    Lightning's own handlers would gather ranks and save at any point, and exit with status 0.
    """

    def __init__(self) -> None:
        self._listens = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Installs the handlers; if a program has already done so, `listen` changes nothing."""
        if stage == "fit":
            self._listens = signals.listen()
            disable_signal_handlers(trainer)  # ranks agree on more than SIGTERM, in `signals.agree`

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save. With several ranks an update of any length is completed."""
        signals.hold(signals.BOUNDARY_PATIENCE_S if trainer.world_size == 1 else None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handles a signal at the end of an evaluation, also of an aborted one."""
        if signals.are_held():
            signals.raise_if_stopped(trainer.strategy)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is saved: from here on a signal ends the run at once."""
        signals.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves first, and limits the time of the clean-up."""
        signals.release()
        if isinstance(exception, signals.Stopped):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, RunCheckpoint):
                    callback.on_signal(trainer, exception)
            signals.limit_clean_up()
            cluster = getattr(trainer.strategy, "cluster_environment", None)
            if trainer.global_rank > 0 and cluster is not None and not cluster.creates_processes_externally:
                exception.code = 0  # Lightning kills the ranks that it started if one exits with another status
        if self._listens and not isinstance(exception, signals.Stopped):
            signals.forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the previous handlers."""
        if self._listens:
            signals.forget()
