"""Heads: from features to a distribution over actions. The only place that asks what kind of space the actions have.

The distributions are lighter than `torch.distributions`: no validation, and nothing is computed before it is asked
for, because sampling one small batch per environment step is bound by the number of calls. Their log-probabilities,
entropies and divergences are float32 or better whatever the precision of the network.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from pg_lightning.errors import UserError


class Distribution(Protocol):
    """π(·|s) for a batch of states."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions `[B, *action]`, drawn without gradient."""
        ...

    @property
    def mode(self) -> Tensor:
        """The most probable actions `[B, *action]`."""
        ...

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) `[B]`, summed over the dimensions of an action."""
        ...

    def entropy(self) -> Tensor:
        """Differential or Shannon entropy in nats `[B]`."""
        ...


def _float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Categorical:
    """One choice among n: π(a|s) = softmax(logits)_a, actions `[B]` int64, logits `[B, n]`."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = _float(logits)

    @cached_property
    def log_probs(self) -> Tensor:
        """log π of every choice, `[B, n]`."""
        return self.logits.log_softmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Exponential race: argmin of E_a / p_a with E_a ~ Exp(1) picks a with probability p_a."""
        noise = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - noise.log_()).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest choice `[B]`."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) `[B]`."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Shannon entropy `[B]` in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class MultiCategorical:
    """D independent choices, actions `[B, D]` int64; logits `[B, D, n]`, padded with the most negative number."""

    def __init__(self, logits: Tensor) -> None:
        self.choices = Categorical(logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One sample of each choice `[B, D]`."""
        return self.choices.sample(generator)

    @property
    def mode(self) -> Tensor:
        """The likeliest of each choice `[B, D]`."""
        return self.choices.mode

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum of the D log-probabilities `[B]`."""
        return self.choices.log_prob(actions).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of the D entropies `[B]`."""
        return self.choices.entropy().sum(-1)


class Bernoulli:
    """D independent bits, actions `[B, D]` of 0 and 1, logits `[B, D]` of the ones."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = _float(logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """D bits `[B, D]`."""
        return torch.bernoulli(self.logits.detach().sigmoid(), generator=generator)

    @property
    def mode(self) -> Tensor:
        """The likelier value of each bit `[B, D]`."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum over bits of log σ(±logit) `[B]`."""
        return nn.functional.logsigmoid(self.logits * (2 * actions - 1)).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of the entropies of the bits `[B]`: softplus(l) − l σ(l) each."""
        return (nn.functional.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)


class DiagonalGaussian:
    """D independent normals, actions `[B, D]`; mean `[B, D]`, log σ `[D]` or `[B, D]`."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = _float(mean)
        self.log_std = _float(log_std)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """μ + σ ε with ε ~ N(0, 1), `[B, D]`."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, self.log_std.exp(), noise).detach()

    @property
    def mode(self) -> Tensor:
        """The mean `[B, D]`."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum over dimensions of log N(a; μ, σ²) `[B]`."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of log σ + log(2πe)/2 `[B]`; of the unbounded action, before it is clipped for the environment."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(self.mean).sum(-1)


class Head(nn.Module):
    """Maps features `[B, F]` to a `Distribution` and its actions to those of the environment."""

    linear: nn.Linear

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` in the shape, range and dtype of the action space."""
        raise NotImplementedError


class CategoricalHead(Head):
    """`Discrete` actions."""

    def __init__(self, num_features: int, space: spaces.Discrete) -> None:
        super().__init__()
        self.start = int(space.start)
        self.linear = nn.Linear(num_features, int(space.n))

    def forward(self, features: Tensor) -> Categorical:
        """Features `[B, F]` to π."""
        return Categorical(self.linear(features))

    def env_actions(self, actions: Tensor) -> Tensor:
        """Adds the space's first action, `Discrete(start=…)`."""
        return actions + self.start if self.start else actions


class MultiCategoricalHead(Head):
    """`MultiDiscrete` actions: D independent choices of n_1 … n_D."""

    padding: Tensor
    start: Tensor

    def __init__(self, num_features: int, space: spaces.MultiDiscrete) -> None:
        super().__init__()
        sizes = torch.as_tensor(space.nvec.reshape(-1))
        self.shape = space.shape
        self.linear = nn.Linear(num_features, len(sizes) * int(sizes.max()))
        padding = torch.arange(int(sizes.max())) >= sizes.unsqueeze(-1)
        self.register_buffer("padding", padding, persistent=False)
        self.register_buffer("start", torch.as_tensor(space.start), persistent=False)

    def forward(self, features: Tensor) -> MultiCategorical:
        """Features `[B, F]` to π."""
        logits = _float(self.linear(features)).unflatten(-1, self.padding.shape)
        return MultiCategorical(logits.masked_fill(self.padding, torch.finfo(logits.dtype).min))

    def env_actions(self, actions: Tensor) -> Tensor:
        """Restores the shape of the space and adds its `start`."""
        return actions.reshape(-1, *self.shape).to(self.start.dtype) + self.start


class BernoulliHead(Head):
    """`MultiBinary` actions."""

    def __init__(self, num_features: int, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(num_features, math.prod(space.shape))

    def forward(self, features: Tensor) -> Bernoulli:
        """Features `[B, F]` to π."""
        return Bernoulli(self.linear(features))

    def env_actions(self, actions: Tensor) -> Tensor:
        """Bits as int8 in the shape of the space."""
        return actions.to(torch.int8).reshape(-1, *self.shape)


class DiagonalGaussianHead(Head):
    """`Box` actions, with a σ that does not depend on the state.

    The environment gets the sample clipped to the bounds of the space; the algorithm keeps the sample itself, so that
    log π(a|s) and its gradient are those of the action that was drawn.
    """

    low: Tensor
    high: Tensor

    def __init__(self, num_features: int, space: spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(num_features, math.prod(space.shape))
        self.log_std = nn.Parameter(torch.full((math.prod(space.shape),), log_std_init))
        self.register_buffer("low", torch.as_tensor(space.low), persistent=False)
        self.register_buffer("high", torch.as_tensor(space.high), persistent=False)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Features `[B, F]` to π."""
        return DiagonalGaussian(self.linear(features), self.log_std)

    def env_actions(self, actions: Tensor) -> Tensor:
        """The actions in the shape of the space, clipped to its bounds."""
        return actions.reshape(-1, *self.shape).to(self.low.dtype).clamp(self.low, self.high)


SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and floating-point Box"


def make_head(num_features: int, space: Space, log_std_init: float = 0.0) -> Head:
    """The head for an action space.

    Args:
        num_features: width F of the features.
        space: the environment's (single) action space.
        log_std_init: initial log σ of a Gaussian.

    Raises:
        UserError: if the space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(num_features, space)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategoricalHead(num_features, space)
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(num_features, space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return DiagonalGaussianHead(num_features, space, log_std_init)
    name = " ".join(str(space).split())
    raise UserError(f"data.env_id: action space {name} is not supported; supported are {SUPPORTED_ACTIONS} spaces")
