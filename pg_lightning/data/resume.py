"""Current episodes in a checkpoint: how they are saved, and when a resumed run continues them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pg_lightning.actor import Actor
from pg_lightning.checkpoint.episodes import check_collector
from pg_lightning.checkpoint.league import check_league
from pg_lightning.checkpoint.values import Damage, Unchecked, require_mapping
from pg_lightning.collectives import all_gather_object
from pg_lightning.data.ahead import check_ahead
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.errors import UserError, named_cause_of
from pg_lightning.processes import WorkerError
from pg_lightning.run.secrets import without_secrets

if TYPE_CHECKING:
    from pg_lightning.data.datamodule import RolloutDataModule
    from pg_lightning.learning import PolicyGradientModule

# Settings that must be unchanged for the episodes to continue after a resume.
SETTINGS = (
    "env_kwargs",
    "wrappers",
    "train_env_kwargs",
    "train_wrappers",
    "num_envs",
    "backend",
    "autoreset_mode",
    "whole_episodes",
    "overlap",
    "self_play",
)


def episodes_under_way(data: Any, collector: RolloutCollector | CollectorProcess) -> dict[str, Any]:
    """The settings of a datamodule and the collector state of every rank. A collective: all ranks must call it."""
    return {
        "settings": {name: _written(data, name) for name in (*SETTINGS, "seed")},
        "ranks": all_gather_object(None if collector.is_given_up else collector.state_dict()),
    }


def check_episodes(data: RolloutDataModule, saved: Mapping[str, Unchecked], trainer: Trainer) -> None:
    """Refuses the damaged episodes of any rank, on all ranks: none may wait for one that refuses.

    Args:
        data: the datamodule.
        saved: its part of the checkpoint.
        trainer: whose module is already restored.

    Raises:
        UserError: naming the field.
    """
    if _what_differs(data, saved, trainer.world_size):
        return
    module = cast("PolicyGradientModule", trainer.lightning_module)
    actor = cast(Actor, module.actor)
    memory = actor.initial_state(data.num_columns)
    sizes = data.num_envs, data.num_columns
    shapes = *sizes, data.observation_space.shape or (), None if memory is None else memory.shape
    try:
        for rank, state in enumerate(saved["ranks"]):
            field = f"RolloutDataModule.ranks[{rank}]"
            if state is None:
                continue
            if data.self_play is not None:
                _check_games(data, field, state)
            if data.overlap:
                check_collector(f"{field}.collector", state.get("collector"), *shapes)
                after, previous = state["collector"], module.progress.previous
                versions = range(previous, previous + 1)
                if module.corrects_any_lag:
                    versions = range(module.progress.updates + 1)
                check_ahead(f"{field}.ahead", state.get("ahead"), after, data.action_space, actor, versions)
            else:
                check_collector(field, state, *shapes)
    except Damage as damage:
        raise damage.in_file(trainer.ckpt_path) from None


def _check_games(data: RolloutDataModule, field: str, state: Unchecked) -> None:
    """Refuses damaged games of self-play."""
    require_mapping(field, state)
    collector = state.get("collector") if data.overlap else state
    require_mapping(field, collector)
    assert data.self_play is not None
    num_both, most = data.num_columns - data.num_envs, data.self_play.max_snapshots
    check_league(f"{field}.envs", collector.get("envs"), data.num_envs, num_both, most)


def go_on(
    data: Any,
    collector: RolloutCollector | CollectorProcess,
    saved: dict[str, Any],
    rank: int,
    world_size: int,
    actor: Actor,
) -> bool:
    """Restores the environments from a checkpoint; reports in one line if that is impossible.

    Args:
        data: the datamodule, whose settings must be unchanged.
        collector: new, with environments that were just reset.
        saved: the datamodule's part of the checkpoint, which `check_episodes` has accepted.
        rank: of this process.
        world_size: number of processes.
        actor: the policy that continues to play.

    Returns:
        Whether the episodes continue.

    Raises:
        UserError: if the environments cannot read their state.
    """
    if why := _what_differs(data, saved, world_size):
        rank_zero_info(f"ckpt_path: {why}; new episodes start")
        return False
    state = saved["ranks"][rank]
    if state is None:
        rank_zero_info("ckpt_path: the checkpoint was saved during a rollout; new episodes start")
        return False
    try:
        if isinstance(collector, CollectorProcess):
            reason = collector.load_state_dict(state, actor)
        else:
            reason = collector.load_state_dict(state)
    except (UserError, WorkerError):
        raise
    except Damage as damage:
        raise UserError(f"ckpt_path: RolloutDataModule.ranks[{rank}].{damage}; give another checkpoint") from damage
    except Exception as error:  # a damaged state of an environment may raise anything
        field, cause = f"ckpt_path: RolloutDataModule.ranks[{rank}]", named_cause_of(error)
        raise UserError(f"{field} cannot be restored: {cause}; give another checkpoint") from error
    if reason:
        rank_zero_warn(
            f"{data.env_id} with data.backend {data.backend} cannot be restored to its state in the checkpoint: "
            f"{reason}. New episodes start, so this run will differ from an uninterrupted one"
        )
    return not reason


def _written(data: object, name: str) -> str:
    """A setting as it is in a checkpoint: without passwords, keys and tokens."""
    value = getattr(data, name)
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
    return repr(without_secrets(value, name))


def _what_differs(data: object, saved: Mapping[str, Unchecked], world_size: int) -> str:
    """The reason why the episodes of a checkpoint cannot continue in this run, or an empty string."""
    ranks, settings = saved.get("ranks"), saved.get("settings", {})
    if ranks is None:
        return "the checkpoint contains no unfinished episodes"
    for name in SETTINGS:
        if settings.get(name, "None") != _written(data, name):  # it may be older than the setting
            return f"data.{name} was {settings.get(name)} and is {_written(data, name)}"
    if len(ranks) != world_size:
        return f"the checkpoint was saved by {len(ranks)} processes, this run has {world_size}"
    if settings.get("seed") != _written(data, "seed"):
        return f"seed_everything was {settings.get('seed')} and is {_written(data, 'seed')}"
    return ""
