"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath), and its corrections as options."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

from pg_lightning.errors import require
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.learning.checks import groups_of
from pg_lightning.learning.targets import TokenNormalizer, log_probs_by_parts, rows_per_column, sequence_weights
from pg_lightning.losses import KLEstimator, clipped_surrogate_loss, kl_estimate
from pg_lightning.returns import group_moments
from pg_lightning.rollout import Batch, Rollout

STD_EPSILON = 1e-4


class GRPO(PolicyGradientModule):
    """PPO's clipped surrogate without a critic: the advantage of a completion is its reward, standardised in its group.

        A_i = (R_i − mean R) / (std R + 1e-4),   the same for all tokens of completion i

    Args:
        num_epochs: passes over a rollout.
        num_minibatches: gradient steps per pass; each has whole completions.
        clip_range: ε of the ratio.
        clip_range_high: another ε for the upper bound (Yu et al. 2025, DAPO); by default the same.
        scale_advantage: divide by the standard deviation of the group. It gives prompts that are almost always or
            almost never solved more weight, which biases the gradient; without it, A is unbiased up to the factor
            (K − 1)/K (Liu et al. 2025, Dr. GRPO).
        normalizer: of the loss of N completions with L_i tokens: `sequence`, 1/N Σ_i 1/L_i Σ_t, in which each token of
            a short completion has more weight (Shao et al. 2024); `tokens`, 1/Σ_i L_i Σ_i Σ_t (DAPO); `constant`,
            1/(N T) Σ_i Σ_t with T `data.max_new_tokens`, which is unbiased (Dr. GRPO). With several minibatches, the
            loss of the rollout is the mean of theirs.
        kl_coef: β of the penalty on KL(π ‖ π_ref). The reference π_ref is the policy before training; not kept with 0.
        kl_estimator: `k1`, `k2` or `k3`, see `kl_estimate`.
        kl_in: `loss` adds β times the estimate to the loss of each token, as in the paper; `reward` subtracts it from
            the reward, for which only `k1` has the gradient of KL(π ‖ π_ref).
        **kwargs: see `PolicyGradientModule`, except for the options of a critic and `gamma`.
    """

    has_critic = False
    needs_whole_episodes = True

    def __init__(
        self,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        scale_advantage: bool = True,
        normalizer: TokenNormalizer = "sequence",
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_in: Literal["loss", "reward"] = "loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma=1.0, critic_lr=None, critic_optimizer=None, vf_coef=0.0, **kwargs)
        require("model.num_epochs", num_epochs, 1)
        require("model.num_minibatches", num_minibatches, 1)
        require("model.clip_range", clip_range, 0)
        require("model.clip_range_high", clip_range_high or 0, 0)
        require("model.kl_coef", kl_coef, 0)
        self.num_epochs, self.num_minibatches = num_epochs, num_minibatches
        self.clip_range, self.clip_range_high = clip_range, clip_range_high
        self.scale_advantage, self.normalizer = scale_advantage, normalizer
        self.kl_coef, self.kl_estimator, self.kl_in = kl_coef, kl_estimator, kl_in
        self.reference = deepcopy(self.network).requires_grad_(False) if kl_coef else None

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`num_epochs` x `num_minibatches` gradient steps on the surrogate."""
        rewards = rollout.rewards * rollout.valid
        batch = Batch.of(rollout, rewards, rewards, rewards)
        size = self.learner.backward.micro_batch_size
        penalizes_reward = self.reference is not None and self.kl_in == "reward"
        if penalizes_reward or self.num_epochs * self.num_minibatches > 1:  # else they are those of the only step
            batch.old_log_probs = log_probs_by_parts(batch, self.network, size)
        if self.reference is not None:
            batch.reference_log_probs = log_probs_by_parts(batch, self.reference, size)
        if penalizes_reward and batch.old_log_probs is not None and batch.reference_log_probs is not None:
            penalties = kl_estimate(batch.old_log_probs - batch.reference_log_probs, self.kl_estimator)
            rewards[rollout.valid] -= self.kl_coef * penalties
        _, mean, std = group_moments(returns := rewards.sum(0), groups_of(rollout, "GRPO"))
        advantages = returns - mean
        if self.scale_advantage:
            advantages = advantages / (std + STD_EPSILON)
        tokens = rows_per_column(self.learner.rows, rewards.shape[1])
        weights = sequence_weights(rollout.valid, self.normalizer, tokens)
        batch.weights = weights[rollout.valid]
        batch.advantages = batch.weights * advantages.expand_as(rewards)[rollout.valid]
        num_minibatches = min(self.num_minibatches, rewards.shape[1])  # all ranks have as many columns
        for minibatch in self.learner.minibatches(batch, self.num_epochs, num_minibatches):
            self._share_of_rollout(minibatch, num_minibatches)
            self.learner.step(self.loss, minibatch)
        return self.learner.mean_stats()

    def _share_of_rollout(self, minibatch: Batch, num_minibatches: int) -> None:
        """Scales the weights so that the mean over the minibatch's tokens has the normaliser of the whole rollout."""
        if num_minibatches > 1 and minibatch.weights is not None:
            learner = self.learner
            rows = learner.collectives.all_gather(minibatch.weights.new_tensor(len(minibatch))).sum()
            share = num_minibatches * rows / sum(learner.rows)
            minibatch.weights, minibatch.advantages = share * minibatch.weights, share * minibatch.advantages

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate and the penalty; and the values to log."""
        pi = self.network.policy(batch)
        log_probs = pi.log_prob(batch.actions)
        log_ratio = log_probs - (log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs)
        loss = clipped_surrogate_loss(log_ratio, batch.advantages, self.clip_range, self.clip_range_high)
        metrics = {"train/policy_loss": loss}
        if batch.reference_log_probs is not None:
            from_reference = log_probs - batch.reference_log_probs
            if self.kl_in == "loss" and batch.weights is not None:
                estimates = kl_estimate(from_reference, self.kl_estimator)
                loss = loss + self.kl_coef * (estimates * batch.weights).mean()
            metrics["train/kl_to_reference"] = from_reference.detach().mean()
        if self.ent_coef or self.wants_metrics:
            with torch.set_grad_enabled(bool(self.ent_coef)):  # its graph is as large as the logits
                metrics["train/entropy"] = pi.entropy().mean()
        if self.ent_coef:
            loss = loss - self.ent_coef * metrics["train/entropy"]
        if self.wants_metrics:
            with torch.no_grad():
                ratio = log_ratio.exp()
                metrics["train/ratio_mean"] = ratio.mean()
                metrics["train/ratio_deviation"] = (ratio - 1).abs().mean()
                high = self.clip_range if self.clip_range_high is None else self.clip_range_high
                metrics["train/clip_fraction"] = ((ratio > 1 + high) | (ratio < 1 - self.clip_range)).float().mean()
        return loss, metrics
