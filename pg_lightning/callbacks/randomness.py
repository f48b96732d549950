"""Saves the random generators of every process in the checkpoint; Lightning does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pg_lightning.collectives import all_gather_object
from pg_lightning.processes import global_states, order_generator, set_global_states
from pg_lightning.strategies import HogwildStrategy


class RandomStates(Callback):
    """Makes a resumed run draw the same random numbers, on every rank: from torch, NumPy, Python and the GPU.

    Put this before callbacks that draw numbers when training starts. If the seed or the number of processes has
    changed, the generators are not restored.
    """

    def __init__(self) -> None:
        self._ranks: list[dict[str, object]] = []

    def state_dict(self) -> dict[str, object]:
        """The generators of all ranks. A collective: all ranks must call it."""
        return {"ranks": all_gather_object(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts, because the set-up before may draw numbers."""
        self._ranks = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the generators of this rank."""
        ranks, self._ranks = self._ranks, []
        if len(ranks) != trainer.world_size or isinstance(trainer.strategy, HogwildStrategy):
            return
        own = ranks[trainer.global_rank]
        if own["seed"] == torch.initial_seed():
            set_random_state(own)


def random_state() -> dict[str, object]:
    """The generators of this process, in plain types and tensors."""
    python, (name, keys, position, has_gauss, gauss), torchs = global_states()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "seed": torch.initial_seed(),
        "torch": torchs,
        "order": None if (order := order_generator()) is None else order.get_state(),
        "numpy": (name, torch.from_numpy(np.array(keys)), int(position), int(has_gauss), float(gauss)),
        "python": python,
        "cuda": torch.cuda.get_rng_state() if cuda else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the result of `random_state` in this process."""
    name, keys, *rest = state["numpy"]
    set_global_states((state["python"], (name, keys.numpy(), *rest), state["torch"]))
    if (order := order_generator()) is not None and state.get("order") is not None:
        order.set_state(state["order"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
