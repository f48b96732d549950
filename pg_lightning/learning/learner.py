"""The learner: everything that happens to a gradient, behind two calls that an algorithm cannot get wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn, optim

from pg_lightning.collectives import Alone, Collectives
from pg_lightning.learning.backward import Backward, are_watched, loss_scaler
from pg_lightning.learning.compiled import CompiledStep, Loss, Stats
from pg_lightning.learning.divergence import refuse_divergence
from pg_lightning.learning.gradient import FlatGradient, Gradient, PerParameterGradient
from pg_lightning.learning.optimizers import LearningRates, OptimizerSettings
from pg_lightning.learning.progress import Progress
from pg_lightning.lightning_private import count_step, step_without_hooks
from pg_lightning.rollout import Batch

STEP_HOOKS = ("on_before_optimizer_step",)


class Learner:
    """Forward, backward, average over ranks, unscale, clip, optimizer step.

        stats = self.learner.step(self.loss, batch)
        for minibatch in self.learner.minibatches(batch, num_epochs, num_minibatches):
            self.learner.step(self.loss, minibatch)

    With several ranks the gradient is the mean over the rows of all of them. Every rank takes equally many steps; one
    that has too few rows, or none, takes some without.

    Args:
        settings: optimizers, learning rates and schedule.
        progress: of the training, which schedules are functions of.
        max_grad_norm: bound on the norm of the whole gradient.
        compiles: whether losses are compiled.
        micro_batch_size: rows of one backward pass; None for all at once.

    Attributes:
        collectives: of this training; `Alone` until `start`.
        module: what hooks, precision and optimizers are those of, from `start` on.
        rates: the learning rates.
        gradient: flat, or tensor by tensor where an optimizer is not known to work element by element.
        rows: valid rows in the rollout of each rank.
    """

    module: LightningModule
    gradient: Gradient
    rates: LearningRates

    def __init__(
        self,
        settings: OptimizerSettings,
        progress: Progress,
        max_grad_norm: float = 0.5,
        compiles: bool = False,
        micro_batch_size: int | None = None,
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.max_grad_norm = max_grad_norm
        self.backward = Backward(compiles, micro_batch_size)
        self.collectives: Collectives = Alone()
        self.rows = [0]
        self.steps: list[tuple[int, Stats]] = []
        self._step_is_watched = True
        self._one_call: CompiledStep | None = None

    @property
    def compiles(self) -> bool:
        """Whether losses are compiled."""
        return self.backward.compiles

    def configure(self, groups: Mapping[str, list[nn.Parameter]]) -> LearningRates:
        """Takes the parameters of `actor` and `critic` as they are now, where they are now; makes the optimizers."""
        self.gradient = FlatGradient(groups) if self.settings.is_elementwise else PerParameterGradient(groups)
        self.rates = LearningRates(self.settings, self.make_optimizers())
        return self.rates

    def make_optimizers(self) -> list[optim.Optimizer]:
        """Those that step along the gradient."""
        return self.settings.make(self.gradient.groups)

    def start(self, module: LightningModule, collectives: Collectives) -> None:
        """When training begins."""
        self.module = module
        self.collectives = collectives
        self.backward.start(module, self.gradient, self.max_grad_norm)
        self._step_is_watched = are_watched(module, STEP_HOOKS)
        self.rates.start()
        # Where nothing comes between the backward pass and the optimizer: no other rank, no callback.
        compiled, alone = self.backward.compiled, collectives.world_size == 1 and not self._step_is_watched
        is_one_call = compiled is not None and alone and compiled.can_step(self.rates.optimizers)
        self._one_call = compiled if is_one_call else None

    def begin(self, rows: list[int]) -> None:
        """When an update begins, from rollouts with so many valid rows on each rank."""
        self.rows = rows
        self.steps.clear()
        self.rates.before_update(self.progress.remaining)

    def end(self, metrics: Stats) -> None:
        """When an update has ended, before anything else sees the weights.

        Raises:
            UserError: if the update was not finite.
        """
        self.refuse_divergence(metrics)
        self.rates.after_update()

    def minibatches(self, batch: Batch, num_epochs: int, num_minibatches: int) -> Iterator[Batch]:
        """Those of `num_epochs` passes, each over a permutation of its own; equally many on every rank.

        With several ranks some minibatches may have no rows on this one: `step` takes them all the same.
        """
        if self.collectives.world_size == 1:
            return batch.epochs(num_epochs, num_minibatches)
        return batch.epochs(num_epochs, min(num_minibatches, max(self.rows)), keep_empty=True)

    def step(self, loss: Loss, batch: Batch) -> Stats:
        """One gradient step.

        Args:
            loss: maps a batch to a mean over its rows and the statistics to log of it.
            batch: the rows.

        Returns:
            The statistics of the loss and `train/grad_norm`, the norm of the gradient before the clip, as tensors that
            have not been synchronised.
        """
        self.step_unless(loss, batch)
        return self.steps[-1][1]

    def step_unless(self, loss: Loss, batch: Batch, name: str = "", limit: float = math.inf) -> bool:
        """One gradient step, unless the mean of a statistic over the rows of all ranks passes a limit.

        Args:
            loss: as for `step`.
            batch: the rows.
            name: of the statistic; with a limit of ∞ none is looked at.
            limit: what it must not pass.

        Returns:
            Whether the step was taken.
        """

        def is_past(stats: Stats) -> bool:
            return bool(self.mean(stats[name], batch) > limit)

        if self._one_call is not None and limit == math.inf and self.backward.is_at_once(batch):
            stats = self._one_call.step(loss, batch)
            for optimizer in _optimizers_of(self.module):
                count_step(optimizer)
            self.steps.append((len(batch), stats))
            return True
        taken = self.backward(loss, self.gradient, batch, None if limit == math.inf else is_past)
        if taken is None:
            return False
        stats = {name: value.detach() for name, value in taken.items()}  # else they would keep the graph
        stats["train/grad_norm"] = self.descend(batch)
        self.steps.append((len(batch), stats))
        return True

    def mean_stats(self) -> Stats:
        """The mean of each statistic over the steps of this update, of those that had rows unless none had."""
        steps = [stats for rows, stats in self.steps if rows] or [stats for _, stats in self.steps]
        return {name: torch.stack([stats[name] for stats in steps]).mean() for name in steps[0]}

    def number(self, value: float) -> float | Tensor:
        """A number that a loss reads and that changes between updates: a compiled loss would recompile for a float."""
        return torch.tensor(value, device=next(iter(self.weights().values()))[0].device) if self.compiles else value

    def mean(self, value: Tensor, batch: Batch) -> Tensor:
        """The mean of a scalar over the rows of all ranks: decide by this, and all ranks decide alike."""
        return self.collectives.mean(value, len(batch))

    def mean_vector(self, vector: Tensor, batch: Batch) -> Tensor:
        """The mean of a vector `[P]` over the rows of all ranks, where `vector` is the mean over those of this rank."""
        message = torch.cat([vector, vector.new_zeros(1)])
        self.collectives.average_(message, self._share(batch))
        return message[:-1]

    def descend(self, batch: Batch) -> Tensor:
        """Averages the gradient over ranks, clips it and steps; returns its norm before the clip."""
        norm = self.clip(batch)
        self.step_optimizers()
        return norm

    def clip(self, batch: Batch) -> Tensor:
        """The gradient of the rows of all ranks, scaled down to the norm that is allowed; returns its norm before."""
        if self.collectives.world_size > 1:
            self.gradient.average_(self._share(batch), self.collectives)
        norm = self.gradient.norm()
        scaler = loss_scaler(self.module)
        if scaler is not None:  # the step unscales the gradient, by a factor that a clip commutes with
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.gradient.scale_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step_optimizers(self) -> None:
        """Steps along the gradient as it is."""
        for optimizer in _optimizers_of(self.module):
            if self._step_is_watched:
                optimizer.step()
            else:
                step_without_hooks(optimizer)

    def weights(self) -> dict[str, list[Tensor]]:
        """What the optimizers change: the tensors of `actor` and `critic`."""
        return {name: [parameter.detach() for parameter in group] for name, group in self.gradient.groups.items()}

    def refuse_divergence(self, metrics: Stats) -> None:
        """Raises `UserError` where metrics or weights are not finite."""
        is_scaled = loss_scaler(self.module) is not None
        refuse_divergence(metrics, self.weights(), self.progress.env_steps, self.collectives.world_size, is_scaled)

    def _share(self, batch: Batch) -> float:
        return len(batch) / max(1, sum(self.rows))


def _optimizers_of(module: LightningModule) -> list[LightningOptimizer]:
    optimizers = module.optimizers()
    return optimizers if isinstance(optimizers, list) else [optimizers]
