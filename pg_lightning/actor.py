"""The interface of a policy for collectors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from pg_lightning.rollout import Rollout


class Actor(Protocol):
    """The interface of a policy for collectors: actions in batches of N, and the version of the weights.

    Attributes:
        policy: the weights, of which the process of `data.overlap` keeps a copy.
    """

    policy: nn.Module

    @property
    def policy_version(self) -> int:
        """Number of updates of this policy so far."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which `act` computes, and of the generator passed to it."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """The context (no gradients, the trainer's precision) in which `act` must be called."""
        ...

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The initial recurrent state `[N, S]` of an episode; None for a policy without memory."""
        ...

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions `[N, *action]` for observations `[N, *obs]`, samples or the mode of π, and the next recurrent state.

        `action_mask` `[N, A]` is non-zero where an action is allowed; `state` `[N, S]` is the state before this step.
        """
        ...

    def log_probs(self, rollout: Rollout) -> Tensor:
        """log π(a|s) `[T, N]` of the actions of a rollout that this policy collected, 0 in invalid rows."""
        ...

    def env_actions(self, actions: Tensor) -> Tensor:
        """The actions for the environment: within the bounds, in the action space's shape and offset."""
        ...
