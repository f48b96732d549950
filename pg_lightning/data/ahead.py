"""A rollout that was collected ahead, in a checkpoint: checked before anything learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from gymnasium import Space, spaces
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.checkpoint.values import Damage, Unchecked, kind_of, require_count, require_finite, require_mapping
from pg_lightning.rollout import Rollout

Shape = Sequence[int | None]  # None stands for any size


def check_ahead(
    field: str, ahead: Unchecked, after: Unchecked, action_space: Space, actor: Actor, versions: range
) -> None:
    """Refuses the fields of a `Rollout` that do not fit together, or not to this run.

    Args:
        field: for errors.
        ahead: the fields, from the checkpoint.
        after: the state of the collector after the rollout, which is known to fit.
        action_space: of one environment.
        actor: of the policy that learns from it.
        versions: those that the policy may have had that collected it.

    Raises:
        Damage: naming the field.
    """
    require_mapping(field, ahead)
    names = {x.name for x in fields(Rollout)}
    if differing := sorted(map(str, names ^ ahead.keys())):
        raise Damage(f"{field}.{differing[0]}", "is missing" if differing[0] in names else "is no part of a rollout")
    obs = after["obs"]
    N, one = len(after["returns"]), obs.shape[1:]
    T = len(ahead["valid"]) if isinstance(ahead["valid"], Tensor) and ahead["valid"].dim() else 0
    rows: dict[str, tuple[Shape, torch.dtype | None]] = {
        **dict.fromkeys(("terminated", "truncated", "valid"), ((T, N), torch.bool)),
        "timesteps": ((T, N), torch.int64),
        "rewards": ((T, N), torch.float32),
        "log_probs": ((T, N), None),
        "obs": ((T + 1, N, *one), obs.dtype),
        "final_obs": ((None, *one), obs.dtype),
        "final_rows": ((None,), torch.int64),
        **dict.fromkeys(("episode_returns", "episode_lengths"), ((None,), None)),
    }
    if (memory := actor.initial_state(N)) is not None:
        rows["state"] = memory.shape, None
    if after["action_mask"] is not None:
        rows["action_mask"] = (T, N, *after["action_mask"].shape[1:]), None
    for name, (shape, dtype) in rows.items():
        _require_tensor(f"{field}.{name}", ahead[name], shape, dtype)
    for name in {"state", "action_mask"} - rows.keys():
        if ahead[name] is not None:
            raise Damage(f"{field}.{name}", f"is {kind_of(ahead[name])}, not None")
    _require_below(f"{field}.final_rows", ahead["final_rows"], T * N)
    _check_actions(f"{field}.actions", ahead["actions"], [T, N], action_space, actor)
    for one_of, other in (("final_rows", "final_obs"), ("episode_returns", "episode_lengths")):
        if len(ahead[one_of]) != len(ahead[other]):
            raise Damage(f"{field}.{other}", f"are not as many as {one_of}")
    steps = int(ahead["valid"].sum())
    for name, known in {"policy_version": versions, "env_steps": range(steps, steps + 1)}.items():
        if type(ahead[name]) is not int or ahead[name] not in known:
            raise Damage(f"{field}.{name}", f"is {kind_of(ahead[name])}, which does not fit")
    require_count(f"{field}.env_restarts", ahead["env_restarts"] or 0)
    if not isinstance(ahead["bootstrap_is_approximate"], (bool, type(None))):
        raise Damage(f"{field}.bootstrap_is_approximate", "is not a bool")


def _require_tensor(field: str, value: object, shape: Shape, dtype: torch.dtype | None) -> None:
    found = value.shape if isinstance(value, Tensor) else ()
    if len(found) != len(shape) or any(x not in (None, y) for x, y in zip(shape, found, strict=True)):
        raise Damage(field, f"is {kind_of(value)}, not a tensor of shape {[*shape]}".replace("None", "K"))
    assert isinstance(value, Tensor)
    if dtype not in (None, value.dtype):
        raise Damage(field, f"is {kind_of(value)}, not of {str(dtype).removeprefix('torch.')}")
    require_finite(field, value)


def _check_actions(field: str, actions: object, rows: list[int], space: Space, actor: Actor) -> None:
    """Refuses what the environment would not have got from the policy; numbers may be outside a `Box`."""
    if not isinstance(actions, Tensor) or [*actions.shape[:2]] != rows:
        raise Damage(field, f"is {kind_of(actions)}, not a tensor of {rows} actions")
    require_finite(field, actions)
    try:
        played = actor.env_actions(actions.flatten(0, 1)).cpu().numpy()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise Damage(field, f"is {kind_of(actions)}, which are no actions: {error}") from error
    if played.shape != (rows[0] * rows[1], *(space.shape or ())):
        raise Damage(field, f"is {kind_of(actions)}, which are no actions of {space}")
    if not isinstance(space, spaces.Box) and not all(map(space.contains, played)):
        raise Damage(field, f"has actions that are not in {space}")


def _require_below(field: str, value: Tensor, limit: int) -> None:
    if bool(((value < 0) | (value >= limit)).any()):
        raise Damage(field, "has numbers out of range")
