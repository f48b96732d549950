"""Asynchronous advantage actor-critic, A3C (Mnih et al. 2016): workers that share one set of weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import UserError, require
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.learning.shared import SharedLearner, SharedProgress, SharedWeights
from pg_lightning.policies import RunningMeanVar
from pg_lightning.rollout import Rollout


class A3C(PolicyGradientModule):
    """A2C in each of W asynchronous workers, `--trainer.strategy hogwild --trainer.devices W`.

    A worker copies the shared weights, collects a rollout, computes the gradient at its copy, and applies it to the
    current shared weights (Algorithm S3). `train/staleness` counts the updates by other workers in between.
    `network` is the worker's copy; worker 0 evaluates and saves its own. Env steps and the statistics of normalisers
    are those of all workers.

    Args:
        gae_lambda: λ of the advantage estimates; 1 for the n-step advantages of the paper.
        normalize_advantage: standardise the advantages of a rollout.
        optimizer: `rmsprop` as in the paper, `adam`, or a class path.
        shared_statistics: the optimizer's moments are shared too ("Shared RMSProp" of the paper); otherwise each worker
            has its own.
        locked: one worker at a time reads or writes the weights; otherwise without a lock, as in Hogwild (Recht et al.
            2011).
        **kwargs: see `PolicyGradientModule`.

    Attributes:
        shared: weights, statistics and counters of all workers.
    """

    is_asynchronous = True
    learner: SharedLearner

    def __init__(
        self,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        optimizer: ClassPath = "rmsprop",
        shared_statistics: bool = True,
        locked: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, normalize_values=False, **kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        alone = self.learner
        if alone.settings.schedule == "plateau":
            raise UserError("model.lr_schedule: plateau needs evaluations in every worker; use linear")
        self.gae_lambda = gae_lambda
        self.normalize_advantage = normalize_advantage
        # Created before the workers are forked, so that all of them use the same memory.
        normalizers = [module for module in self.modules() if isinstance(module, RunningMeanVar)]
        self.shared = SharedWeights(self.parameter_groups(), normalizers)
        self.progress = self.actor.progress = SharedProgress(self.total_steps, self.shared)
        self.learner = SharedLearner(
            alone.settings,
            self.progress,
            self.shared,
            locked,
            shared_statistics,
            alone.max_grad_norm,
            alone.compiles,
            alone.backward.micro_batch_size,
        )

    def setup(self, stage: str) -> None:
        """Refuses strategies, devices and precisions that cannot share the weights in the memory of one machine."""
        super().setup(stage)
        if stage == "fit" and (self.trainer.world_size > 1 or self.trainer.strategy.root_device.type != "cpu"):
            raise UserError(
                "trainer.strategy: A3C needs workers with shared memory; set it to hogwild, trainer.accelerator to cpu"
            )
        if stage == "fit" and self.trainer.precision in ("64-true", "bf16-true", "16-true"):
            raise UserError("trainer.precision: A3C's shared weights are float32; use 32-true or bf16-mixed")

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """The gradient of A2C at the worker's copy, applied to the shared weights."""
        batch = self.targets(rollout, self.gae_lambda, self.normalize_advantage)
        stats = self.learner.step(self.loss, batch)
        return stats | {"train/staleness": self.learner.count_update()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Refreshes the copy before the next rollout, and before an evaluation."""
        self.learner.share_statistics()
        self.learner.copy_weights()
        self.trainer.should_stop |= bool(self.shared.over)

    def on_validation_end(self) -> None:
        """Refreshes the copy of worker 0 after an evaluation, during which the other workers made updates."""
        if not self.trainer.sanity_checking:
            self.learner.copy_weights()

    def on_train_end(self) -> None:
        """Ends all workers when worker 0 ends."""
        if self.trainer.is_global_zero:
            self.shared.over.fill_(True)
