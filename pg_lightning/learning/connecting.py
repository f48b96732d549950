"""How a module joins the other ranks of its Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pg_lightning.collectives import Collectives, connect
from pg_lightning.lightning_private import process_group_timeout

OTHER_MESSAGES = 4096  # bytes that shared memory has room for beside a gradient


def connect_ranks(trainer: Trainer, device: torch.device, weights: Mapping[str, Sequence[Tensor]]) -> Collectives:
    """The collectives of a training; takes the place of DDP's reducer.

    Args:
        trainer: about to train.
        device: that this rank learns on.
        weights: of actor and critic; a gradient is as long.
    """
    strategy = cast(Any, trainer.strategy)
    if trainer.world_size == 1:
        return connect(1, device, 0, 0.0)
    # Not DDP's wrapper, which has made the weights equal: it would add up gradients bucket by bucket, whatever number
    # of rows they are of, and overwrite the ranks' buffers with those of rank 0 before every update.
    strategy.model = trainer.lightning_module
    capacity = sum(x.nbytes for group in weights.values() for x in group) + OTHER_MESSAGES
    return connect(trainer.world_size, device, capacity, process_group_timeout(strategy).total_seconds())


def episodes_go_on(trainer: Trainer) -> bool:
    """Whether a resumed run continues the episodes that its checkpoint was saved in."""
    return getattr(getattr(trainer, "datamodule", None), "episodes_go_on", False)
