"""The base class of heads, which map features to a distribution over actions."""

from __future__ import annotations

from gymnasium import Space
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.policies.distributions import Distribution


class Head(nn.Module):
    """Maps features `[B, F]` to a `Distribution` and its actions to those of the environment.

    The network sets the initial weights of `linear`.
    """

    linear: nn.Linear

    def forward(self, features: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Features `[B, F]` to π; the mask is nonzero where a choice is allowed, for heads with discrete choices."""
        return self.distribution(self.linear(features), action_mask)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """π from the outputs of `linear`; the mask as in `forward`."""
        raise NotImplementedError

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` in the shape, range and dtype of the action space."""
        raise NotImplementedError


def refuse_mask(action_mask: Tensor | None) -> None:
    """Raises a `UserError` if there is a mask: for heads without discrete choices."""
    if action_mask is not None:
        raise UserError(
            "action_mask: masks are only for Discrete and MultiDiscrete action spaces; "
            "wrap the environment so that its info has none"
        )


def space_name(space: Space) -> str:
    """A space as it prints, in one line."""
    return " ".join(str(space).split())
