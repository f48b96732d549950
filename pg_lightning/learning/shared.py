"""Shared weights for asynchronous workers: the learner of A3C, and the counters of all workers."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn, optim

from pg_lightning.collectives import Collectives
from pg_lightning.errors import UserError
from pg_lightning.learning.gradient import FlatGradient
from pg_lightning.learning.learner import Learner, check_update
from pg_lightning.learning.optimizers import OptimizerSettings, make_moments
from pg_lightning.learning.progress import Progress
from pg_lightning.policies import RunningMeanVar
from pg_lightning.rollout import Batch


class SharedWeights:
    """The shared state of the workers: tensors in memory that forked processes inherit, and a lock.

    Args:
        groups: parameters of `actor` and `critic`.
        normalizers: with statistics over all workers.

    Attributes:
        weights: of `actor` and `critic`, one vector each.
        sums: of each normaliser, see `RunningMeanVar.sums`.
        updates: gradient steps of all workers.
        env_steps: of all workers.
        env_restarts: environments that all workers have replaced.
        fit: the `Trainer.fit` call of the counters: its starting time, in nanoseconds.
        over: whether worker 0 has ended: at the budget, or because of a callback such as `EarlyStopping`.
    """

    def __init__(self, groups: Mapping[str, list[nn.Parameter]], normalizers: Sequence[RunningMeanVar]) -> None:
        vectors = FlatGradient(groups).groups
        self.weights = {
            name: nn.Parameter(vector.detach().clone().share_memory_()) for name, (vector,) in vectors.items()
        }
        self.sums = [normalizer.sums().share_memory_() for normalizer in normalizers]
        self.updates, self.env_steps, self.env_restarts, self.fit = (torch.tensor(0).share_memory_() for _ in range(4))
        self.over = torch.tensor(False).share_memory_()
        self.moments: dict[Tensor, dict[str, Tensor]] = {}
        self.lock = multiprocessing.get_context("fork").Lock()

    def share_moments(self, optimizers: Sequence[optim.Optimizer]) -> None:
        """Makes optimizers create their moments in shared memory."""
        for optimizer in optimizers:
            make_moments(optimizer)
            for stepped, state in optimizer.state.items():
                moments = {name: x for name, x in state.items() if isinstance(x, Tensor)}
                self.moments[stepped] = {name: x.share_memory_() for name, x in moments.items()}

    def use_moments(self, optimizer: optim.Optimizer, bring: bool) -> None:
        """Makes an optimizer keep its moments in shared memory; existing moments are copied there or dropped."""
        for group in optimizer.param_groups:
            for weights in group["params"]:
                moments = self.moments.get(weights, {})
                for name, moment in moments.items():
                    if bring:
                        moment.copy_(optimizer.state[weights].get(name, torch.zeros(())))
                optimizer.state[weights] = {**moments}


class SharedProgress(Progress):
    """Counts env steps and replaced environments of all workers.

    Args:
        total_steps: the budget of all workers together.
        shared: the counters.
    """

    def __init__(self, total_steps: int, shared: SharedWeights) -> None:
        super().__init__(total_steps)
        self.shared = shared
        self._own_restarts = 0

    def start(self, is_stopping: bool = False) -> None:
        """Starts training."""
        super().start(is_stopping)
        self._own_restarts = 0

    def advance(self, env_steps: int, restarts: int | None) -> None:
        """Counts an update of this worker."""
        self.updates += 1
        with self.shared.lock:
            self.shared.env_steps += env_steps
            self.env_steps = int(self.shared.env_steps)
            if restarts is not None:
                self.shared.env_restarts += restarts - self._own_restarts
                self._own_restarts = restarts
                self.restarts = int(self.shared.env_restarts)


class SharedLearner(Learner):
    """Computes gradients at the worker's copy of the weights and steps the current shared weights.

    Args:
        settings: optimizers, learning rates and schedule.
        progress: of all workers.
        shared: the weights of all workers.
        locked: one worker at a time reads or writes the weights.
        shares_moments: the moments of the optimizer are shared too.
        max_grad_norm: bound on the norm of a gradient.
        compiles: whether losses are compiled.
        micro_batch_size: rows of one backward pass.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        progress: SharedProgress,
        shared: SharedWeights,
        locked: bool,
        shares_moments: bool,
        max_grad_norm: float = 0.5,
        compiles: bool = False,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__(settings, progress, max_grad_norm, compiles, micro_batch_size)
        if not settings.is_elementwise or "NAdam" in settings.name:  # the state of NAdam starts with a 1
            raise UserError(f"model.optimizer: {settings.name} cannot step weights that workers share; use adam")
        self.needs_vectors = True  # as the shared weights are
        self.shared = shared
        self.locked = locked
        self.shares_moments = shares_moments
        shared.share_moments(self.make_optimizers())
        self._normalizers: list[RunningMeanVar] = []
        self._sums: list[Tensor] = []
        self._copied_at = 0

    def make_optimizers(self) -> list[optim.Optimizer]:
        """The optimizers of the shared weights."""
        return self.settings.make({name: [weights] for name, weights in self.shared.weights.items()})

    def weights(self) -> dict[str, list[Tensor]]:
        """The shared weights."""
        return {name: [weights.detach()] for name, weights in self.shared.weights.items()}

    def start(self, module: LightningModule, collectives: Collectives) -> None:
        """Starts training: the first worker copies its state, possibly from a checkpoint, to shared memory."""
        super().start(module, collectives)
        self._normalizers = [x for x in module.modules() if isinstance(x, RunningMeanVar)]
        shared, progress = self.shared, self.progress
        fit = getattr(module.trainer.strategy, "launched_at", time.monotonic_ns())
        with shared.lock:
            first = shared.fit != fit
            if first:
                shared.fit.fill_(fit)
                for weights, copy in self._pairs():
                    weights.data.copy_(copy.data)
                for sums, normalizer in zip(shared.sums, self._normalizers, strict=True):
                    sums.copy_(normalizer.sums())
                shared.updates.fill_(progress.updates)
                shared.env_steps.fill_(progress.env_steps)
                shared.env_restarts.fill_(0)
                shared.over.fill_(False)
            if self.shares_moments:
                for optimizer in self.rates.optimizers:
                    shared.use_moments(optimizer, bool(first))
        self._sums = [normalizer.sums() for normalizer in self._normalizers]
        self.copy_weights()

    def descend(self, batch: Batch) -> Tensor:
        """One step of the shared weights along the gradient of the copy; returns the gradient's norm."""
        norm = self.clip(batch)
        if not norm.isfinite():  # before it reaches weights and moments that worker 0 may save
            check_update(self, {"train/grad_norm": norm})
        for weights, copy in self._pairs():
            weights.grad = copy.grad
        with self._exclusively():
            self.step_optimizers()
        return norm

    def count_update(self) -> Tensor:
        """Counts an update of this worker; returns its staleness: updates by others since the weights were copied."""
        with self.shared.lock:
            staleness = self.shared.updates - self._copied_at
            self.shared.updates += 1
        return staleness

    def share_statistics(self) -> None:
        """Adds the data of this worker's normalisers to the shared sums, and copies the sums back."""
        with self.shared.lock:
            for i, normalizer in enumerate(self._normalizers):
                self.shared.sums[i] += normalizer.sums() - self._sums[i]
                normalizer.load_sums(self.shared.sums[i])
                self._sums[i] = self.shared.sums[i].clone()

    @torch.no_grad()
    def copy_weights(self) -> None:
        """Refreshes this worker's copy of the weights."""
        with self._exclusively():
            self._copied_at = int(self.shared.updates)
            for weights, copy in self._pairs():
                copy.copy_(weights)
        check_update(self, {})  # of any worker, because worker 0 is about to evaluate and to save

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Pairs of the shared weights of each group and this worker's copy."""
        return [(self.shared.weights[name], copy) for name, (copy,) in self.gradient.groups.items()]

    def _exclusively(self) -> AbstractContextManager[object]:
        return self.shared.lock if self.locked else nullcontext()
