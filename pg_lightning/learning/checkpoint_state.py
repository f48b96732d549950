"""Our part of a checkpoint: counters, spaces and episodes of every rank, in plain types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gymnasium import Space

from pg_lightning.collectives import all_gather_object
from pg_lightning.errors import UserError, one_line
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.description import described_policy
from pg_lightning.policies.obs_groups import ObsGroups

BY_ENV_STEPS = {"constant", "linear"}  # schedules without a state

if TYPE_CHECKING:
    from pg_lightning.learning.module import PolicyGradientModule


def described(observation_space: Space, action_space: Space) -> dict[str, str]:
    """The spaces in words, to distinguish tasks."""
    spaces = {"observation_space": observation_space, "action_space": action_space}
    return {name: one_line(space) for name, space in spaces.items()}


def saved(module: PolicyGradientModule) -> dict[str, Any]:
    """The state of a module besides its weights. A collective: all ranks must call it."""
    running = None if module.reward_scaler is None else module.reward_scaler.discounted_returns
    returns, lengths = module.reports.episodes.all()
    own = {"discounted_returns": running, "episode_returns": returns, "episode_lengths": lengths}
    own = {name: x if x is None else x.cpu().clone() for name, x in own.items()}
    ranks, restarts = zip(*all_gather_object((own, module.progress.restarts)), strict=True)
    return {
        **module.progress.state_dict(sum(restarts)),
        "optimizer": module.learner.settings.name,
        "lr_schedule": module.learner.settings.schedule_name,
        "ranks": [*ranks],
        **module.spaces,
        "obs_groups": groups_of(module),
        "policy": described_policy(module.network),
    }


def restore(module: PolicyGradientModule, checkpoint: Mapping[str, Any], fits: bool) -> None:
    """Restores the counters.

    Args:
        module: must have the network and spaces of the checkpoint.
        checkpoint: Lightning's.
        fits: whether training continues, so that the optimizer must match too.

    Raises:
        UserError: if the checkpoint is not from this package, or was trained with other spaces, another network or
            another optimizer.
    """
    state = checkpoint.get("pg_lightning")
    if state is None:
        raise UserError("ckpt_path: not a pg_lightning checkpoint")
    for name, space in module.spaces.items():
        if state[name] != space:
            raise UserError(
                f"ckpt_path: the checkpoint was trained on {name} {state[name]}, data.env_id has {space}; "
                "give the environment that it was trained on"
            )
    if state["optimizer"] != module.learner.settings.name and fits:
        raise UserError(
            f"model.optimizer: the checkpoint was trained with {state['optimizer']}, whose state is incompatible with "
            f"{module.learner.settings.name}; give the one that it was trained with"
        )
    schedule = module.learner.settings.schedule_name
    if fits and (before := state.get("lr_schedule", schedule)) != schedule and not {before, schedule} <= BY_ENV_STEPS:
        raise UserError(
            f"model.lr_schedule: the checkpoint was trained with {before}, whose state is not that of {schedule}; "
            "give the one that it was trained with"
        )
    if state.get("obs_groups", groups_of(module)) != groups_of(module):  # also if their sizes are equal
        raise UserError(
            f"model.obs_groups: the checkpoint was trained with {state['obs_groups']}, not {groups_of(module)}; set "
            "the groups that it was trained with"
        )
    theirs, ours = (
        {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for weights in (checkpoint["state_dict"], module.state_dict())
    )
    if differing := sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name)):
        name = differing[0]
        raise UserError(
            f"ckpt_path: the checkpoint holds another network: {name} is {theirs.get(name, 'missing')} there and "
            f"{ours.get(name, 'missing')} here; give the model.* that it was trained with"
        )
    module.progress.load_state_dict(state)


def groups_of(module: PolicyGradientModule) -> ObsGroups | None:
    """The names of the observation groups of actor and critic; None for a policy without groups."""
    return module.network.groups if isinstance(module.network, ActorCritic) else None


def restore_episodes(module: PolicyGradientModule, own: Mapping[str, Any]) -> None:
    """Restores this rank's state of its current episodes."""
    if module.reward_scaler is not None:
        module.reward_scaler.discounted_returns = own["discounted_returns"]
    module.reports.episodes.clear()
    module.reports.episodes.add(own["episode_returns"], own["episode_lengths"])
