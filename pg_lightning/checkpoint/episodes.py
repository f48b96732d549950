"""The episodes under way in a checkpoint: what the collector of a rank needs to continue them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pg_lightning.checkpoint.generators import check_torch_generator
from pg_lightning.checkpoint.values import Damage, Unchecked, kind_of, require_finite, require_mapping

KINDS = {"returns": torch.float64, "lengths": torch.int64, "in_reset_row": torch.bool}


def check_collector(
    field: str,
    state: Unchecked,
    num_envs: int,
    num_columns: int,
    obs_shape: Sequence[int],
    memory: Sequence[int] | None,
) -> None:
    """Refuses the state of a collector that is not that of the environments and the policy of this run.

    Args:
        field: for errors.
        state: from the checkpoint.
        num_envs: N, of this rank.
        num_columns: of its rollouts, each with an episode; more than N if a policy plays both seats of games.
        obs_shape: of one observation.
        memory: shape `[N, S]` of the recurrent state; None without one.

    Raises:
        Damage: naming the field.
    """
    require_mapping(field, state)
    if not isinstance(state.get("envs"), (Mapping, list, type(None))):
        raise Damage(f"{field}.envs", f"is {kind_of(state['envs'])}")
    for name in ("returns", "lengths", "obs", "generator", "memory", "action_mask"):
        if name not in state:
            raise Damage(f"{field}.{name}", "is missing")
    for name, dtype in KINDS.items():
        if name in state:
            _require_tensor(f"{field}.{name}", state[name], [num_columns])
            if state[name].dtype != dtype:
                raise Damage(f"{field}.{name}", f"is {kind_of(state[name])}")
    require_finite(f"{field}.lengths", state["lengths"], not_negative=True)
    _require_tensor(f"{field}.obs", state["obs"], [num_envs, *obs_shape])
    if state["memory"] is not None:
        _require_tensor(f"{field}.memory", state["memory"], memory or [])
        require_finite(f"{field}.memory", state["memory"])
    if state["action_mask"] is not None and (
        not isinstance(state["action_mask"], Tensor) or state["action_mask"].shape[:1] != (num_envs,)
    ):
        raise Damage(f"{field}.action_mask", f"is {kind_of(state['action_mask'])}")
    _check_generator(f"{field}.generator", state["generator"])


def compare_ranks(own: Unchecked, field: str, data: Unchecked) -> None:
    """Refuses returns of another number of ranks, or of environments, than the episodes.

    Args:
        own: the module's part of a checkpoint.
        field: name of the datamodule's part.
        data: the datamodule's part.

    Raises:
        Damage: naming the rank.
    """
    if not own.get("ranks"):
        raise Damage("pg_lightning.ranks", "is empty" if "ranks" in own else "is missing")
    if len(data.get("ranks", own["ranks"])) != len(own["ranks"]):
        raise Damage(f"{field}.ranks", f"has {len(data['ranks'])} entries, pg_lightning.ranks {len(own['ranks'])}")
    for i, (rank, episodes) in enumerate(zip(own["ranks"], data.get("ranks", []), strict=False)):
        running = rank["discounted_returns"] if isinstance(rank, Mapping) else None
        found = episodes.get("collector", episodes) if isinstance(episodes, Mapping) else {}
        returns = found.get("returns") if isinstance(found, Mapping) else None
        if running is not None and isinstance(returns, Tensor) and running.shape != returns.shape:
            field = f"pg_lightning.ranks[{i}].discounted_returns"
            raise Damage(field, f"is {kind_of(running)}, but the rank plays {len(returns)} environments")


def _require_tensor(field: str, value: object, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or [*value.shape] != [*shape]:
        raise Damage(field, f"is {kind_of(value)}, not a tensor of shape {[*shape]}")


def _check_generator(field: str, state: object) -> None:
    match state:
        case None:
            return
        case (str() as device, Tensor() as content) if device in ("cpu", "cuda"):
            check_torch_generator(field, content, device)
        case (str(), Tensor()):
            return
        case _:
            raise Damage(field, f"is {kind_of(state)}, not a device and a tensor")
