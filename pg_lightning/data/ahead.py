"""A rollout that was collected ahead, in a checkpoint: checked before anything learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from gymnasium import Space, spaces
from torch import Tensor

from pg_lightning.checkpoint.values import Damage, Unchecked, kind_of, require_count, require_finite, require_mapping
from pg_lightning.rollout import Rollout

Shape = Sequence[int | None]  # None stands for any size


def check_ahead(
    field: str, ahead: Unchecked, after: Unchecked, action_space: Space, memory: Tensor | None, version: int
) -> None:
    """Refuses the fields of a `Rollout` that do not fit together, or not to this run.

    Args:
        field: for errors.
        ahead: the fields, from the checkpoint.
        after: the state of the collector after the rollout, which is known to fit.
        action_space: of one environment.
        memory: the initial recurrent state `[N, S]`; None without one.
        version: of the policy that collected it.

    Raises:
        Damage: naming the field.
    """
    require_mapping(field, ahead)
    names = {x.name for x in fields(Rollout)}
    if differing := sorted(map(str, names ^ ahead.keys())):
        raise Damage(f"{field}.{differing[0]}", "is missing" if differing[0] in names else "is no part of a rollout")
    obs = after["obs"]
    N, one = obs.shape[0], obs.shape[1:]
    T = len(ahead["valid"]) if isinstance(ahead["valid"], Tensor) and ahead["valid"].dim() else 0
    rows: dict[str, tuple[Shape, torch.dtype | None]] = {
        **dict.fromkeys(("terminated", "truncated", "valid"), ((T, N), torch.bool)),
        "timesteps": ((T, N), torch.int64),
        "rewards": ((T, N), torch.float32),
        "log_probs": ((T, N), None),
        "obs": ((T + 1, N, *one), obs.dtype),
        "actions": ((T, N, *(action_space.shape or ())), None),
        "final_obs": ((None, *one), obs.dtype),
        "final_rows": ((None,), torch.int64),
        **dict.fromkeys(("episode_returns", "episode_lengths"), ((None,), None)),
    }
    if memory is not None:
        rows["state"] = memory.shape, None
    if after["action_mask"] is not None:
        rows["action_mask"] = (T, *after["action_mask"].shape), None
    for name, (shape, dtype) in rows.items():
        _require_tensor(f"{field}.{name}", ahead[name], shape, dtype)
    for name in {"state", "action_mask"} - rows.keys():
        if ahead[name] is not None:
            raise Damage(f"{field}.{name}", f"is {kind_of(ahead[name])}, not None")
    _require_below(f"{field}.final_rows", ahead["final_rows"], T * N)
    _check_actions(f"{field}.actions", ahead["actions"], action_space)
    for one_of, other in (("final_rows", "final_obs"), ("episode_returns", "episode_lengths")):
        if len(ahead[one_of]) != len(ahead[other]):
            raise Damage(f"{field}.{other}", f"are not as many as {one_of}")
    known = {"policy_version": version, "env_steps": int(ahead["valid"].sum())}
    for name, value in known.items():
        if type(ahead[name]) is not int or ahead[name] != value:
            raise Damage(f"{field}.{name}", f"is {kind_of(ahead[name])}, not {value}")
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


def _check_actions(field: str, actions: Tensor, space: Space) -> None:
    if actions.is_floating_point() or isinstance(space, spaces.Box):
        if actions.is_floating_point() != isinstance(space, spaces.Box):
            raise Damage(field, f"is {kind_of(actions)}")
    elif isinstance(space, spaces.Discrete):
        _require_below(field, actions, int(space.n))
    elif isinstance(space, spaces.MultiDiscrete):
        _require_below(field, actions, torch.as_tensor(space.nvec.astype("int64")))
    else:
        _require_below(field, actions, 2)


def _require_below(field: str, value: Tensor, limit: int | Tensor) -> None:
    if bool(((value < 0) | (value >= limit)).any()):
        raise Damage(field, "has numbers out of range")
