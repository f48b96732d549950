"""REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024): a completion against the others of its prompt."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor

from pg_lightning.errors import require
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.learning.checks import groups_of
from pg_lightning.learning.targets import log_probs_by_parts, rows_per_column
from pg_lightning.returns import leave_one_out
from pg_lightning.rollout import Batch, Rollout


class RLOO(PolicyGradientModule):
    """A completion is one action: ∇J = E[ (R_i − mean of the other R_j) Σ_t ∇log π(a_t|s_t) ] over completions.

    The reward of a completion is R = r − β Σ_t (log π(a_t|s_t) − log π_ref(a_t|s_t)), whose mean is the reward minus
    β KL(π ‖ π_ref), so the gradient of the penalty is exact too.

    Args:
        kl_coef: β. The reference π_ref is the policy before training; it is not kept with 0.
        **kwargs: see `PolicyGradientModule`, except for the options of a critic and `gamma`.
    """

    has_critic = False
    needs_whole_episodes = True

    def __init__(self, kl_coef: float = 0.0, **kwargs: Any) -> None:
        super().__init__(gamma=1.0, critic_lr=None, critic_optimizer=None, vf_coef=0.0, **kwargs)
        require("model.kl_coef", kl_coef, 0)
        self.kl_coef = kl_coef
        self.reference = deepcopy(self.network).requires_grad_(False) if kl_coef else None

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −(1/N) Σ_i A_i Σ_t log π."""
        rewards = rollout.rewards * rollout.valid
        batch = Batch.of(rollout, rewards, rewards, rewards)
        metrics: dict[str, Tensor] = {}
        # A mean over the tokens of all ranks, times this, is one over completions of the sums over their tokens.
        tokens_per_completion = rows_per_column(self.learner.rows, rewards.shape[1])
        if self.reference is not None:
            size = self.learner.backward.micro_batch_size
            log_ratio = log_probs_by_parts(batch, self.network, size) - log_probs_by_parts(batch, self.reference, size)
            rewards[rollout.valid] -= self.kl_coef * log_ratio
            metrics["train/kl_to_reference"] = tokens_per_completion * log_ratio.mean()
        advantages = leave_one_out(rewards.sum(0), groups_of(rollout, "RLOO")).expand_as(rewards)[rollout.valid]
        batch.advantages = tokens_per_completion * advantages
        return self.learner.step(self.loss, batch) | metrics
