"""Connects a module to the other ranks of its Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pg_lightning.collectives import Collectives, connect
from pg_lightning.lightning_private import process_group_timeout

OTHER_MESSAGES = 4096  # bytes of shared memory in addition to a gradient


def connect_ranks(trainer: Trainer, device: torch.device, weights: Mapping[str, Sequence[Tensor]]) -> Collectives:
    """The collectives of a training; replaces DDP's reducer.

    Args:
        trainer: about to train.
        device: of this rank.
        weights: of actor and critic; a gradient has the same length.
    """
    strategy = cast(Any, trainer.strategy)
    if trainer.world_size == 1:
        return connect(1, device, 0, 0.0)
    # DDP's wrapper is only used to make the weights equal: it would average gradients per bucket without weighting by
    # rows, and overwrite the ranks' buffers with those of rank 0 before every update.
    strategy.model = trainer.lightning_module
    capacity = sum(x.nbytes for group in weights.values() for x in group) + OTHER_MESSAGES
    return connect(trainer.world_size, device, capacity, process_group_timeout(strategy).total_seconds())


def episodes_go_on(trainer: Trainer) -> bool:
    """Whether a resumed run continues the episodes of its checkpoint."""
    return getattr(getattr(trainer, "datamodule", None), "episodes_go_on", False)
