"""A policy and its spaces in plain types, as stored in a checkpoint besides the weights.

Plain types are None, booleans, numbers, strings, and lists and dicts of them, which
`torch.load(weights_only=True)` can read.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from pg_lightning.checkpoint.values import Damage
from pg_lightning.class_path import require_imported, resolve
from pg_lightning.errors import UserError, named_cause_of
from pg_lightning.policies.actor_critic import ActorCritic
from pg_lightning.policies.make import refuse_other_than_modules, require_policy
from pg_lightning.policies.obs_groups import every_group
from pg_lightning.policies.torsos import TORSOS
from pg_lightning.spaces import FlattenedBox

Plain = dict[str, Any]
MAX_ELEMENTS = 2**24  # of a space: an observation of 64 MiB
T = TypeVar("T", bound="KeepsArguments")


def described_space(space: Space[Any]) -> Plain:
    """A space in plain types, from which `made_space` makes an equal one.

    Raises:
        UserError: if it is not Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these.
    """
    match space:
        case FlattenedBox():
            return {"space": "FlattenedBox", "original": described_space(space.original)}
        case spaces.Box():
            bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
            return {"space": "Box", **bounds, "shape": [*space.shape], "dtype": space.dtype.name}
        case spaces.Discrete():
            kind = np.dtype(space.dtype).name
            return {"space": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": kind}
        case spaces.MultiDiscrete():
            choices = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"space": "MultiDiscrete", **choices, "dtype": np.dtype(space.dtype).name}
        case spaces.MultiBinary():
            return {"space": "MultiBinary", "n": plain("n", space.n)}
        case spaces.Dict():
            return {"space": "Dict", "spaces": {key: described_space(part) for key, part in space.spaces.items()}}
        case spaces.Tuple():
            return {"space": "Tuple", "spaces": [described_space(part) for part in space.spaces]}
    raise UserError(f"space: {' '.join(str(space).split())} cannot be described in plain types")


def made_space(space: Space[Any] | Plain) -> Space[Any]:
    """The space of a description by `described_space`; a space is returned unchanged."""
    if isinstance(space, Space):
        return space
    match space["space"]:
        case "FlattenedBox":
            return FlattenedBox(made_space(space["original"]))
        case "Box":
            low, high = (np.asarray(space[name], dtype=space["dtype"]) for name in ("low", "high"))
            shape = tuple(space["shape"])
            low, high = (np.broadcast_to(bound, shape).copy() for bound in (low, high))
            return spaces.Box(low, high, shape, np.dtype(space["dtype"]).type)
        case "Discrete":
            kind: Plain = {} if space["dtype"] == "int64" else {"dtype": space["dtype"]}  # Gymnasium 1.1 has int64 only
            return spaces.Discrete(space["n"], start=space["start"], **kind)
        case "MultiDiscrete":
            nvec, start = np.array(space["nvec"]), np.array(space["start"])
            return spaces.MultiDiscrete(nvec, dtype=np.dtype(space["dtype"]).type, start=start)
        case "MultiBinary":
            return spaces.MultiBinary(space["n"])
        case "Dict":
            return spaces.Dict([(key, made_space(part)) for key, part in space["spaces"].items()])
        case "Tuple":
            return spaces.Tuple([made_space(part) for part in space["spaces"]])
    raise UserError(f"space: {space['space']!r} is not known to this version of pg_lightning")


def require_small(space: object, room: int = MAX_ELEMENTS) -> int:
    """Refuses the description of a space whose bounds would not fit into memory; returns the room that is left.

    Raises:
        UserError: if it has too many elements, or is no description.
    """
    if isinstance(space, Space):
        return room
    if not isinstance(space, Mapping):
        raise UserError(f"space: {type(space).__name__} is not the description of a space")
    parts = space.get("spaces", [space["original"]] if "original" in space else [])
    for part in parts.values() if isinstance(parts, Mapping) else parts:
        room = require_small(part, room)
    sizes = [space.get(name, 1) for name in ("n", "shape")]
    counts = [n for size in sizes for n in (size if isinstance(size, list) else [size])]
    if not all(isinstance(n, int) and n >= 0 for n in counts) or math.prod(counts) > room:
        raise UserError(f"space: {str(space.get('space'))[:20]!r} has more than {MAX_ELEMENTS} elements, or no size")
    return room - math.prod(counts)


def described_policy(policy: nn.Module) -> Plain:
    """The class of a policy and the `init_args` it was created with, as `{class_path, init_args}`.

    For a module without `init_args`, or with an argument that is not plain, `{refused}` with the reason in one line:
    training continues without a description.
    """
    known = getattr(policy, "init_args", None)
    if not isinstance(known, Mapping):
        return {
            "refused": f"policy: a {type(policy).__name__} is not described by its checkpoint; only an "
            "ActorCritic and a model.policy are"
        }
    try:
        arguments = {name: plain(f"model.{name}", value) for name, value in known.items()}
    except UserError as error:
        return {"refused": str(error)}
    return {"class_path": f"{type(policy).__module__}.{type(policy).__qualname__}", "init_args": arguments}


def made_policy(description: Plain) -> ActorCritic:
    """The policy of a description by `described_policy`, with new weights.

    Its classes must be imported already, because an import runs code; only torch modules are created.

    Raises:
        UserError: if one of its classes is not imported, is not a torch module, or does not take the arguments.
    """
    if "refused" in description:
        raise UserError(description["refused"])
    require_imported("policy", description)
    make, arguments = resolve("policy", description)
    refuse_other_than_modules("policy", make)
    torso = arguments.get("torso")
    for name in ("torso", "head"):
        require_imported(f"model.{name}", arguments.get(name))
    if torso is not None and issubclass(make, ActorCritic):
        refuse_other_than_modules("model.torso", resolve("model.torso", torso, TORSOS)[0])
    try:
        for name in ("observation_space", "action_space"):
            require_small(arguments[name])
        made = {name: made_space(arguments[name]) for name in ("observation_space", "action_space")}
        # A policy from before observation groups saw everything.
        seen = {"obs_groups": every_group(made["observation_space"])} if make is ActorCritic else {}
        policy: ActorCritic = make(**{**seen, **arguments, **made})
    except UserError:
        raise
    except Exception as error:  # the arguments may be of any type
        raise UserError(f"policy: cannot make {make.__name__}: {named_cause_of(error)}") from error
    require_policy("policy", policy)
    return policy


def require_fitting(description: Plain, weights: Mapping[str, Tensor]) -> None:
    """Refuses the description of a built-in policy that is larger than its weights, before memory is reserved for it.

    Raises:
        Damage: naming a tensor.
    """
    arguments = description.get("init_args", {})
    has_own_parts = any("." in str(arguments.get(name)) for name in ("torso", "head"))
    if "refused" in description or has_own_parts or not str(description["class_path"]).endswith(".ActorCritic"):
        return
    sizes = arguments.get("hidden_sizes", [])
    if isinstance(sizes, list) and len(sizes) > len(weights):
        raise Damage("pg_lightning.policy.init_args.hidden_sizes", f"has {len(sizes)} layers")
    with torch.device("meta"):
        expected = made_policy(description).state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        ours, theirs = (list(x[name].shape) if name in x else "missing" for x in (expected, weights))
        if ours != theirs:
            raise Damage(f"state_dict.network.{name}", f"is {theirs}, but {ours} in pg_lightning.policy")


def plain(name: str, value: Any) -> Any:
    """A value in plain types: lists for tuples, Python numbers for NumPy's, descriptions for spaces.

    Raises:
        UserError: naming a value that has no plain type.
    """
    match value:
        case np.generic():  # first: some are floats too
            return value.item()
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case Space():
            return described_space(value)
        case Mapping():
            return {key: plain(f"{name}.{key}", part) for key, part in value.items()}
        case list() | tuple() | np.ndarray():
            return [plain(f"{name}[{i}]", part) for i, part in enumerate(value)]
    raise UserError(
        f"{name}: {value!r} is not of a plain type, so the checkpoint cannot describe it; "
        "give numbers, strings, and lists or dicts of them"
    )


def plain_arguments(arguments: Mapping[str, Any]) -> Plain:
    """The arguments that have plain types, converted: the `hyper_parameters` of a checkpoint."""

    def described() -> Iterator[tuple[str, Any]]:
        for name, value in arguments.items():
            try:
                yield name, plain(name, value)
            except UserError:  # must be passed when the checkpoint is loaded
                continue

    return dict(described())


class KeepsArguments:
    """Stores the constructor's arguments of an object of a subclass, by name, in `init_args`.

    Only those of the outermost constructor, not those that it passes to inherited constructors.
    """

    init_args: dict[str, Any]

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Creates the object; invalid arguments are refused by the constructor."""
        made: T = object.__new__(cls)
        made.__dict__["init_args"] = _by_name(inspect.signature(cls.__init__), (made, *args), kwargs)
        return made


def _by_name(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, without the first, `self`; empty if the signature does not accept them."""
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}
    _, *parameters = signature.parameters.values()
    named = {parameter.name: bound[parameter.name] for parameter in parameters if parameter.name in bound}
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


def _numbers(bounds: np.ndarray) -> Any:
    """One number if all are equal, else all numbers, because an image has very many bounds."""
    first = bounds.reshape(-1)[:1]
    return first.item() if len(first) and (bounds == first).all() else bounds.tolist()
