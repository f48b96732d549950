"""Heads: from features to a distribution over actions. The only place that asks what kind of space the actions have."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError, one_line, require
from pg_lightning.networks.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    at_least_float32,
)


class Head(nn.Module):
    """Maps features `[B, F]` to a `Distribution` and its actions to those of the environment.

    The network sets the initial weights of `linear`.
    """

    linear: nn.Linear

    def forward(self, features: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Features `[B, F]` to π; the mask is nonzero where a choice is allowed, for heads that have choices."""
        return self.distribution(self.linear(features), action_mask)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """π from the outputs of `linear`; the mask as in `forward`."""
        raise NotImplementedError

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` in the shape, range and dtype of the action space."""
        raise NotImplementedError

    def in_numpy(self) -> SamplingInNumpy | None:
        """How NumPy samples what `distribution` would give without a mask; None leaves it to torch."""
        return None


class SamplingInNumpy(NamedTuple):
    """A sample as a function of the outputs of `linear` and of noise that does not depend on them.

    Attributes:
        draw: fills a tensor in the shape of the outputs with noise.
        sample: actions `[N, *action]` from outputs and noise `[N, O]`.
    """

    draw: Callable[[Tensor, torch.Generator], Tensor]
    sample: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _forbidden(allowed: Tensor) -> Tensor:
    """Where one of the choices in the last dimension is forbidden; nowhere if none of them is allowed."""
    return ~allowed & allowed.any(-1, keepdim=True)


def _check_mask(action_mask: Tensor, *shape: int) -> None:
    """Refuses `[B, 1]` or `[n]` for `[B, n]`, which would broadcast without a word."""
    if action_mask.shape != shape:
        raise UserError(f"action_mask: expected one entry per choice, {list(shape)}, got {list(action_mask.shape)}")


def _refuse_mask(action_mask: Tensor | None) -> None:
    if action_mask is not None:
        raise UserError(
            "action_mask: masks are only for Discrete and MultiDiscrete action spaces; "
            "wrap the environment so that its info has none"
        )


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
            action_mask: `[B, n]` of any dtype, nonzero where a choice is allowed, counted from the space's first. The
                others have probability 0. A row that allows nothing counts as unmasked: environments give such masks
                with terminal observations.

        Raises:
            UserError: if the mask has another shape.
        """
        logits = at_least_float32(outputs)
        if action_mask is not None:
            _check_mask(action_mask, *logits.shape)
            logits = logits.masked_fill(_forbidden(action_mask != 0), torch.finfo(logits.dtype).min)
        return Categorical(logits)

    def in_numpy(self) -> SamplingInNumpy | None:
        """The exponential race of `Categorical.sample`."""
        if not _is_own(self, CategoricalHead):
            return None
        return SamplingInNumpy(
            draw=lambda block, generator: block.exponential_(generator=generator).log_(),
            sample=lambda logits, noise: (logits - noise).argmax(-1),
        )

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
        sizes = torch.as_tensor(space.nvec.reshape(-1))
        self.shape = space.shape
        self.num_choices = int(sizes.sum())
        self.linear = nn.Linear(num_features, len(sizes) * int(sizes.max()))
        choices = torch.arange(int(sizes.max()))
        padding = choices >= sizes.unsqueeze(-1)
        columns = ((sizes.cumsum(0) - sizes).unsqueeze(-1) + choices).masked_fill(padding, 0)
        self.register_buffer("padding", padding, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("start", torch.as_tensor(space.start), persistent=False)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> MultiCategorical:
        """π from the outputs of `linear`.

        Args:
            outputs: `[B, O]`.
            action_mask: `[B, n_1 + … + n_D]` of any dtype, one choice after the other, nonzero where allowed: the
                layout of sb3-contrib. What is not allowed has probability 0. A choice that allows nothing counts as
                unmasked.

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
        return actions.reshape(-1, *self.shape).to(self.start.dtype) + self.start


class BernoulliHead(Head):
    """`MultiBinary` actions."""

    def __init__(self, num_features: int, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(num_features, math.prod(space.shape))

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> Bernoulli:
        """π; takes no mask."""
        _refuse_mask(action_mask)
        return Bernoulli(outputs)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Bits as int8 in the shape of the space."""
        return actions.to(torch.int8).reshape(-1, *self.shape)


class _Bounds:
    """The bounds of a `Box`. No buffers: they stay in the precision of the space whatever that of the network."""

    def __init__(self, space: spaces.Box) -> None:
        self.shape = space.shape
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        # Halves first: high − low could overflow.
        self.tensors = low, high, low / 2 + high / 2, high / 2 - low / 2

    def clip(self, actions: Tensor) -> Tensor:
        """Actions `[N, D]` to `[N, *space]` within the bounds."""
        low, high, _, _ = self._on(actions.device)
        return actions.reshape(-1, *self.shape).to(low.dtype).clamp(low, high)

    def scale(self, positions: Tensor) -> Tensor:
        """Positions `[N, *space]` from −1, the lower bound, to 1, the upper, clipped against rounding."""
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
    """Σ log((high − low)/2), refusing a space without bounds that a policy can be squeezed into."""
    half = space.high.astype(np.float64) / 2 - space.low.astype(np.float64) / 2
    if not (np.isfinite(half).all() and (half > 0).all()):
        raise UserError(
            f"model.head: {head} needs finite bounds with low < high, not those of {one_line(space)}; use gaussian"
        )
    return float(np.log(half).sum())


# Outside of these σ² or 1/σ² comes close to what float32 can hold (below) or actions are all at their bounds (above):
# the convention since SAC. Beyond them the gradient of log σ is 0.
LOG_STD_BOUNDS = (-20.0, 2.0)


def _is_own(head: Head, known: type[Head]) -> bool:
    """Whether a head's distribution is that of the class known here, not one that a subclass has changed."""
    return type(head).distribution is known.distribution and type(head).forward is Head.forward


def _gaussian_in_numpy(log_std: nn.Parameter | None) -> SamplingInNumpy | None:
    """μ + σ ε; a σ that depends on the state is left to torch."""
    if log_std is None:
        return None
    std = log_std.detach().exp().numpy()
    return SamplingInNumpy(
        draw=lambda block, generator: block.normal_(generator=generator),
        sample=lambda mean, noise: mean + std * noise,
    )


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
    log π(a|s) and its gradient are those of the action that was drawn.

    Args:
        num_features: width F of the features.
        space: bounded or not.
        log_std_init: initial log σ.
        state_dependent_std: log σ is `log_std_init` plus an output of the network, kept within `LOG_STD_BOUNDS`,
            instead of a parameter of its own.
    """

    def __init__(
        self, num_features: int, space: spaces.Box, log_std_init: float = 0.0, state_dependent_std: bool = False
    ) -> None:
        super().__init__()
        self.bounds = _Bounds(space)
        self.log_std_init = log_std_init
        self.linear, self.log_std = _gaussian_outputs(num_features, space, log_std_init, state_dependent_std)

    def distribution(self, outputs: Tensor, action_mask: Tensor | None = None) -> DiagonalGaussian:
        """π; takes no mask."""
        _refuse_mask(action_mask)
        return DiagonalGaussian(*_mean_and_log_std(outputs, self.log_std, self.log_std_init))

    def in_numpy(self) -> SamplingInNumpy | None:
        """μ + σ ε with a σ that is a parameter."""
        return _gaussian_in_numpy(self.log_std) if _is_own(self, DiagonalGaussianHead) else None

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
        """π; takes no mask."""
        _refuse_mask(action_mask)
        mean, log_std = _mean_and_log_std(outputs, self.log_std, self.log_std_init)
        return SquashedGaussian(mean, log_std, self.log_scale)

    def in_numpy(self) -> SamplingInNumpy | None:
        """μ + σ ε with a σ that is a parameter."""
        return _gaussian_in_numpy(self.log_std) if _is_own(self, SquashedGaussianHead) else None

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
        """π; takes no mask."""
        _refuse_mask(action_mask)
        alpha, beta = (1 + nn.functional.softplus(at_least_float32(outputs))).chunk(2, -1)
        return Beta(alpha, beta, self.log_scale)

    def env_actions(self, actions: Tensor) -> Tensor:
        """low + (high − low) x in the shape of the space."""
        return self.bounds.scale(2 * self.bounds.shaped(actions) - 1)


SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and floating-point Box"

# The first head that fits a space is the one it gets unasked.
_SPACES: dict[type[Head], type[Space]] = {
    CategoricalHead: spaces.Discrete,
    MultiCategoricalHead: spaces.MultiDiscrete,
    BernoulliHead: spaces.MultiBinary,
    DiagonalGaussianHead: spaces.Box,
    SquashedGaussianHead: spaces.Box,
    BetaHead: spaces.Box,
}
BOX_HEADS: dict[str, type[Head]] = {
    "gaussian": DiagonalGaussianHead,
    "squashed_gaussian": SquashedGaussianHead,
    "beta": BetaHead,
}


def _fits(head: type[Head], space: Space) -> bool:
    kind = _SPACES[head]
    return isinstance(space, kind) and (kind is not spaces.Box or np.issubdtype(space.dtype, np.floating))


def make_head(
    num_features: int,
    space: Space,
    head: ClassPath | None = None,
    log_std_init: float = 0.0,
    state_dependent_std: bool = False,
) -> Head:
    """The head for an action space.

    Args:
        num_features: width F of the features.
        space: the environment's (single) action space.
        head: `gaussian`, `squashed_gaussian` or `beta` for a `Box`, or the class path of a head that is made with
            `num_features`, the space and its `init_args`; it is a `Head` or a module with the same `linear`,
            `forward` and `env_actions`. By default the space decides, and a `Box` gets `gaussian`.
        log_std_init: initial log σ of a Gaussian; other heads have none.
        state_dependent_std: whether the σ of a Gaussian depends on the state. The `init_args` of a head come before
            this and `log_std_init`.

    Raises:
        UserError: if the space is not supported, or the head or one of its options does not fit it.
    """
    make: Any
    arguments: dict[str, Any]
    fitting = next((known for known in _SPACES if _fits(known, space)), None)
    make, arguments = (fitting, {}) if head is None else resolve("model.head", head, BOX_HEADS)
    built_in = isinstance(make, type) and make in _SPACES
    if fitting is None and (make is None or built_in):
        raise UserError(
            f"data.env_id: action space {one_line(space)} is not supported; supported are {SUPPORTED_ACTIONS} spaces"
        )
    if built_in and not _fits(make, space):
        kind = _SPACES[make].__name__
        raise UserError(
            f"model.head: {make.__name__} is for {kind} action spaces, not {one_line(space)}; leave model.head "
            "out to get the head that fits"
        )
    name = getattr(make, "__name__", repr(make))
    offered = (
        isinstance(make, type)
        and issubclass(make, nn.Module)
        and (
            make.forward not in (nn.Module.forward, Head.forward)
            or getattr(make, "distribution", Head.distribution) is not Head.distribution
        )
        and callable(getattr(make, "env_actions", None))
    )
    if not offered:
        raise UserError(f"model.head: {name} has to be a Head, or a torch module with forward and env_actions")
    gaussian = make in (DiagonalGaussianHead, SquashedGaussianHead)
    if state_dependent_std and not gaussian:
        where = "with a head of your own, put it in model.head.init_args" if not built_in else "set it to false"
        raise UserError(
            f"model.state_dependent_std: {name} for {one_line(space)} has no such option, "
            f"gaussian and squashed_gaussian have; {where}"
        )
    defaults = {"log_std_init": log_std_init, "state_dependent_std": state_dependent_std} if gaussian else {}
    arguments = {**defaults, **(arguments or {})}
    try:
        inspect.signature(make).bind(num_features, space, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.head: cannot make {name} with (num_features, space, **init_args): {error}") from error
    made = make(num_features, space, **arguments)
    if not isinstance(getattr(made, "linear", None), nn.Linear):
        raise UserError(f"model.head: {name} has to have its last layer, an nn.Linear, as linear")
    return made
