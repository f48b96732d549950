"""REINFORCE (Williams 1992; Sutton & Barto 2018, §13.3): the policy gradient from the returns of whole episodes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pg_lightning.errors import UserError, require
from pg_lightning.learning import Normalize, PolicyGradientModule
from pg_lightning.learning.checks import groups_of
from pg_lightning.learning.targets import normalized
from pg_lightning.returns import episode_index, episode_return, leave_one_out, mean_of_other_episodes, reward_to_go
from pg_lightning.rollout import Batch, Rollout

Baseline = Literal["none", "batch_mean", "moving_average", "group_mean"]


class REINFORCE(PolicyGradientModule):
    """Monte-Carlo policy gradient: ∇J = E[ Σ_t γ^t G_t ∇log π(a_t|s_t) ], without a critic.

    Rollouts must hold whole episodes (`data.whole_episodes: true`). An episode truncated by a time limit counts as
    finished: the objective is the return within the limit.

    Args:
        causal: weigh each action by the return that follows it, the reward-to-go G_t; if false, as in the simplest form
            of the theorem, by the return G_0 of its whole episode, which has more variance and the mean of γ^t G_t
            (of G_t if γ = 1).
        baseline: what is subtracted from the returns: nothing, the mean over the other episodes of the rollout, a
            moving average over earlier rollouts, or, for text, the mean over the other completions of the same prompt.
            None of them changes the mean of the gradient.
        baseline_decay: weight of the old average in each update of `moving_average`.
        normalize_advantage: standardise the returns of a rollout, after the baseline, over all ranks; with `per_rank`,
            on each rank separately. Not with a moving average, which would cancel.
        discount_objective: weigh G_t by γ^t, as in the theorem for the discounted return from the first state
            (Sutton & Barto, the algorithm in §13.3). Rarely used: late steps then have almost no weight. G_0 is
            already discounted from the first state.
        **kwargs: see `PolicyGradientModule`, except for the options of a critic.
    """

    has_critic = False
    needs_whole_episodes = True
    baseline_value: Tensor

    def __init__(
        self,
        causal: bool = True,
        baseline: Baseline = "none",
        baseline_decay: float = 0.9,
        normalize_advantage: Normalize = True,
        discount_objective: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            critic_lr=None, critic_optimizer=None, vf_coef=0.0, shared_torso=False, normalize_values=False, **kwargs
        )
        require("model.baseline_decay", baseline_decay, 0, 1)
        if discount_objective and not causal:
            raise UserError("model.discount_objective: with causal false, returns are discounted already; leave it out")
        if baseline == "moving_average" and normalize_advantage:
            raise UserError(
                "model.baseline: a moving average has no effect on standardised returns; "
                "set model.normalize_advantage to false"
            )
        if baseline == "group_mean" and self.gamma != 1:
            raise UserError("model.gamma: the baseline group_mean is of whole completions, not discounted; set it to 1")
        self.causal = causal
        self.baseline = baseline
        self.baseline_decay = baseline_decay
        self.normalize_advantage = normalize_advantage
        self.discount_objective = discount_objective
        self.register_buffer("baseline_value", torch.tensor(torch.nan, dtype=torch.float64))

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −mean( (G − b) log π )."""
        returns = reward_to_go(rollout.rewards, rollout.done, rollout.valid, self.gamma)
        if not self.causal:
            returns = episode_return(returns, rollout.timesteps, rollout.valid)
        batch = Batch.of(rollout, returns, returns, torch.zeros_like(returns))
        advantages = batch.returns - self._baseline(rollout, batch.returns)
        batch.advantages = normalized(advantages, self.normalize_advantage, self.learner.collectives)
        if self.discount_objective:
            batch.advantages = batch.advantages * self.gamma ** rollout.timesteps[rollout.valid]
        return self.learner.step(self.loss, batch)

    def _baseline(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """`[B]`: independent of the action that it is subtracted for, so that E[ b ∇log π(a|s) ] = 0 (§13.4)."""
        collectives = self.learner.collectives
        if self.baseline == "batch_mean":
            episodes = episode_index(rollout.timesteps, rollout.valid)
            return mean_of_other_episodes(returns, episodes, collectives.all_gather)
        if self.baseline == "group_mean":
            of_columns = (rollout.rewards * rollout.valid).sum(0)
            others = of_columns - leave_one_out(
                of_columns, groups_of(rollout, "REINFORCE with model.baseline group_mean")
            )
            return others.to(returns.dtype).expand_as(rollout.rewards)[rollout.valid]
        before = self.baseline_value.nan_to_num().to(returns.dtype)
        if self.baseline == "moving_average":
            kept = torch.where(self.baseline_value.isnan(), 0.0, self.baseline_decay)
            now = collectives.mean(returns.mean(), len(returns))
            self.baseline_value.copy_(kept * before + (1 - kept) * now)
            return before.expand_as(returns)
        return torch.zeros_like(returns)
