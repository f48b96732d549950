"""The policy for data collection: acts in the precision of training, and has a version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pg_lightning.learning.progress import Progress
from pg_lightning.policies import ActorCritic, Distribution
from pg_lightning.rollout import Batch, Rollout


def as_it_is(device: torch.device) -> AbstractContextManager[None]:
    """The precision of the weights."""
    return nullcontext()


def precision_of(trainer: Trainer, device: torch.device) -> AbstractContextManager[None]:
    """The Trainer's precision on the kind of device of the training; on other devices the precision of the weights."""
    learns_here = device.type == trainer.strategy.root_device.type
    return trainer.precision_plugin.forward_context() if learns_here else nullcontext()


class PolicyActor:
    """Acts with a policy; needs no Trainer. See the `Actor` protocol.

    Args:
        policy: the network.
        progress: counts the updates; their number is the policy's version.

    Attributes:
        compiles: whether steps with environments on its device should be compiled, see `data.program`.
        precision: makes the context in which the policy computes on a device; by default the weights' own precision.
    """

    def __init__(self, policy: ActorCritic, progress: Progress) -> None:
        self.policy = policy
        self.progress = progress
        self.compiles = False
        self.precision: Callable[[torch.device], AbstractContextManager[None]] = as_it_is
        self._device: torch.device | None = None  # cached within `acting`, because every step reads it

    @property
    def policy_version(self) -> int:
        """Number of updates of the policy so far."""
        return self.progress.updates

    @property
    def device(self) -> torch.device:
        """The device on which the policy computes."""
        return self._device or self.policy.actor_head.linear.weight.device

    @contextmanager
    def acting(self) -> Iterator[None]:
        """No gradients, and the precision of training: otherwise the first ratio π/π_old is not 1."""
        self._device = self.device
        try:
            with torch.inference_mode(), self.precision(self.device), self.policy.acting():
                yield
        finally:
            self._device = None

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The initial recurrent state `[N, S]` of an episode; None for a policy without memory."""
        return self.policy.initial_state(num_envs)

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions `[N, *action]` for observations `[N, *obs]`, samples or the mode of π, and the next state."""
        device = self._device or self.device
        obs, mask = obs.to(device), None if action_mask is None else action_mask.to(device)
        if not deterministic:
            return self.policy.sample(obs, generator, mask, state)
        return self.policy.mode(obs, mask, state)

    def distribution(self, obs: Tensor, state: Tensor | None) -> tuple[Distribution, Tensor | None]:
        """π(·|s) from which `act` samples, for observations on the policy's device, and the next state."""
        return self.policy.act(obs, None, state)

    def log_probs(self, rollout: Rollout) -> Tensor:
        """log π(a|s) `[T, N]` of the actions of a rollout that this policy has collected, 0 where not valid."""
        with torch.inference_mode(), self.precision(self.device):
            return log_probs(self.policy, rollout)

    def env_actions(self, actions: Tensor) -> Tensor:
        """The actions for the environment."""
        return self.policy.actor_head.env_actions(actions)


class OtherPolicyActor(PolicyActor):
    """Acts with any other implementation of `Policy`.

    `PolicyActor` accesses parts of an `ActorCritic` directly, which saves a call per environment step.
    """

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self._device or next(self.policy.parameters()).device

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions as the environment wants them."""
        return self.policy.env_actions(actions)


def actor_of(policy: ActorCritic, progress: Progress) -> PolicyActor:
    """The actor for a policy, an `ActorCritic` or another implementation."""
    kind = PolicyActor if isinstance(policy, ActorCritic) else OtherPolicyActor
    return kind(policy, progress)


def log_probs(policy: ActorCritic, rollout: Rollout) -> Tensor:
    """log π(a|s) `[T, N]` of the actions of a rollout, 0 where not valid."""
    zeros = torch.zeros_like(rollout.rewards)
    if rollout.env_steps == 0:
        return zeros
    batch = Batch.of(rollout, zeros, zeros, zeros)
    result = policy.policy(batch).log_prob(batch.actions)
    return zeros.to(result.dtype).masked_scatter(rollout.valid, result)
