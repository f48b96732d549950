"""Asynchronous advantage actor-critic, A3C (Mnih et al. 2016): workers that share one set of weights."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pg_lightning.algorithms.base import OptimizerName, PolicyGradientModule
from pg_lightning.errors import UserError, require
from pg_lightning.networks.flat import FlatParameters
from pg_lightning.policies import RunningMeanVar
from pg_lightning.rollout import Rollout, Samples


class A3C(PolicyGradientModule):
    """A2C in each of W workers, `--trainer.strategy hogwild --trainer.devices W`, none of which waits for another.

    A worker copies the shared weights, plays a rollout and differentiates on its copy, and applies the gradient to the
    shared weights as they are by then (Algorithm S3). How many updates of others came in between is `train/staleness`.
    `network` is the worker's copy: what worker 0 evaluates and saves. Env steps are those of all workers, and so are
    the statistics of normalisers.

    Args:
        gae_lambda: λ of the advantage estimates; 1 for the n-step advantages of the paper.
        normalize_advantage: standardise the advantages of a rollout.
        optimizer: RMSprop as in the paper, or Adam.
        shared_statistics: the optimizer's moments are shared too ("Shared RMSProp" of the paper); else each worker has
            its own.
        locked: one worker at a time reads or writes the weights; else whoever comes, as in Hogwild (Recht et al. 2011).
        **kwargs: see `PolicyGradientModule`.
    """

    is_asynchronous = True

    def __init__(
        self,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        optimizer: OptimizerName = "rmsprop",
        shared_statistics: bool = True,
        locked: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, normalize_values=False, **kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        if self.lr_schedule == "plateau":
            raise UserError("model.lr_schedule: only worker 0 evaluates, so none waits for a plateau; use linear")
        self.gae_lambda = gae_lambda
        self.normalize_advantage = normalize_advantage
        self.shared_statistics = shared_statistics
        self.locked = locked
        # Made here, before the workers are forked, so that all of them write to the same memory.
        self._shared = SharedMemory(FlatParameters(self.network.parameter_groups()), self._normalizers())
        self._shared.share_moments(self._make_optimizer(self._shared.weights))
        self._sums: list[Tensor] = []
        self._copied_at = 0
        self._own_restarts = 0

    def setup(self, stage: str) -> None:
        """Refuses what the memory of one machine's CPUs cannot be shared over."""
        super().setup(stage)
        if stage == "fit" and (self.trainer.world_size > 1 or self.trainer.strategy.root_device.type != "cpu"):
            raise UserError(
                "trainer.strategy: A3C's workers share memory; set it to hogwild, trainer.accelerator to cpu"
            )
        if stage == "fit" and self.trainer.precision in ("64-true", "bf16-true", "16-true"):
            raise UserError("trainer.precision: A3C's shared weights are float32; use 32-true or bf16-mixed")

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """The gradient of A2C at the worker's copy, applied to the shared weights."""
        samples = self.samples(rollout, self.gae_lambda, self.normalize_advantage)
        metrics = self.policy_gradient_step(samples)
        with self._shared.lock:
            staleness = self._shared.updates - self._copied_at
            self._shared.updates += 1
        return metrics | {"train/staleness": staleness}

    def gradient_step(self, loss: Tensor, batch: Samples) -> Tensor:
        """One step of the shared weights along the gradient of the copy; returns the gradient's norm."""
        norm = self.backward_and_clip(loss, batch)
        if not norm.isfinite():  # before it reaches weights and moments that worker 0 may be about to save
            self._refuse_divergence({"train/grad_norm": norm})
        for weights, copy in zip(self._shared.weights, self._flat.groups, strict=True):
            weights.grad = copy.grad
        with self._exclusively():
            self._optimizer().step()
        return norm

    def learned_parameters(self) -> list[nn.Parameter]:
        """The shared weights of actor and critic."""
        return self._shared.weights

    def on_train_start(self) -> None:
        """The first worker to come brings what it has, be it from a checkpoint; all then share that."""
        super().on_train_start()
        self._own_restarts = 0
        shared = self._shared
        fit = getattr(self.trainer.strategy, "launched_at", time.monotonic_ns())
        with shared.lock:
            first = shared.fit != fit
            if first:
                shared.fit.fill_(fit)
                for weights, copy in zip(shared.weights, self._flat.groups, strict=True):
                    weights.data.copy_(copy.data)
                for sums, normalizer in zip(shared.sums, self._normalizers(), strict=True):
                    sums.copy_(normalizer.sums())
                shared.updates.fill_(self._policy_version)
                shared.env_steps.fill_(self.env_steps)
                shared.env_restarts.fill_(0)
                shared.over.fill_(False)
            if self.shared_statistics:
                shared.use_moments(self._optimizer().optimizer, first)
        self._sums = [normalizer.sums() for normalizer in self._normalizers()]
        self._copy()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Before the next rollout, and before an evaluation: the copy is fresh."""
        with self._shared.lock:
            for i, normalizer in enumerate(self._normalizers()):
                self._shared.sums[i] += normalizer.sums() - self._sums[i]
                normalizer.load_sums(self._shared.sums[i])
                self._sums[i] = self._shared.sums[i].clone()
        self._copy()
        self.trainer.should_stop |= bool(self._shared.over)

    def on_validation_end(self) -> None:
        """While worker 0 evaluated, the others went on."""
        if not self.trainer.sanity_checking:
            self._copy()

    def on_train_end(self) -> None:
        """Where worker 0 ends, all end."""
        if self.trainer.is_global_zero:
            self._shared.over.fill_(True)

    @torch.no_grad()
    def _copy(self) -> None:
        with self._exclusively():
            self._copied_at = int(self._shared.updates)
            for weights, copy in zip(self._shared.weights, self._flat.groups, strict=True):
                copy.copy_(weights)
        self._refuse_divergence({})  # of any worker: worker 0 is about to evaluate and to save

    def _count_env_steps(self, count: int) -> int:
        with self._shared.lock:
            self._shared.env_steps += count
            return int(self._shared.env_steps)

    def _count_restarts(self, count: int) -> int:
        with self._shared.lock:
            self._shared.env_restarts += count - self._own_restarts
            self._own_restarts = count
            return int(self._shared.env_restarts)

    def _exclusively(self) -> AbstractContextManager[Any]:
        return self._shared.lock if self.locked else nullcontext()

    def _normalizers(self) -> list[RunningMeanVar]:
        return [module for module in self.modules() if isinstance(module, RunningMeanVar)]


class SharedMemory:
    """What the workers have in common: tensors in memory that outlives no process, and a lock.

    Attributes:
        weights: of actor and critic, one vector each, see `FlatParameters`.
        sums: those of each normaliser, see `RunningMeanVar.sums`.
        updates: gradient steps of all workers.
        env_steps: of all workers.
        env_restarts: environments that all workers have replaced.
        fit: the call of `Trainer.fit` that the rest belongs to, told by when it began.
        over: worker 0 has ended: at the budget, or because a callback such as `EarlyStopping` said so.
    """

    def __init__(self, flat: FlatParameters, normalizers: list[RunningMeanVar]) -> None:
        self.weights = [nn.Parameter(group.detach().clone().share_memory_()) for group in flat.groups]
        self.sums = [normalizer.sums().share_memory_() for normalizer in normalizers]
        self.updates, self.env_steps, self.env_restarts, self.fit = (torch.tensor(0).share_memory_() for _ in range(4))
        self.over = torch.tensor(False).share_memory_()
        self.moments: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.lock = multiprocessing.get_context("fork").Lock()

    def share_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Lays out the moments that an optimizer will keep, by a step along no gradient."""
        for weights in self.weights:
            weights.grad = torch.zeros_like(weights)
        optimizer.step()
        for weights in self.weights:
            state = optimizer.state.get(weights, {})
            self.moments[weights] = {name: x.zero_().share_memory_() for name, x in state.items()}

    def use_moments(self, optimizer: torch.optim.Optimizer, bring: bool) -> None:
        """Has an optimizer keep its moments in shared memory; those that it comes with are brought there or dropped."""
        for group in optimizer.param_groups:
            for weights in group["params"]:
                for name, moment in self.moments[weights].items():
                    if bring:
                        moment.copy_(optimizer.state[weights].get(name, torch.zeros(())))
                optimizer.state[weights] = dict(self.moments[weights])
