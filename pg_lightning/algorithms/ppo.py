"""Proximal policy optimisation (Schulman et al. 2017): several epochs on one rollout, close to the old policy."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pg_lightning.errors import UserError, require
from pg_lightning.learning import Normalize, PolicyGradientModule, log_probs_of
from pg_lightning.losses import (
    approximate_kl,
    clipped_surrogate_loss,
    clipped_value_loss,
    kl_penalized_loss,
    value_loss,
)
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.statistics import explained_variance

Schedule = Literal["constant", "linear"]


class PPO(PolicyGradientModule):
    """PPO with the clipped surrogate objective, or with a penalty on KL(π_old ‖ π) in its place.

    Args:
        gae_lambda: λ of the advantage estimates; 0 is the TD error, 1 the Monte-Carlo return.
        num_epochs: passes over a rollout.
        num_minibatches: gradient steps per pass; must divide `data.num_steps * data.num_envs`.
        clip_range: ε, how far π/π_old may move from 1 before its gradient becomes 0.
        clip_schedule: `linear` reduces ε to 0 over the budget.
        ent_schedule: `linear` reduces `ent_coef` to 0 over the budget, so that a run may begin with a large bonus.
        clip_range_vf: clips the change of the value function too, in units of the (scaled) return; off if null.
        normalize_advantage: shift and scale the advantages of a rollout to mean 0 and standard deviation 1, over all
            ranks; with `per_rank`, on each rank separately.
        target_kl: ends an update when the estimated KL(π_old ‖ π) exceeds 1.5 times this; off if null.
        kl_penalty: β of the penalty (§4 of the paper), instead of clipping. With a `target_kl`, β is doubled after an
            update with a KL above 1.5 times the target and halved after one below the target / 1.5; no
            update ends early. A resumed run continues with its last β. `clip_range` is then only the threshold of
            `train/clip_fraction`.
        **kwargs: see `PolicyGradientModule`.
    """

    corrects_policy_lag = True
    needs_log_probs = True

    def __init__(
        self,
        gae_lambda: float = 0.95,
        num_epochs: int = 4,
        num_minibatches: int = 4,
        clip_range: float = 0.2,
        clip_schedule: Schedule = "constant",
        ent_schedule: Schedule = "constant",
        clip_range_vf: float | None = None,
        normalize_advantage: Normalize = True,
        target_kl: float | None = None,
        kl_penalty: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        require("model.num_epochs", num_epochs, 1)
        require("model.num_minibatches", num_minibatches, 1)
        require("model.clip_range", clip_range, 0)
        require("model.clip_range_vf", clip_range_vf or 0, 0)
        require("model.target_kl", target_kl or 0, 0)
        require("model.kl_penalty", kl_penalty or 0, 0)
        self.gae_lambda = gae_lambda
        self.num_epochs, self.num_minibatches = num_epochs, num_minibatches
        self.clip_range, self.clip_schedule, self.ent_schedule = clip_range, clip_schedule, ent_schedule
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self._clip_range: float | Tensor = clip_range
        self._entropy_weight: float | Tensor = self.ent_coef
        self.kl_penalty: Tensor | None
        self.register_buffer("kl_penalty", None if kl_penalty is None else torch.tensor(kl_penalty))

    def setup(self, stage: str) -> None:
        """Checks, before any environment starts, that the minibatches have equal sizes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or data is None:
            return
        if self.network.has_memory:
            if data.num_columns % self.num_minibatches:
                seats = "" if data.num_columns == data.num_envs else f", with their seats {data.num_columns}"
                raise UserError(
                    f"model.num_minibatches: minibatches of a recurrent policy are whole sequences, and "
                    f"{self.num_minibatches} does not divide data.num_envs {data.num_envs}{seats}"
                )
        elif (data.num_steps * data.num_envs) % self.num_minibatches and not data.whole_episodes:
            raise UserError(
                f"model.num_minibatches: {self.num_minibatches} does not divide a rollout of data.num_steps "
                f"{data.num_steps} x data.num_envs {data.num_envs} = {data.num_steps * data.num_envs} rows"
            )

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`num_epochs` x `num_minibatches` gradient steps on the surrogate: eq. 9 of the paper with eq. 7 or 8."""
        batch = self.targets(rollout, self.gae_lambda, self.normalize_advantage)
        if batch.old_log_probs is None:  # of your own targets
            batch.old_log_probs = self.learner.compute(log_probs_of, batch, self.network)
        clip_range = self.clip_range * (self.progress.remaining if self.clip_schedule == "linear" else 1.0)
        self._clip_range = self.learner.number(clip_range)
        ent_coef = self.ent_coef * (self.progress.remaining if self.ent_schedule == "linear" else 1.0)
        self._entropy_weight = self.learner.number(ent_coef) if self.ent_schedule == "linear" else self.ent_coef
        limit = 1.5 * self.target_kl if self.target_kl is not None and self.kl_penalty is None else math.inf
        self.learner.passes(self.loss, batch, self.num_epochs, self.num_minibatches, "train/approx_kl", limit)
        stats = self.learner.mean_stats()
        if self.is_logged:
            stats["train/explained_variance"] = explained_variance(batch.old_values, batch.returns)
        if self.ent_schedule == "linear":
            stats["train/ent_coef"] = torch.tensor(ent_coef, device=self.device)
        if self.kl_penalty is None:
            return stats | {"train/clip_range": torch.tensor(clip_range, device=self.device)}
        self._adapt_penalty(batch)
        return stats | {"train/kl_penalty": self.kl_penalty}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, the squared error of V and the entropy bonus; and the values to log."""
        pi, values = self.network(batch)
        log_ratio = pi.log_prob(batch.actions) - batch.old_log_probs
        if self.kl_penalty is None:
            policy_loss = clipped_surrogate_loss(log_ratio, batch.advantages, self._clip_range)
        else:
            policy_loss = kl_penalized_loss(log_ratio, batch.advantages, self.kl_penalty)
        if self.clip_range_vf is None:
            critic_loss = value_loss(values, batch.returns)
        else:
            critic_loss = clipped_value_loss(values, batch.old_values, batch.returns, self.clip_range_vf)
        loss = policy_loss + self.vf_coef * critic_loss
        metrics = {"train/policy_loss": policy_loss, "train/value_loss": critic_loss}
        if self.ent_coef or self.wants_metrics:
            metrics["train/entropy"] = pi.entropy().mean()
        if self.ent_coef:
            loss = loss - self._entropy_weight * metrics["train/entropy"]
        if self.wants_metrics or self.target_kl is not None:
            with torch.no_grad():
                metrics["train/approx_kl"] = approximate_kl(log_ratio)
                metrics["train/clip_fraction"] = (log_ratio.expm1().abs() > self._clip_range).float().mean()
        return loss, metrics

    @torch.no_grad()
    def _adapt_penalty(self, batch: Batch) -> None:
        """Sets β for the next update from the KL of this one (§4)."""
        if self.target_kl is None or self.kl_penalty is None or batch.old_log_probs is None:
            return
        log_ratio = log_probs_of(batch, self.network) - batch.old_log_probs
        kl = self.learner.mean(approximate_kl(log_ratio), batch)
        self.kl_penalty *= 2.0 if kl > 1.5 * self.target_kl else 0.5 if kl < self.target_kl / 1.5 else 1.0
        self.kl_penalty.clamp_(1e-6, 1e6)
