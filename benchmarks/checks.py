"""What the checks of `gpu.py` share: a line of the table, a quiet Trainer, an algorithm, and the text of an error."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from pg_lightning import RolloutDataModule


@dataclass
class Row:
    """One line of the table."""

    check: str
    case: str
    result: str
    passed: bool = True


def trainer(device: str, precision: Any = "32-true", **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain = {"max_epochs": 1, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator=device, devices=1, precision=precision, **(quiet | plain | kwargs))


def make(algorithm: type, data: RolloutDataModule, **model: Any) -> Any:
    seed_everything(1, verbose=False)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    return algorithm(**spaces, total_steps=data.total_steps, **model)


def failure(error: BaseException) -> str:
    logging.getLogger(__name__).warning("%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def failed_speed(case: str, error: BaseException) -> Row:
    """A size that does not fit into the memory of the device is no fault; anything else is."""
    if not isinstance(error, torch.cuda.OutOfMemoryError):
        return Row("speed", case, failure(error), False)
    return Row("speed", case, "does not fit into the memory of the device")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
