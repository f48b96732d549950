"""The learner: everything that happens to a gradient, behind two calls that an algorithm cannot get wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import overload

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn, optim

from pg_lightning.collectives import Alone, Collectives
from pg_lightning.errors import UserError
from pg_lightning.learning.divergence import refuse_divergence
from pg_lightning.learning.gradient import FlatGradient, Gradient, PerParameterGradient
from pg_lightning.learning.metrics import refuse_drift
from pg_lightning.learning.optimizers import LearningRates, OptimizerSettings
from pg_lightning.learning.progress import Progress
from pg_lightning.lightning_private import step_without_hooks
from pg_lightning.policies import RunningMeanVar
from pg_lightning.rollout import Samples

Stats = dict[str, Tensor]
Loss = Callable[[Samples], tuple[Tensor, Stats]]
Limit = tuple[str, float]  # of a statistic: its key, and what it must not pass
BACKWARD_HOOKS = ("on_before_backward", "backward", "on_after_backward")
STEP_HOOKS = ("on_before_optimizer_step",)


class Learner:
    """Forward, backward, average over ranks, unscale, clip, optimizer step.

        stats = self.learner.step(self.loss, batch)
        for minibatch in self.learner.minibatches(batch, num_epochs, num_minibatches):
            self.learner.step(self.loss, minibatch)

    With several ranks the gradient is the mean over the rows of all of them. Every rank takes equally many steps, one
    that has too few rows or none takes some without.

    Args:
        settings: optimizers, learning rates and schedule.
        progress: of the training, which schedules are functions of.
        max_grad_norm: bound on the norm of the whole gradient.
        compiles: whether losses are compiled.
        micro_batch_size: rows of one backward pass, for networks whose activations do not fit; None for all at once.

    Attributes:
        collectives: of this training; `Alone` until `start`.
        rates: the learning rates.
        gradient: flat, or tensor by tensor where an optimizer is not known to work element by element.
        rows: valid rows in the rollout of each rank.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        progress: Progress,
        max_grad_norm: float = 0.5,
        compiles: bool = False,
        micro_batch_size: int | None = None,
    ) -> None:
        if compiles and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("model.compile: there is no C++ compiler; install g++, or set it to false")
        self.settings = settings
        self.progress = progress
        self.max_grad_norm = max_grad_norm
        self.compiles = compiles
        self.micro_batch_size = micro_batch_size
        self.collectives: Collectives = Alone()
        self.gradient: Gradient
        self.rates: LearningRates
        self.rows = [0]
        self._losses: dict[Loss, Loss] = {}
        self._steps: list[tuple[int, Stats]] = []
        self._module: LightningModule | None = None
        self._backward_is_watched = self._step_is_watched = True

    def configure(self, groups: Mapping[str, list[nn.Parameter]]) -> LearningRates:
        """Takes the parameters of `actor` and `critic` as they are now, where they are now; makes the optimizers."""
        self.gradient = FlatGradient(groups) if self.settings.is_elementwise else PerParameterGradient(groups)
        self.rates = LearningRates(self.settings, self.make_optimizers())
        return self.rates

    def make_optimizers(self) -> list[optim.Optimizer]:
        """Those that step along the gradient."""
        return self.settings.make(self.gradient.groups)

    def start(self, module: LightningModule, collectives: Collectives) -> None:
        """When training begins: `module` is what hooks, precision and strategy are those of."""
        self.collectives = collectives
        self._module = module
        self._backward_is_watched = _are_watched(module, BACKWARD_HOOKS)
        self._step_is_watched = _are_watched(module, STEP_HOOKS)
        self._losses.clear()
        self.rates.start()

    def begin(self, rows: list[int]) -> None:
        """When an update begins.

        Args:
            rows: valid rows in the rollout of each rank.
        """
        self.rows = rows
        self._steps.clear()
        self.rates.before_update(self.progress.remaining)

    def end(self, metrics: Stats) -> None:
        """When an update has ended, before anything else sees the weights.

        Raises:
            UserError: if the update was not finite.
        """
        self.refuse_divergence(metrics)
        self.rates.after_update()

    def refuse_divergence(self, metrics: Stats) -> None:
        """Raises `UserError` where metrics or weights are not finite."""
        is_scaled = self._scaler is not None
        refuse_divergence(metrics, self.weights(), self.progress.env_steps, self.collectives.world_size, is_scaled)

    def weights(self) -> dict[str, list[Tensor]]:
        """What the optimizers change: the tensors of `actor` and `critic`."""
        return {name: [parameter.detach() for parameter in group] for name, group in self.gradient.groups.items()}

    def minibatches(self, batch: Samples, num_epochs: int, num_minibatches: int) -> Iterator[Samples]:
        """Those of `num_epochs` passes, each over a permutation of its own; equally many on every rank.

        With several ranks some minibatches may have no rows on this one: `step` takes them all the same.
        """
        if self.collectives.world_size == 1:
            return batch.epochs(num_epochs, num_minibatches)
        return batch.epochs(num_epochs, min(num_minibatches, max(self.rows)), keep_empty=True)

    @overload
    def step(self, loss: Loss, batch: Samples) -> Stats: ...
    @overload
    def step(self, loss: Loss, batch: Samples, limit: Limit | None) -> Stats | None: ...
    def step(self, loss: Loss, batch: Samples, limit: Limit | None = None) -> Stats | None:
        """One gradient step.

        Args:
            loss: maps a batch to a mean over its rows and the statistics to log of it.
            batch: the rows.
            limit: no step is taken where the mean of this statistic over the rows of all ranks is above its bound.

        Returns:
            The statistics of the loss and `train/grad_norm`, the norm of the gradient before the clip, as tensors that
            have not been synchronised; None where the limit has stopped it.
        """
        stats = self._backward(self._compiled(loss), batch, limit)
        if stats is None:
            return None
        stats["train/grad_norm"] = self.descend(batch)
        self._steps.append((len(batch), stats))
        return stats

    def mean_stats(self) -> Stats:
        """The mean of each statistic over the steps of this update, of those that had rows unless none had."""
        steps = [stats for rows, stats in self._steps if rows] or [stats for _, stats in self._steps]
        return {name: torch.stack([stats[name] for stats in steps]).mean() for name in steps[0]}

    def number(self, value: float) -> float | Tensor:
        """A number that a loss reads and that changes between updates: a compiled loss would recompile for a float."""
        return torch.tensor(value, device=self._device) if self.compiles else value

    def mean(self, value: Tensor, batch: Samples) -> Tensor:
        """The mean of a scalar over the rows of all ranks: decide by this, and all ranks decide alike."""
        return self.collectives.mean(value, len(batch))

    def mean_vector(self, vector: Tensor, batch: Samples) -> Tensor:
        """The mean of a vector `[P]` over the rows of all ranks, where `vector` is the mean over those of this rank."""
        message = torch.cat([vector, vector.new_zeros(1)])
        self.collectives.average_(message, self._share(batch))
        return message[:-1]

    def descend(self, batch: Samples) -> Tensor:
        """Averages the gradient over ranks, clips it and steps; returns its norm before the clip."""
        norm = self.clip(batch)
        self.step_optimizers()
        return norm

    def step_optimizers(self) -> None:
        """Steps along the gradient as it is."""
        optimizers = self._trained.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            if self._step_is_watched:
                optimizer.step()
            else:
                step_without_hooks(optimizer)

    def clip(self, batch: Samples) -> Tensor:
        """The gradient of the rows of all ranks, scaled down to the norm that is allowed; returns its norm before."""
        self.gradient.collect()
        self.gradient.average_(self._share(batch), self.collectives)
        norm = self.gradient.norm()
        scaler = self._scaler
        if scaler is not None:  # the step unscales the gradient, by a factor that a clip commutes with
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.gradient.scale_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _backward(self, loss_of: Loss, batch: Samples, limit: Limit | None) -> Stats | None:
        """Loss and gradient, in parts if there are too many rows."""
        self.gradient.zero()
        if self.micro_batch_size is None or len(batch) <= self.micro_batch_size:
            loss, stats = loss_of(batch)
            if self._is_past(limit, stats, batch):
                return None
            self._differentiate(loss)
            return stats
        sums: Stats = {}
        for part in batch.parts(self.micro_batch_size):
            share = len(part) / len(batch)
            loss, stats = loss_of(part)
            self._differentiate(loss * share)
            sums = {name: sums.get(name, 0.0) + share * value.detach() for name, value in stats.items()}
        return None if self._is_past(limit, sums, batch) else sums

    def _is_past(self, limit: Limit | None, stats: Stats, batch: Samples) -> bool:
        return limit is not None and bool(self.mean(stats[limit[0]], batch) > limit[1])

    def _differentiate(self, loss: Tensor) -> None:
        if self._backward_is_watched:
            self._trained.manual_backward(loss)
        else:
            loss.backward()

    def _compiled(self, loss: Loss) -> Loss:
        if not self.compiles:
            return loss
        if loss not in self._losses:
            self._losses[loss] = torch.compile(loss)
        return self._losses[loss]

    def refuse_drift(self, module: LightningModule) -> None:
        """Compares weights and statistics of the ranks; raises `UserError` on every rank if they differ."""
        buffers = [x for part in module.modules() if isinstance(part, RunningMeanVar) for x in part.buffers()]
        state = [x.detach() for x in module.parameters()] + [*module.buffers(recurse=False), *buffers]
        refuse_drift(state, self.progress.updates, type(module).__name__, self.collectives)

    def _share(self, batch: Samples) -> float:
        return len(batch) / max(1, sum(self.rows))

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self._trained.trainer.precision_plugin, "scaler", None)

    @property
    def _trained(self) -> LightningModule:
        assert self._module is not None
        return self._module

    @property
    def _device(self) -> torch.device:
        return next(iter(self.gradient.groups.values()))[0].device


def _are_watched(module: LightningModule, hooks: tuple[str, ...]) -> bool:
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
