"""Loads the weights of a checkpoint for commands that do not use the Trainer's loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pg_lightning.checkpoint.values import Damage
from pg_lightning.data import RolloutDataModule
from pg_lightning.lightning_private import datamodule_state
from pg_lightning.run.checkpoints import read_checkpoint
from pg_lightning.text import TextDataModule


def load_weights(trainer: Trainer, model: Any, data: RolloutDataModule | TextDataModule, ckpt_path: Path) -> None:
    """Loads the weights and statistics of a checkpoint into a module.

    Raises:
        UserError: if it is damaged, or belongs to another environment or network.
    """
    model.trainer = trainer
    checkpoint = read_checkpoint(ckpt_path, use="evaluate")
    try:
        state = datamodule_state(checkpoint, data)
    except KeyError as error:
        raise Damage(str(error), "is missing").in_file(ckpt_path) from error
    data.load_state_dict(state)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
