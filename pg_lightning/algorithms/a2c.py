"""Advantage actor-critic, synchronous (Mnih et al. 2016 without asynchrony): many environments, a few steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import require
from pg_lightning.learning import Normalize, PolicyGradientModule
from pg_lightning.rollout import Rollout


class A2C(PolicyGradientModule):
    """Actor and critic learn from advantages over several steps.

    With λ = 1 these are the n-step advantages of the paper, r_t + γ r_{t+1} + … + γ^k V(s_{t+k}) − V(s_t), up to the
    end of the rollout of `data.num_steps` (Algorithm S3); with λ < 1 they are GAE(λ) (Schulman et al. 2016, eq. 16).

    Args:
        gae_lambda: λ of the advantage estimates.
        normalize_advantage: standardise the advantages of a rollout over all ranks; with `per_rank`, on each rank
            separately.
        optimizer: `rmsprop` as in the paper, `adam`, or a class path.
        **kwargs: see `PolicyGradientModule`.
    """

    def __init__(
        self,
        gae_lambda: float = 1.0,
        normalize_advantage: Normalize = False,
        optimizer: ClassPath = "rmsprop",
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        self.gae_lambda = gae_lambda
        self.normalize_advantage = normalize_advantage

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −mean( A log π ), the squared error of V and the entropy."""
        batch = self.targets(rollout, self.gae_lambda, self.normalize_advantage)
        return self.learner.step(self.loss, batch)
