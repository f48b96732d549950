"""Chooses the head of an action space, or makes the head that a config names."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from torch import nn

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError
from pg_lightning.policies.heads.base import Head, space_name
from pg_lightning.policies.heads.continuous import BetaHead, DiagonalGaussianHead, SquashedGaussianHead
from pg_lightning.policies.heads.discrete import BernoulliHead, CategoricalHead, MultiCategoricalHead

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and floating-point Box"

# The first head that fits a space is its default.
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
        head: `gaussian`, `squashed_gaussian` or `beta` for a `Box`, or the class path of a head. Its constructor gets
            `num_features`, the space and its `init_args`; it must be a `Head` or a module with `linear`,
            `forward` and `env_actions`. By default the space decides, and a `Box` gets `gaussian`.
        log_std_init: initial log σ of a Gaussian; other heads have none.
        state_dependent_std: whether the σ of a Gaussian depends on the state. The `init_args` of a head take precedence
            over this and `log_std_init`.

    Raises:
        UserError: if the space is not supported, or the head or one of its options does not fit it.
    """
    make: Any
    arguments: dict[str, Any]
    fitting = next((known for known in _SPACES if _fits(known, space)), None)
    make, arguments = (fitting, {}) if head is None else resolve("model.head", head, BOX_HEADS)
    _check_space(make, space)
    name = getattr(make, "__name__", repr(make))
    if not _is_head(make):
        raise UserError(f"model.head: {name} must be a Head, or a torch module with forward and env_actions")
    gaussian = make in (DiagonalGaussianHead, SquashedGaussianHead)
    if state_dependent_std and not gaussian:
        where = "set it to false" if make in _SPACES else "for your own head, put it in model.head.init_args"
        raise UserError(
            f"model.state_dependent_std: only gaussian and squashed_gaussian have this option, "
            f"not {name} for {space_name(space)}; {where}"
        )
    defaults = {"log_std_init": log_std_init, "state_dependent_std": state_dependent_std} if gaussian else {}
    arguments = {**defaults, **(arguments or {})}
    try:
        inspect.signature(make).bind(num_features, space, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.head: cannot make {name} with (num_features, space, **init_args): {error}") from error
    made = make(num_features, space, **arguments)
    if not isinstance(getattr(made, "linear", None), nn.Linear):
        raise UserError(f"model.head: {name} must have an nn.Linear named linear as its last layer")
    return made


def _check_space(make: Any, space: Space) -> None:
    """Refuses a space that no head of this package supports, or that the given head does not support."""
    built_in = isinstance(make, type) and make in _SPACES
    if make is None or (built_in and not any(_fits(known, space) for known in _SPACES)):
        raise UserError(
            f"data.env_id: action space {space_name(space)} is not supported; supported are {SUPPORTED_ACTIONS} spaces"
        )
    if built_in and not _fits(make, space):
        kind = _SPACES[make].__name__
        raise UserError(
            f"model.head: {make.__name__} is for {kind} action spaces, not {space_name(space)}; leave model.head out "
            "to get the right head"
        )


def _is_head(make: Any) -> bool:
    """Whether it is a module class with `env_actions` and with its own `forward` or `distribution`."""
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        return False
    has_forward = make.forward not in (nn.Module.forward, Head.forward)
    has_distribution = getattr(make, "distribution", Head.distribution) is not Head.distribution
    return (has_forward or has_distribution) and callable(getattr(make, "env_actions", None))
