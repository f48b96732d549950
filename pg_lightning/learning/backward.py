"""From a loss function to a gradient: eager or compiled, at once or in micro-batches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.rollout import Batch
from pg_lightning.statistics import explained_variance

Stats = dict[str, Tensor]
Loss = Callable[[Batch], tuple[Tensor, Stats]]
EXPLAINED = "train/explained_variance"
HOOKS = ("on_before_backward", "backward", "on_after_backward")


class Backward:
    """Computes a loss and adds its gradient to the parameters.

    Args:
        compiles: whether losses are compiled.
        micro_batch_size: rows of one backward pass, for networks whose activations do not fit; None for all at once.

    Raises:
        UserError: if losses are to be compiled and there is no compiler.
    """

    def __init__(self, compiles: bool, micro_batch_size: int | None) -> None:
        if compiles and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("model.compile: there is no C++ compiler; install g++, or set it to false")
        self.compiles = compiles
        self.micro_batch_size = micro_batch_size
        self._module: LightningModule | None = None
        self._is_watched = True
        self._losses: dict[Loss, Loss] = {}

    def start(self, module: LightningModule) -> None:
        """When training begins: `module` is what hooks and precision are those of."""
        self._module = module
        self._is_watched = are_watched(module, HOOKS)
        self._losses.clear()

    def __call__(self, loss_of: Loss, batch: Batch, is_refused: Callable[[Stats], bool] | None = None) -> Stats | None:
        """The statistics of a loss, whose gradient is in the parameters then; None where they are refused.

        Args:
            loss_of: maps a batch to a mean over its rows and the statistics to log of it.
            batch: the rows.
            is_refused: told the statistics over all rows; where it says so the gradient is not to be used.
        """
        if self.compiles:
            loss_of = self._compiled(loss_of)
        if self.micro_batch_size is None or len(batch) <= self.micro_batch_size:
            loss, stats = loss_of(batch)
            if is_refused is not None and is_refused(stats):
                return None
            self._differentiate(loss)
            return stats
        sums: Stats = {}
        for part in batch.parts(self.micro_batch_size):
            share = len(part) / len(batch)
            loss, stats = loss_of(part)
            self._differentiate(loss * share)
            sums = {name: sums.get(name, 0.0) + share * value.detach() for name, value in stats.items()}
        if EXPLAINED in sums:  # which is no mean over rows
            sums[EXPLAINED] = explained_variance(batch.old_values, batch.returns)
        return None if is_refused is not None and is_refused(sums) else sums

    def _differentiate(self, loss: Tensor) -> None:
        if self._is_watched and self._module is not None:
            self._module.manual_backward(loss)
        else:
            loss.backward()

    def _compiled(self, loss: Loss) -> Loss:
        if loss not in self._losses:
            self._losses[loss] = torch.compile(loss)
        return self._losses[loss]


def are_watched(module: LightningModule, hooks: tuple[str, ...]) -> bool:
    """Whether anyone implements these hooks: if not, Lightning would only ask every callback in vain.

    Precision plugins and strategies other than the plain ones are taken to implement each.
    """
    trainer: Trainer = module.trainer
    plain = type(trainer.precision_plugin) is Precision and isinstance(
        trainer.strategy, (SingleDeviceStrategy, DDPStrategy)
    )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    listeners = [(module, LightningModule), *((callback, Callback) for callback in callbacks)]
    return not plain or any(
        hook in vars(x) or getattr(type(x), hook) is not getattr(base, hook)
        for x, base in listeners
        for hook in hooks
        if hasattr(base, hook)
    )


def loss_scaler(module: LightningModule) -> torch.amp.GradScaler | None:
    """What scales the loss under 16-mixed, None in any other precision."""
    return getattr(module.trainer.precision_plugin, "scaler", None)
