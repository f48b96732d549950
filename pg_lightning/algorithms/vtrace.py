"""V-trace actor-critic, the learner of IMPALA (Espeholt et al. 2018): corrects for actions of an older policy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import require
from pg_lightning.learning import Normalize, PolicyGradientModule, log_probs, make_batch
from pg_lightning.returns import vtrace
from pg_lightning.rollout import Rollout


class VTrace(PolicyGradientModule):
    """Actor and critic learn from rollouts of any older policy μ, weighted by truncated ratios π/μ.

    With `data.overlap` a rollout is one update old; a custom loader may provide older ones, with `log_probs` of the
    policy that acted. Without lag the ratios are 1, and with λ = 1 the update is that of A2C.

    Args:
        gae_lambda: λ of the targets (remark 2 of the paper).
        max_rho: ρ̄, at which the ratio in the TD error and in the policy gradient is truncated.
        max_c: c̄, at which the ratio that propagates a TD error backwards is truncated.
        normalize_advantage: standardise the advantages of a rollout over all ranks; with `per_rank`, on each rank
            separately.
        optimizer: `rmsprop` as in the paper, `adam`, or a class path.
        **kwargs: see `PolicyGradientModule`.
    """

    corrects_policy_lag = True
    corrects_any_lag = True

    def __init__(
        self,
        gae_lambda: float = 1.0,
        max_rho: float = 1.0,
        max_c: float = 1.0,
        normalize_advantage: Normalize = False,
        optimizer: ClassPath = "rmsprop",
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        require("model.max_rho", max_rho, 0, math.inf)
        require("model.max_c", max_c, 0, math.inf)
        self.gae_lambda = gae_lambda
        self.max_rho = max_rho
        self.max_c = max_c
        self.normalize_advantage = normalize_advantage

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −mean( ρ (r + γ v' − V) log π ), the squared error of V to v, and the entropy."""
        *targets, rho = self.learner.compute(self._targets, rollout)
        batch = make_batch(self.network, rollout, targets, self.normalize_advantage, self.learner.collectives)
        return self.learner.step(self.loss, batch) | {"train/rho": rho}

    def _targets(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advantages, targets v and values, `[T, N]` each, and the mean of ρ."""
        values, next_values = self.network.values(rollout)
        log_ratios = torch.zeros_like(values)
        if rollout.log_probs is not None:
            log_ratios = (log_probs(self.network, rollout) - rollout.log_probs).to(values.dtype)
        advantages, returns = vtrace(
            rollout.rewards,
            values,
            next_values,
            log_ratios,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            self.gamma,
            self.gae_lambda,
            self.max_rho,
            self.max_c,
        )
        rho = log_ratios.exp().clamp(max=self.max_rho) * rollout.valid
        return advantages, returns, values, rho.sum() / rollout.valid.sum()
