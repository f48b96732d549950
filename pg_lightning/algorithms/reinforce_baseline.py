"""REINFORCE with a learned baseline (Sutton & Barto 2018, §13.4): V(s) is subtracted from the return."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pg_lightning.learning import Normalize, PolicyGradientModule
from pg_lightning.rollout import Rollout


class REINFORCEBaseline(PolicyGradientModule):
    """Monte-Carlo policy gradient with a baseline: ∇J ∝ E[ (G_t − V(s_t)) ∇log π(a_t|s_t) ], V fitted to G.

    Rollouts must hold whole episodes (`data.whole_episodes: true`). If a time limit truncates an episode, V of its last
    observation replaces the missing rest of the return.

    Args:
        normalize_advantage: standardise the advantages of a rollout over all ranks; with `per_rank`, on each rank
            separately.
        discount_objective: weigh step t by γ^t, as in the theorem for the discounted return from the first state.
        **kwargs: see `PolicyGradientModule`.
    """

    needs_whole_episodes = True

    def __init__(
        self,
        normalize_advantage: Normalize = True,
        discount_objective: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.normalize_advantage = normalize_advantage
        self.discount_objective = discount_objective

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −mean( (G − V) log π ) and the squared error of V; no gradient flows through G − V."""
        batch = self.targets(rollout, gae_lambda=1.0, normalize_advantage=self.normalize_advantage)
        if self.discount_objective:
            batch.advantages = batch.advantages * self.gamma ** rollout.timesteps[rollout.valid]
        return self.learner.step(self.loss, batch)
