"""Observation groups: the entries of a `Dict` observation that the actor and the critic see.

The critic is needed in training only, so it may use quantities that no sensor of a robot measures: an asymmetric or
privileged critic (Pinto et al. 2018, "Asymmetric Actor Critic for Image-Based Robot Learning"). Observations stay one
vector; each torso gets its columns of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.policies.torsos import out_features
from pg_lightning.spaces import FlattenedBox

ObsGroups = dict[str, list[str]]  # names of groups, under the keys `actor` and `critic`
Columns = tuple[slice, ...]

# Names of the groups of actor and critic in simulators: Isaac Lab, mjlab, MuJoCo Playground.
PAIRS = (("policy", "critic"), ("actor", "critic"), ("state", "privileged_state"))


def groups_of(space: Space) -> dict[str, slice]:
    """The columns of each group of an observation space, by name; empty unless it is a flattened `Dict`."""
    return space.groups if isinstance(space, FlattenedBox) else {}


def resolve_groups(space: Space, given: ObsGroups | None, has_critic: bool, shared_torso: bool) -> ObsGroups | None:
    """The groups of the actor and, if there is one, of the critic.

    Args:
        space: of the observations.
        given: `model.obs_groups`. If it is None, the first of a known pair of names is the actor's and the second
            the critic's, if the `Dict` has only these two entries; with any other `Dict` both see everything.
        has_critic: whether there is a critic.
        shared_torso: whether the critic shares the torso of the actor.

    Returns:
        Names in the order of the vector; None if observations have no groups.

    Raises:
        UserError: if `given` does not fit the space, if the names are ambiguous, or if actor and
            critic cannot share a torso.
    """
    known = [*groups_of(space)]
    if not known:
        if given is not None:
            raise UserError("model.obs_groups: the observations of data.env_id are no Dict of groups; set it to null")
        return None
    roles = ["actor", "critic"] if has_critic else ["actor"]
    chosen = _by_name(known) if given is None else _checked(given, known, roles)
    groups = {role: [name for name in known if name in chosen[role]] for role in roles}
    if has_critic and shared_torso and groups["actor"] != groups["critic"]:
        raise UserError(
            f"model.shared_torso: the actor sees {groups['actor']} and the critic {groups['critic']}; set it to false, "
            "or give both the same groups in model.obs_groups"
        )
    return groups


def every_group(space: Space) -> ObsGroups | None:
    """Groups with which actor and critic see everything; None if observations have no groups."""
    known = [*groups_of(space)]
    return {"actor": known, "critic": known} if known else None


def _by_name(known: Sequence[str]) -> Mapping[str, Sequence[str]]:
    for pair in PAIRS:
        if set(pair) == set(known):
            return {"actor": pair[:1], "critic": pair[1:]}
        if set(pair) < set(known):
            others = ", ".join(name for name in known if name not in pair)
            raise UserError(
                f"model.obs_groups: data.env_id has the groups {' and '.join(pair)}, and {others}; say which ones "
                f"actor and critic see, as in {{actor: [{pair[0]}], critic: [{pair[1]}]}}"
            )
    return {"actor": known, "critic": known}


def _checked(given: ObsGroups, known: Sequence[str], roles: Sequence[str]) -> ObsGroups:
    choice = f"the groups of data.env_id are {', '.join(known)}"
    if strangers := [role for role in given if role not in ("actor", "critic")]:
        raise UserError(f"model.obs_groups: {strangers[0]!r} is neither actor nor critic; leave it out")
    for role in {**dict.fromkeys(roles), **given}:
        names = given.get(role)
        if not names or isinstance(names, str):
            raise UserError(f"model.obs_groups.{role}: give a list of one group or more; {choice}")
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"model.obs_groups.{role}: there is no group {unknown[0]!r}; {choice}")
    return given


def columns_of(space: Space, groups: ObsGroups | None, role: str) -> Columns | None:
    """The columns of the vector for the actor or the critic, adjacent groups merged; None for the whole vector.

    Args:
        space: of the observations.
        groups: from `resolve_groups`.
        role: `actor` or `critic`.
    """
    places = groups_of(space)
    if groups is None or len(groups[role]) == len(places):
        return None
    columns: list[slice] = []
    for name in groups[role]:
        start, stop = places[name].start, places[name].stop
        if columns and columns[-1].stop == start:
            start = columns.pop().start
        columns.append(slice(start, stop))
    return tuple(columns)


def seen_space(space: Space, groups: ObsGroups | None, role: str) -> Space:
    """The space of the actor's or the critic's observations, before it is flattened; see `columns_of`."""
    original = space.original if isinstance(space, FlattenedBox) else space
    if groups is None or not isinstance(original, spaces.Dict):
        return original
    return spaces.Dict([(name, original[name]) for name in groups[role]])


def group_torso(space: spaces.Box, columns: Columns | None, make: Callable[[spaces.Box], nn.Module]) -> nn.Module:
    """A torso for some columns of the observations, or, for all columns, the torso itself.

    Args:
        space: of the whole vector.
        columns: the input of the torso.
        make: makes the torso for the `Box` of its input.
    """
    if columns is None:
        return make(space)
    low, high = (np.concatenate([bound[part] for part in columns]) for bound in (space.low, space.high))
    return GroupTorso(make(spaces.Box(low, high, dtype=low.dtype.type)), columns)


class GroupTorso(nn.Module):
    """A torso whose input is some columns of the observation vector.

    Args:
        torso: for `[B, C]`.
        columns: C in total, in the order of the torso's input.
    """

    def __init__(self, torso: nn.Module, columns: Columns) -> None:
        super().__init__()
        self.torso = torso
        self.columns = columns
        self.out_features = out_features(torso)

    def forward(self, obs: Tensor) -> Tensor:
        """Features `[B, F]` of observations `[B, D]`."""
        features: Tensor = self.torso(self.select(obs))
        return features

    def select(self, obs: Tensor) -> Tensor:
        """The torso's input `[B, C]` from observations `[B, D]`."""
        parts = [obs[:, part] for part in self.columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
