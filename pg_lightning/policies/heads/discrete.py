"""Heads for discrete actions: softmaxes, with masks, and independent bits."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.policies.distributions import Bernoulli, Categorical, MultiCategorical, at_least_float32
from pg_lightning.policies.heads.base import Head, refuse_mask


def _forbidden(allowed: Tensor) -> Tensor:
    """The masked choices in the last dimension; none if the mask allows no choice."""
    return ~allowed & allowed.any(-1, keepdim=True)


def _check_mask(action_mask: Tensor, *shape: int) -> None:
    """Refuses `[B, 1]` or `[n]` for `[B, n]`, which would broadcast silently."""
    if action_mask.shape != shape:
        raise UserError(f"action_mask: expected one entry per choice, {list(shape)}, got {list(action_mask.shape)}")


class CategoricalHead(Head):
    """`Discrete` actions."""

    def __init__(self, num_features: int, space: spaces.Discrete) -> None:
        super().__init__()
        self.start = int(space.start)
        self.linear = nn.Linear(num_features, int(space.n))

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Categorical:
        """π from the outputs of `linear`.

        Args:
            outputs: `[B, O]`.
            action_mask: `[B, n]` of any dtype, nonzero where a choice is allowed, starting with the space's first. The
                others have probability 0. A row that allows nothing counts as unmasked: environments return such masks
                with terminal observations.

        Raises:
            UserError: if the mask has another shape.
        """
        logits = at_least_float32(outputs)
        if action_mask is not None:
            _check_mask(action_mask, *logits.shape)
            logits = logits.masked_fill(_forbidden(action_mask != 0), torch.finfo(logits.dtype).min)
        return Categorical(logits)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Adds the space's first action, `Discrete(start=…)`."""
        return actions + self.start if self.start else actions


class MultiCategoricalHead(Head):
    """`MultiDiscrete` actions: D independent choices of n_1 … n_D."""

    padding: Tensor
    columns: Tensor
    start: Tensor

    def __init__(self, num_features: int, space: spaces.MultiDiscrete) -> None:
        super().__init__()
        sizes = torch.as_tensor(space.nvec.reshape(-1).astype(np.int64))
        self.shape = space.shape
        self.num_choices = int(space.nvec.sum())
        longest = int(space.nvec.max())
        self.linear = nn.Linear(num_features, len(sizes) * longest)
        choices = torch.arange(longest)
        padding = choices >= sizes.unsqueeze(-1)
        columns = ((sizes.cumsum(0) - sizes).unsqueeze(-1) + choices).masked_fill(padding, 0)
        self.register_buffer("padding", padding, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.dtype = torch.as_tensor(space.start).dtype
        # int64, because torch cannot add unsigned numbers of more than 8 bits.
        self.register_buffer("start", torch.as_tensor(space.start.astype(np.int64)), persistent=False)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> MultiCategorical:
        """π from the outputs of `linear`.

        Args:
            outputs: `[B, O]`.
            action_mask: `[B, n_1 + … + n_D]` of any dtype, the masks of the choices concatenated, nonzero where
                allowed: the layout of sb3-contrib. Other choices have probability 0. A component that allows nothing
                counts as unmasked.

        Raises:
            UserError: if the mask has another shape.
        """
        logits = at_least_float32(outputs).unflatten(-1, self.padding.shape)
        blocked = self.padding
        if action_mask is not None:
            _check_mask(action_mask, *outputs.shape[:-1], self.num_choices)
            blocked = blocked | _forbidden((action_mask != 0)[..., self.columns] & ~blocked)
        return MultiCategorical(logits.masked_fill(blocked, torch.finfo(logits.dtype).min))

    def env_actions(self, actions: Tensor) -> Tensor:
        """Restores the shape of the space and adds its `start`."""
        return (actions.reshape(-1, *self.shape) + self.start).to(self.dtype)


class BernoulliHead(Head):
    """`MultiBinary` actions."""

    def __init__(self, num_features: int, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(num_features, math.prod(space.shape))

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Bernoulli:
        """π; masks are refused."""
        refuse_mask(action_mask)
        return Bernoulli(outputs)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Bits as int8 in the shape of the space."""
        return actions.to(torch.int8).reshape(-1, *self.shape)
