"""Stand-ins that several tests use: learners and actors that write down what passes through them, a policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from pg_lightning.algorithms import PPO
from pg_lightning.learning import Learner
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.policies.distributions import Categorical
from pg_lightning.rollout import Batch, Rollout


class GradientOnly(Learner):
    """Hands −∇L of every step to `record` and moves nothing; needs no Trainer."""

    @classmethod
    def instead_of(cls, learner: Learner, record: Callable[[Tensor, Any], None]) -> GradientOnly:
        only = cls(learner.settings, learner.progress)
        only.record = record
        return only

    def _step(self, loss: Any, batch: Any, name: str = "", limit: float = 0.0) -> bool:
        value, stats = loss(batch)
        self.record(value, batch)
        stats["train/grad_norm"] = torch.zeros(())
        self.steps.append((len(batch), stats))
        return True


def actor_for(env: Any, **model: Any) -> PolicyActor:
    """The actor of a small policy for an environment, with a Trainer."""
    torch.manual_seed(0)
    module = PPO(
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        total_steps=1000,
        **{"hidden_sizes": [8], **model},
    )
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return module.actor


class ActsBy:
    """An actor without a network: a function of the observations `[N, *obs]` says what it does."""

    policy_version = 0
    device = torch.device("cpu")

    def __init__(self, rule: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        self.rule = rule

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, obs: Tensor, *_: Any) -> tuple[Tensor, None]:
        return self.rule(obs), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


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


class LinearPolicy(nn.Module):
    """A policy that shares nothing with `ActorCritic`: logits and values are linear in the observation."""

    has_memory = False

    def __init__(self, observation_space: Any, action_space: Any, scale: float = 0.1) -> None:
        super().__init__()
        self.logits = nn.Linear(observation_space.shape[0], int(action_space.n))
        self.baseline = nn.Linear(observation_space.shape[0], 1)
        self.first = int(action_space.start)
        for layer in (self.logits, self.baseline):
            nn.init.normal_(layer.weight, std=scale)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [*self.logits.parameters()], [*self.baseline.parameters()]

    def initial_state(self, num_envs: int) -> None:
        return None

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def pi(self, obs: Tensor, action_mask: Tensor | None = None) -> Categorical:
        logits = self.logits(obs.to(self.logits.weight.dtype))
        return Categorical(logits if action_mask is None else logits.masked_fill(action_mask == 0, -1e9))

    def sample(self, obs: Tensor, generator: Any, action_mask: Any = None, state: Any = None) -> tuple[Tensor, None]:
        return self.pi(obs, action_mask).sample(generator), None

    def mode(self, obs: Tensor, action_mask: Any = None, state: Any = None) -> tuple[Tensor, None]:
        return self.pi(obs, action_mask).mode, None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions + self.first

    def policy(self, samples: Batch) -> Categorical:
        return self.pi(samples.obs, samples.action_mask)

    def value(self, samples: Batch) -> Tensor:
        return self.baseline(samples.obs.to(self.baseline.weight.dtype)).squeeze(-1)

    def forward(self, samples: Batch) -> tuple[Categorical, Tensor]:
        return self.policy(samples), self.value(samples)

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        values = self.baseline(rollout.obs.to(self.baseline.weight.dtype)).squeeze(-1)
        following = values[1:].flatten().clone()
        if len(rollout.final_rows):
            following[rollout.final_rows] = self.baseline(rollout.final_obs).squeeze(-1)
        return values[:-1], following.view_as(values[1:])
