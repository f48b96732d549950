"""Computes the gradient of a loss: eager or compiled, at once or in micro-batches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from pg_lightning.errors import UserError, one_line
from pg_lightning.learning.compiled import Loss, Stats, compiled
from pg_lightning.learning.compiled_step import CompiledStep
from pg_lightning.learning.gradient import FlatGradient, Gradient
from pg_lightning.rollout import Batch
from pg_lightning.statistics import explained_variance
from pg_lightning.torch_private import has_gradient_hooks

EXPLAINED = "train/explained_variance"
HOOKS = ("on_before_backward", "backward", "on_after_backward")


class Backward:
    """Computes a loss and its gradient.

    Args:
        compiles: whether to compile: the loss, or loss and gradient together if no hook is between them.
        micro_batch_size: rows per backward pass, if the activations do not fit into memory; None for all at once.

    Attributes:
        compiled: computes loss and gradient in one call, or None.

    Raises:
        UserError: if losses are to be compiled and there is no compiler.
    """

    def __init__(self, compiles: bool, micro_batch_size: int | None) -> None:
        if compiles and not has_compiler():
            raise UserError("model.compile: there is no C++ compiler; install g++, or set it to false")
        self.compiles = compiles
        self.micro_batch_size = micro_batch_size
        self.compiled: CompiledStep | None = None
        self._step: CompiledStep | None = None
        self._module: LightningModule | None = None
        self._is_watched = True
        self._losses: dict[Loss, Loss] = {}

    def start(self, module: LightningModule, gradient: Gradient) -> None:
        """Starts training with the hooks and the precision of `module`."""
        self._module = module
        self._is_watched = are_watched(module, HOOKS)
        self._losses.clear()
        self._step = None
        if self.compiles and not self._is_watched and isinstance(gradient, FlatGradient):
            self._step = CompiledStep(module, gradient)
        self.begin()

    def begin(self) -> None:
        """Starts an update: a hook on a gradient, which can be registered at any time, needs a backward pass."""
        step = self._step
        if step is not None:
            step.begin()
        self.compiled = None if step is None or any(map(has_gradient_hooks, step.gradient.parameters)) else step

    def is_at_once(self, rows: int) -> bool:
        """Whether so many rows are in one backward pass."""
        return self.micro_batch_size is None or rows <= self.micro_batch_size

    def __call__(
        self, loss_of: Loss, gradient: Gradient, batch: Batch, is_refused: Callable[[Stats], bool] | None = None
    ) -> Stats | None:
        """The statistics of a loss; None if they are refused.

        Args:
            loss_of: maps a batch to a mean over its rows and the statistics to log.
            gradient: receives the gradient of the loss.
            batch: the rows.
            is_refused: is called with the statistics over all rows; if it returns True, the gradient must not be used.
        """
        gradient.zero()
        if self.micro_batch_size is None or len(batch) <= self.micro_batch_size:
            stats = self._add(loss_of, gradient, batch, is_refused=is_refused)
        else:
            stats = {}
            for part in batch.parts(self.micro_batch_size or len(batch)):
                share = len(part) / len(batch)
                own = self._add(loss_of, gradient, part, share) or {}
                stats = {name: stats.get(name, 0.0) + share * value.detach() for name, value in own.items()}
            if EXPLAINED in stats:  # not a mean over rows
                stats[EXPLAINED] = explained_variance(batch.old_values, batch.returns)
            if is_refused is not None and is_refused(stats):
                stats = None
        if stats is not None:
            gradient.collect()
        return stats

    def _add(
        self,
        loss_of: Loss,
        gradient: Gradient,
        part: Batch,
        share: float = 1.0,
        is_refused: Callable[[Stats], bool] | None = None,
    ) -> Stats | None:
        """Adds the gradient of a loss times `share`, unless its statistics are refused."""
        found = None if self.compiled is None else self.compiled.of_loss.differentiate(loss_of, part)
        if found is not None and self.compiled is not None:
            vector, stats = found
            if is_refused is not None and is_refused(stats):
                return None
            self.compiled.gradient.add(vector if share == 1.0 else share * vector)
            return stats
        loss, stats = self._compiled(loss_of, part) if self.compiles else loss_of(part)
        if is_refused is not None and is_refused(stats):
            return None
        loss = loss if share == 1.0 else share * loss
        if self._is_watched and self._module is not None:
            self._module.manual_backward(loss)
        else:
            loss.backward()
        return stats

    def _compiled(self, loss: Loss, batch: Batch) -> tuple[Tensor, Stats]:
        if loss not in self._losses:
            self._losses[loss] = compiled(loss, batch.obs.device, whole=False)
        try:
            return self._losses[loss](batch)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = one_line(error)[:200]
                raise UserError(f"model.compile: cannot compile the loss: {reason}; set it to false") from error
            raise


def has_compiler() -> bool:
    """Whether compiled code for a CPU can be built."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def are_watched(module: LightningModule, hooks: tuple[str, ...]) -> bool:
    """Whether any callback, plugin or the module implements these hooks; if not, calling them has no effect.

    Precision plugins that do more than convert, and strategies other than the plain ones, count as implementing all.
    """
    trainer: Trainer = module.trainer
    plain = type(trainer.precision_plugin) in (Precision, DoublePrecision, HalfPrecision) and isinstance(
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
    """The scaler of the loss under 16-mixed, None in any other precision."""
    return getattr(module.trainer.precision_plugin, "scaler", None)
