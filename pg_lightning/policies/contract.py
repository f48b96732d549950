"""The interface of a policy, for collection and for learning.

Every implementation must pass `tests/policies/test_policy_contract.py`. No method needs a Trainer: an
opponent, a reference model and a policy loaded from a file have none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pg_lightning.policies.distributions import Distribution
from pg_lightning.rollout import Batch, Rollout


@runtime_checkable
class Policy(Protocol):
    """π(·|s), and V(s) if it has a critic.

    Acting takes one step of N environments at a time: `initial_state`, then `sample` or `mode`, and `env_actions` of
    their result. Learning uses batches of B rows: `policy` returns a `Distribution`, whose `log_prob`, `entropy`
    and `kl` share one forward pass; `value` returns V; calling the policy returns both, with one pass through a shared
    torso.
    """

    @property
    def has_memory(self) -> bool:
        """Whether the policy is recurrent: then states are tensors, else None."""
        ...

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters to optimize: the actor's and the critic's, none in both."""
        ...

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The initial state `[N, S]` of an episode, zeros; None unless recurrent."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """A context in which weights must not change or move; `sample` may use a faster path inside."""
        ...

    def sample(
        self,
        obs: Tensor,
        generator: torch.Generator,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions `[N, *action]` drawn from π(·|s), without gradient, and the next state `[N, S]`.

        Args:
            obs: `[N, *obs]` of any dtype, as the environment returns them.
            generator: the only source of randomness, on the device of `obs`.
            action_mask: `[N, A]`, non-zero where a choice is allowed.
            state: `[N, S]` before this step, for a recurrent policy.
        """
        ...

    def mode(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The deterministic actions `[N, *action]`, and the next state; see `sample`."""
        ...

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` of `sample` or `mode` in the shape, range and dtype of the action space."""
        ...

    def policy(self, samples: Batch) -> Distribution:
        """π(·|s) for B rows, with gradient. For a recurrent policy, the valid rows of whole sequences."""
        ...

    def value(self, samples: Batch) -> Tensor:
        """V(s) `[B]` in the unit of `samples.returns`, float32 or better, with gradient.

        Raises:
            RuntimeError: if the policy has no critic.
        """
        ...

    def __call__(self, samples: Batch) -> tuple[Distribution, Tensor]:
        """`policy` and `value`."""
        ...

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """V(s_t) and V(s_{t+1}) `[T, N]` in the unit of the rewards.

        At a truncation, s_{t+1} is the final observation, not the first of the next episode.
        """
        ...
