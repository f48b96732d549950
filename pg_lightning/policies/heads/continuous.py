"""Heads for `Box` actions: a clipped Gaussian, a squashed Gaussian, and a beta distribution."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from pg_lightning.errors import UserError, require
from pg_lightning.policies.distributions import Beta, DiagonalGaussian, SquashedGaussian, at_least_float32
from pg_lightning.policies.heads.base import Head, refuse_mask, space_name


class _Bounds:
    """The bounds of a `Box`. They are not buffers, so they keep the precision of the space in any network precision."""

    def __init__(self, space: spaces.Box) -> None:
        self.shape = space.shape
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        # Halves first: high − low could overflow.
        self.tensors = low, high, low / 2 + high / 2, high / 2 - low / 2

    def clip(self, actions: Tensor) -> Tensor:
        """Clips actions `[N, D]` to the bounds, as `[N, *space]`."""
        low, high, _, _ = self._on(actions.device)
        return actions.reshape(-1, *self.shape).to(low.dtype).clamp(low, high)

    def scale(self, positions: Tensor) -> Tensor:
        """Maps positions `[N, *space]` from [−1, 1] to the bounds, clipped against rounding."""
        low, high, centre, half = self._on(positions.device)
        return torch.addcmul(centre, positions, half).clamp(low, high)

    def shaped(self, actions: Tensor) -> Tensor:
        """Actions `[N, D]` to `[N, *space]` in the dtype of the space."""
        return actions.reshape(-1, *self.shape).to(self.tensors[0].dtype)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.tensors[0].device != device:
            self.tensors = tuple(bound.to(device) for bound in self.tensors)  # type: ignore[assignment]
        return self.tensors


def _log_half_widths(head: str, space: spaces.Box) -> float:
    """Σ log((high − low)/2); refuses a space without finite bounds."""
    half = space.high.astype(np.float64) / 2 - space.low.astype(np.float64) / 2
    if not (np.isfinite(half).all() and (half > 0).all()):
        raise UserError(
            f"model.head: {head} needs finite bounds with low < high, not those of {space_name(space)}; use gaussian"
        )
    return float(np.log(half).sum())


# Outside these bounds σ² or 1/σ² approaches the limits of float32 (below) or all actions are at their bounds (above):
# the convention since SAC. Outside, the gradient of log σ is 0.
LOG_STD_BOUNDS = (-20.0, 2.0)


def _gaussian_outputs(
    num_features: int, space: spaces.Box, log_std_init: float, state_dependent_std: bool
) -> tuple[nn.Linear, nn.Parameter | None]:
    """The layer for μ `[B, D]` and the parameter log σ `[D]`, or the layer for both `[B, 2D]` and no parameter."""
    size = math.prod(space.shape)
    if not state_dependent_std:
        return nn.Linear(num_features, size), nn.Parameter(torch.full((size,), float(log_std_init)))
    require("model.log_std_init", log_std_init, *LOG_STD_BOUNDS)
    return nn.Linear(num_features, 2 * size), None


def _mean_and_log_std(
    outputs: Tensor, log_std: nn.Parameter | None, log_std_init: float
) -> tuple[Tensor, nn.Parameter | Tensor]:
    if log_std is not None:
        return outputs, log_std
    mean, change = at_least_float32(outputs).chunk(2, -1)
    return mean, (log_std_init + change).clamp(*LOG_STD_BOUNDS)


class DiagonalGaussianHead(Head):
    """`Box` actions from a normal distribution.

    The environment gets the sample clipped to the bounds of the space; the algorithm keeps the sample itself, so that
    log π(a|s) and its gradient are those of the sampled action.

    Args:
        num_features: width F of the features.
        space: bounded or not.
        log_std_init: initial log σ.
        state_dependent_std: log σ is `log_std_init` plus an output of the network, kept within `LOG_STD_BOUNDS`,
            instead of a separate parameter.
    """

    def __init__(
        self, num_features: int, space: spaces.Box, log_std_init: float = 0.0, state_dependent_std: bool = False
    ) -> None:
        super().__init__()
        self.bounds = _Bounds(space)
        self.log_std_init = log_std_init
        self.linear, self.log_std = _gaussian_outputs(num_features, space, log_std_init, state_dependent_std)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> DiagonalGaussian:
        """π; masks are refused."""
        refuse_mask(action_mask)
        return DiagonalGaussian(*_mean_and_log_std(outputs, self.log_std, self.log_std_init))

    def env_actions(self, actions: Tensor) -> Tensor:
        """The actions in the shape of the space, clipped to its bounds."""
        return self.bounds.clip(actions)


class SquashedGaussianHead(Head):
    """Bounded `Box` actions from a normal distribution squashed by tanh.

    Args:
        num_features: width F of the features.
        space: with finite bounds.
        log_std_init: initial log σ before the squashing.
        state_dependent_std: as in `DiagonalGaussianHead`.

    Raises:
        UserError: if the space is unbounded.
    """

    def __init__(
        self, num_features: int, space: spaces.Box, log_std_init: float = 0.0, state_dependent_std: bool = False
    ) -> None:
        super().__init__()
        self.log_scale = _log_half_widths("squashed_gaussian", space)
        self.bounds = _Bounds(space)
        self.log_std_init = log_std_init
        self.linear, self.log_std = _gaussian_outputs(num_features, space, log_std_init, state_dependent_std)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> SquashedGaussian:
        """π; masks are refused."""
        refuse_mask(action_mask)
        mean, log_std = _mean_and_log_std(outputs, self.log_std, self.log_std_init)
        return SquashedGaussian(mean, log_std, self.log_scale)

    def env_actions(self, actions: Tensor) -> Tensor:
        """low + (high − low)(tanh u + 1)/2 in the shape of the space."""
        return self.bounds.scale(self.bounds.shaped(actions).tanh())


class BetaHead(Head):
    """Bounded `Box` actions from a beta distribution with one peak: α and β are 1 + softplus of the outputs.

    Args:
        num_features: width F of the features.
        space: with finite bounds.

    Raises:
        UserError: if the space is unbounded.
    """

    def __init__(self, num_features: int, space: spaces.Box) -> None:
        super().__init__()
        size = math.prod(space.shape)
        self.log_scale = _log_half_widths("beta", space) + size * math.log(2)
        self.bounds = _Bounds(space)
        self.linear = nn.Linear(num_features, 2 * size)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Beta:
        """π; masks are refused."""
        refuse_mask(action_mask)
        alpha, beta = (1 + nn.functional.softplus(at_least_float32(outputs))).chunk(2, -1)
        return Beta(alpha, beta, self.log_scale)

    def env_actions(self, actions: Tensor) -> Tensor:
        """low + (high − low) x in the shape of the space."""
        return self.bounds.scale(2 * self.bounds.shaped(actions) - 1)
