"""One-step actor-critic (Sutton & Barto 2018, §13.5): one reward and the critic's estimate replace the return."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pg_lightning.learning import Normalize, PolicyGradientModule
from pg_lightning.rollout import Rollout


class OneStepActorCritic(PolicyGradientModule):
    """Actor and critic learn from the TD error δ = r + γ V(s') − V(s) (eq. 13.12 to 13.14).

    The actor uses δ as the advantage, the critic moves V(s) towards r + γ V(s'); neither δ nor the target carries a
    gradient (a semi-gradient, §9.3). With `data.num_steps: 1` it learns after every step of the environments.

    Args:
        normalize_advantage: standardise the TD errors of a rollout over all ranks; with `per_rank`, on each rank
            separately.
        **kwargs: see `PolicyGradientModule`.
    """

    def __init__(self, normalize_advantage: Normalize = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize_advantage = normalize_advantage

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One gradient step on −mean( δ log π ) and on the squared TD error."""
        # GAE with λ = 0 is the TD error.
        batch = self.targets(rollout, gae_lambda=0.0, normalize_advantage=self.normalize_advantage)
        return self.learner.step(self.loss, batch)
