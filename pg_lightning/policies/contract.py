"""What a policy is to everything else: to those that play it, and to the algorithms that improve it.

`tests/policies/test_policy_contract.py` is what every implementation must pass. None of it needs a Trainer: an
opponent, a reference model and a policy that was loaded from a file have none.
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

    Playing goes one step of N environments at a time: `initial_state`, then `sample` or `mode`, and `env_actions` of
    what they give. Learning goes over batches of B rows: `policy` gives a `Distribution`, whose `log_prob`, `entropy`
    and `kl` share one pass through the network; `value` gives V; calling the policy gives both, in which a shared torso
    runs once.
    """

    @property
    def has_memory(self) -> bool:
        """Whether it is recurrent: then states are tensors, else None."""
        ...

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What an optimizer changes: the actor's parameters and the critic's, none in both."""
        ...

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The state `[N, S]` that an episode begins with, zeros; None unless recurrent."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """A context in which weights do not change or move, so that `sample` may prepare a faster way."""
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
            obs: `[N, *obs]` of any dtype, as the environment gives them.
            generator: the only source of randomness, on the device of `obs`.
            action_mask: `[N, A]`, non-zero where a choice is allowed.
            state: `[N, S]` before this step, for a recurrent policy.
        """
        ...

    def mode(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The actions `[N, *action]` of a policy that does not explore, and the next state; see `sample`."""
        ...

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` of `sample` or `mode` in the shape, range and dtype of the action space."""
        ...

    def policy(self, samples: Batch) -> Distribution:
        """π(·|s) for B rows, with gradient. Of a recurrent policy these are the valid rows of whole sequences."""
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

        Where an episode was cut, s_{t+1} is its final observation, not the first of the next.
        """
        ...
