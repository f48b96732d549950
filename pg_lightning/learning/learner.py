"""The learner: all steps from a loss to the optimizer, behind two calls that are safe on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn, optim

from pg_lightning.collectives import Alone, Collectives
from pg_lightning.learning.backward import Backward, are_watched, loss_scaler
from pg_lightning.learning.compiled import Loss, Stats, compiled
from pg_lightning.learning.compiled_step import MANY_ROWS, CompiledStep
from pg_lightning.learning.divergence import refuse_divergence
from pg_lightning.learning.gradient import Gradient, make_gradient
from pg_lightning.learning.metrics import means
from pg_lightning.learning.optimizers import LearningRates, OptimizerSettings
from pg_lightning.learning.progress import Progress
from pg_lightning.lightning_private import count_step, step_without_hooks
from pg_lightning.processes import order_generator
from pg_lightning.rollout import Batch, Rollout

Result = TypeVar("Result")
STEP_HOOKS = ("on_before_optimizer_step",)
# Several steps in a compiled call take longer to compile. With many rows, the overhead of a call does not matter.
MAX_STEPS = 4


class Learner:
    """Forward, backward, average over ranks, unscale, clip, optimizer step.

        stats = self.learner.step(self.loss, batch)
        self.learner.passes(self.loss, batch, num_epochs, num_minibatches)

    With several ranks the gradient is the mean over the rows of all ranks. Every rank takes the same number of steps,
    some without rows if it has too few.

    Args:
        settings: optimizers, learning rates and schedule.
        progress: of the training, which determines the schedules.
        max_grad_norm: bound on the norm of the whole gradient.
        compiles: whether losses are compiled.
        micro_batch_size: rows per backward pass; None for all at once.

    Attributes:
        collectives: of this training; `Alone` until `start`.
        module: with the hooks, precision and optimizers, from `start` on.
        rates: the learning rates.
        gradient: flat, or per parameter: see `make_gradient`.
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
        self.compiles = self.needs_vectors = compiles
        self.backward = Backward(compiles, micro_batch_size)
        self.collectives: Collectives = Alone()
        self.rows = [0]
        self.steps: list[tuple[int, Stats]] = []
        self._step_is_watched = True
        self._may_be_one_call = False
        self._one_call: CompiledStep | None = None
        self._functions: dict[Callable[..., object], Callable[..., object]] = {}

    def configure(self, groups: Mapping[str, list[nn.Parameter]]) -> LearningRates:
        """Sets the parameters of `actor` and `critic`, in their current place; creates the optimizers."""
        self.gradient = make_gradient(groups, self.settings.is_elementwise, self.needs_vectors)
        self.rates = LearningRates(self.settings, self.make_optimizers())
        return self.rates

    def make_optimizers(self) -> list[optim.Optimizer]:
        """The optimizers of the gradient step."""
        return self.settings.make(self.gradient.groups)

    def start(self, module: LightningModule, collectives: Collectives) -> None:
        """Starts training."""
        self.module = module
        self.collectives = collectives
        self.backward.start(module, self.gradient)
        self._step_is_watched = are_watched(module, STEP_HOOKS)
        self.rates.start()
        # If nothing is between the backward pass and the optimizers, and no one has replaced these.
        optimizers = [x.optimizer for x in _optimizers_of(module)]
        alone = collectives.world_size == 1 and not self._step_is_watched and optimizers == self.rates.optimizers
        step = self.backward.compiled
        self._may_be_one_call = alone and step is not None and step.can_step(optimizers)
        self._functions.clear()

    def begin(self, rows: list[int]) -> None:
        """Starts an update on rollouts with this number of valid rows on each rank."""
        self.rows = rows
        self.steps.clear()
        if self.compiles:
            self.backward.begin()
            step = self.backward.compiled if self._may_be_one_call else None
            self._one_call = step if step is not None and step.is_current() else None
        self.rates.before_update(self.progress.remaining)

    def end(self, metrics: Stats) -> None:
        """Ends an update, before anything else sees the weights.

        Raises:
            UserError: if the update was not finite.
        """
        check_update(self, metrics)
        self.rates.after_update()

    def minibatches(self, batch: Batch, num_epochs: int, num_minibatches: int) -> Iterator[Batch]:
        """The minibatches of `num_epochs` passes, each with its own permutation; the same number on every rank.

        With several ranks some minibatches may have no rows on this rank: pass them to `step` like all others.
        """
        if self.collectives.world_size == 1:
            return batch.epochs(num_epochs, num_minibatches)
        return batch.epochs(num_epochs, min(num_minibatches, max(self.rows)), True, order_generator())

    def passes(
        self,
        loss: Loss,
        batch: Batch,
        num_epochs: int,
        num_minibatches: int,
        name: str = "",
        limit: float = math.inf,
    ) -> None:
        """A gradient step on each minibatch of several passes, as `step` on all of `minibatches`.

        Compiled, several steps are one call.

        Args:
            loss: as for `step`.
            batch: the rows.
            num_epochs: number of passes.
            num_minibatches: gradient steps per pass.
            name: of a statistic of the loss.
            limit: before any step but the first, the passes end if the mean of the statistic over the rows of all ranks
                exceeds this; with ∞ it is not computed.
        """
        call, size = self._one_call, len(batch) // num_minibatches
        has_equal_parts = size > 0 and size * num_minibatches == len(batch) and batch.sequences is None
        if call is None or not call.network_is_ours or not has_equal_parts or limit < math.inf:
            for i, minibatch in enumerate(self.minibatches(batch, num_epochs, num_minibatches)):
                if not self._step(loss, minibatch, name, limit if i else math.inf):
                    return
            return
        steps = steps_per_call(size, num_minibatches)
        for _ in range(num_epochs):
            for rows in torch.randperm(len(batch)).to(batch.advantages.device).split(steps * size):
                if not self._step_at_once(call, loss, batch, steps, rows):
                    for part in rows.split(size):
                        self._step(loss, batch[part])

    def step(self, loss: Loss, batch: Batch) -> Stats:
        """One gradient step.

        Args:
            loss: maps a batch to a mean over its rows and the statistics to log.
            batch: the rows.

        Returns:
            The statistics of the loss and `train/grad_norm`, the norm of the gradient before the clip, as device
            tensors, not yet synchronised.
        """
        self._step(loss, batch)
        return self.steps[-1][1]

    def _step(self, loss: Loss, batch: Batch, name: str = "", limit: float = math.inf) -> bool:
        """Takes a gradient step, unless the mean of a statistic exceeds a limit; returns whether it did."""

        def is_past(stats: Stats) -> bool:
            return bool(self.mean(stats[name], batch) > limit)

        if self._one_call is not None and limit == math.inf and self._step_at_once(self._one_call, loss, batch):
            return True
        taken = self.backward(loss, self.gradient, batch, None if limit == math.inf else is_past)
        if taken is None:
            return False
        stats = {name: value.detach() for name, value in taken.items()}  # otherwise they would keep the graph
        stats["train/grad_norm"] = self.descend(batch)
        self.steps.append((len(batch), stats))
        return True

    def _step_at_once(
        self, step: CompiledStep, loss: Loss, batch: Batch, num_steps: int = 1, rows: Tensor | None = None
    ) -> bool:
        """Takes gradient steps on equal parts of a batch, or of some of its rows, in one compiled call; returns whether
        it could."""
        size = len(batch) if rows is None else len(rows)
        if not self.backward.is_at_once(size // num_steps):
            return False
        stats = step.step(loss, batch, self.max_grad_norm, num_steps, rows)
        if stats is None:
            return False
        for optimizer in _optimizers_of(self.module) * num_steps:
            count_step(optimizer)
        self.steps += [(size // len(stats), of_part) for of_part in stats]
        return True

    @torch.no_grad()
    def compute(self, function: Callable[..., Result], data: Rollout | Batch, *arguments: object) -> Result:
        """The result of a function of a rollout or a batch and other arguments, without gradient.

        It is compiled if gradient steps are and the network is this package's; the rollout is then `padded`, which only
        a network that mixes rows would notice.
        """
        step = self.backward.compiled
        if step is None or not step.network_is_ours:
            return function(data, *arguments)
        if function not in self._functions:
            self._functions[function] = compiled(function, data.obs.device, whole=False)
        return cast(Result, self._functions[function](data if isinstance(data, Batch) else data.padded(), *arguments))

    def mean_stats(self) -> Stats:
        """The mean of each statistic over the steps of this update that had rows; over all steps if none had rows."""
        steps = [stats for rows, stats in self.steps if rows] or [stats for _, stats in self.steps]
        return means(steps, at_once=self._one_call is not None)

    def number(self, value: float) -> float | Tensor:
        """A changing number in a loss, as a tensor if compiled: a changing float would cause recompilation."""
        return torch.tensor(value, device=self.module.device) if self.compiles else value

    def mean(self, value: Tensor, batch: Batch) -> Tensor:
        """The mean of a scalar over the rows of all ranks; base decisions on it, so that all ranks branch alike."""
        return self.collectives.mean(value, len(batch))

    def mean_vector(self, vector: Tensor, batch: Batch) -> Tensor:
        """The mean of a vector `[P]` over the rows of all ranks, where `vector` is the mean over those of this rank."""
        message = torch.cat([vector, vector.new_zeros(1)])
        self.collectives.average_(message, _share(batch, self.rows))
        return message[:-1]

    def descend(self, batch: Batch) -> Tensor:
        """Averages the gradient over ranks, clips it and steps; returns its norm before the clip."""
        norm = self.clip(batch)
        self.step_optimizers()
        return norm

    def clip(self, batch: Batch) -> Tensor:
        """Clips the gradient of the rows of all ranks to the maximum norm; returns its norm before the clip."""
        if self.collectives.world_size > 1:
            self.gradient.average_(_share(batch, self.rows), self.collectives)
        norm = self.gradient.norm()
        scaler = loss_scaler(self.module)
        if scaler is not None:  # the step unscales the gradient by a factor, which commutes with the clip
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.gradient.scale_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step_optimizers(self) -> None:
        """Steps the optimizers with the current gradient."""
        for optimizer in _optimizers_of(self.module):
            if self._step_is_watched:
                optimizer.step()
            else:
                step_without_hooks(optimizer)

    def weights(self) -> dict[str, list[Tensor]]:
        """The tensors of `actor` and `critic` that the optimizers change."""
        return {name: [parameter.detach() for parameter in group] for name, group in self.gradient.groups.items()}


def check_update(learner: Learner, metrics: Stats) -> None:
    """Raises `UserError` if metrics or weights are not finite."""
    is_scaled = loss_scaler(learner.module) is not None
    ranks = learner.collectives.world_size
    refuse_divergence(metrics, learner.weights(), learner.progress.env_steps, ranks, is_scaled)


def _optimizers_of(module: LightningModule) -> list[LightningOptimizer]:
    optimizers = module.optimizers()
    return optimizers if isinstance(optimizers, list) else [optimizers]


def _share(batch: Batch, rows: list[int]) -> float:
    """Of the rows of all ranks."""
    return len(batch) / max(1, sum(rows))


def steps_per_call(rows: int, num_minibatches: int) -> int:
    """Number of gradient steps of a compiled call: it divides `num_minibatches`, which have `rows` rows each."""
    if rows > MANY_ROWS:
        return 1
    return max(k for k in range(1, MAX_STEPS + 1) if num_minibatches % k == 0)
