"""Stand-ins that several tests use: learners and actors that write down what passes through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pg_lightning.learning import Learner
from pg_lightning.learning.actor import PolicyActor


class GradientOnly(Learner):
    """Hands −∇L of every step to `record` and moves nothing; needs no Trainer."""

    @classmethod
    def instead_of(cls, learner: Learner, record: Callable[[Tensor, Any], None]) -> GradientOnly:
        only = cls(learner.settings, learner.progress)
        only.record = record
        return only

    def step_unless(self, loss: Any, batch: Any, name: str = "", limit: float = 0.0) -> bool:
        value, stats = loss(batch)
        self.record(value, batch)
        stats["train/grad_norm"] = torch.zeros(())
        self.steps.append((len(batch), stats))
        return True


class WatchedActor(PolicyActor):
    """Notes log π(a|s) of every sampled action at the time of acting, one `[N]` a step."""

    def __init__(self, actor: PolicyActor) -> None:
        super().__init__(actor.policy, actor.progress)
        self.acted: list[Tensor] = []

    def act(self, obs: Tensor, generator: Any, deterministic: bool = False, *args: Any) -> Any:
        pi = self.policy.act(obs, *args)[0]
        actions, state = super().act(obs, generator, deterministic, *args)
        if not deterministic:
            self.acted.append(pi.log_prob(actions))
        return actions, state


def on_step(learner: Learner, before: Callable[[Any], None] = lambda batch: None, after: Any = lambda: None) -> None:
    """Calls `before(batch)` and `after()` around every step of a learner's optimizers, with the gradient in place."""
    descend = learner.descend

    def watched(batch: Any) -> Tensor:
        before(batch)
        norm = descend(batch)
        after()
        return norm

    learner.descend = watched  # type: ignore[method-assign]
