"""Creates the policy of an algorithm: the built-in `ActorCritic`, or the user's own class."""

from __future__ import annotations

import inspect
from typing import Any, cast

from gymnasium import Space
from torch import nn

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError, named_cause_of
from pg_lightning.policies.actor_critic import ActorCritic
from pg_lightning.policies.contract import Policy


def make_policy(
    policy: ClassPath | None, observation_space: Space, action_space: Space, critic: bool, **network: Any
) -> ActorCritic:
    """The policy that an algorithm improves.

    Args:
        policy: None for an `ActorCritic`; or the class path of a module that implements `Policy` and is created with
            `observation_space`, `action_space` and its `init_args`.
        observation_space: of one environment, flattened.
        action_space: of one environment.
        critic: whether the algorithm needs a critic; a policy without one has `has_critic = False`.
        **network: options of `ActorCritic`; another policy has none of them.

    Returns:
        The policy. If it is another class, algorithms use only the methods of `Policy`.

    Raises:
        UserError: if it cannot be created, does not implement `Policy`, or options of `ActorCritic` are set as well.
    """
    if policy is None:
        return ActorCritic(observation_space, action_space, critic=critic, **network)
    parameters = inspect.signature(ActorCritic).parameters
    if unknown := sorted(network.keys() - parameters.keys()):
        raise UserError(f"model.{unknown[0]}: there is no such option")
    if given := [name for name, value in network.items() if value != parameters[name].default]:
        raise UserError(
            f"model.{given[0]}: an option of the built-in network, which model.policy replaces; give your policy what "
            "it needs in its init_args, or leave model.policy out"
        )
    make, arguments = resolve("model.policy", policy)
    refuse_other_than_modules("model.policy", make)
    try:
        made = make(observation_space=observation_space, action_space=action_space, **arguments)
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"model.policy: cannot create {make.__name__}(observation_space, action_space, **init_args): "
            f"{named_cause_of(error)}"
        ) from error
    require_policy("model.policy", made)
    if critic and not getattr(made, "has_critic", True):
        raise UserError(f"model.policy: {make.__name__} has no critic: use REINFORCE, RLOO or GRPO")
    for normalizer in ("normalizer", "value_normalizer"):  # an algorithm updates their statistics
        if not hasattr(made, normalizer):
            setattr(made, normalizer, None)
    if make is not ActorCritic:  # which stores its own
        made.init_args = {"observation_space": observation_space, "action_space": action_space, **arguments}
    return cast(ActorCritic, made)


def refuse_other_than_modules(field: str, make: object) -> None:
    """Refuses anything but a class of torch modules, before it is called.

    Raises:
        UserError: naming the field.
    """
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise UserError(
            f"{field}: {getattr(make, '__name__', make)!r} is not a class of torch modules; it is not called"
        )


def require_policy(field: str, made: nn.Module) -> None:
    """Refuses a module that does not implement `Policy`.

    Raises:
        UserError: naming the field and the missing methods.
    """
    if missing := [name for name in vars(Policy) if not name.startswith("_") and not hasattr(made, name)]:
        raise UserError(
            f"{field}: {type(made).__name__} has no {', '.join(missing)}; a policy needs all methods of "
            "pg_lightning.policies.Policy"
        )
