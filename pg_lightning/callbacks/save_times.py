"""Says when a `ModelCheckpoint` of the user's saves."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from pg_lightning.lightning_private import train_steps_between_saves


class SaveTimes(Callback):
    """After the first rollout: one line for a `ModelCheckpoint` whose interval meets few ends of rollouts.

    `every_n_train_steps` counts optimizer steps, of which there are many in a rollout, and Lightning compares it with
    their number only at the end of each rollout: it saves where that is a multiple of the interval.

    Args:
        checkpoints: of the user.
    """

    def __init__(self, checkpoints: list[ModelCheckpoint]) -> None:
        self.checkpoints = checkpoints
        self._before = 0
        self._has_said = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the number of optimizer steps of an earlier part of the run."""
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Compares the interval with the optimizer steps of the first rollout."""
        if self._has_said:
            return
        self._has_said = True
        each = trainer.global_step - self._before
        for checkpoint in self.checkpoints:
            every = train_steps_between_saves(checkpoint)
            if every > 0 and each > 0 and every % each:
                meets = math.lcm(every, each)
                rank_zero_warn(
                    f"trainer.callbacks: ModelCheckpoint with every_n_train_steps {every} saves only at the end of a "
                    f"rollout, which is {each} optimizer steps: every {meets // each} rollouts, if all are so long; "
                    f"set it to a multiple of {each}"
                )
