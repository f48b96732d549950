"""The environments of a datamodule, made from its settings: for training, for evaluation, or one instance for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pg_lightning.class_path import ClassPath
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.data.shared import EvaluationTurn, SharedCollector, SharedInstance
from pg_lightning.envs import BACKENDS, AutoresetName, Backend, env_seed, make_vector_env
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.contract import Environments, EnvKwargs
from pg_lightning.envs.spaces import Spaces, require_same_spaces, spaces_of
from pg_lightning.errors import UserError
from pg_lightning.games import Arena, Games, evaluation_arena, make_games, training_arena

if TYPE_CHECKING:
    from pg_lightning.data.datamodule import RolloutDataModule

LONG_EPISODE = 1000  # env steps between two evaluations below which long episodes may never end in training


def training_settings(data: RolloutDataModule) -> tuple[EnvKwargs | None, list[ClassPath]]:
    """Arguments and wrappers of the training environments."""
    env_kwargs = {**(data.env_kwargs or {}), **data.train_env_kwargs} if data.train_env_kwargs else data.env_kwargs
    return env_kwargs, [*data.wrappers, *data.train_wrappers]


def only_instance(data: RolloutDataModule) -> SharedInstance | None:
    """The one instance for spaces, training and evaluation; None if the back-end can make several.

    Raises:
        UserError: if a setting needs a second instance, or the environments cannot be made.
    """
    if not BACKENDS[data.backend].capabilities.single_instance:
        return None
    for name in ("train_env_kwargs", "train_wrappers", "overlap"):
        if getattr(data, name):
            raise UserError(
                f"data.{name}: with backend {data.backend!r} one instance of the environments, in this process, serves "
                "training and evaluation; remove it"
            )
    settings = data.num_envs, data.env_kwargs, data.wrappers, data.backend, data.autoreset_mode
    return SharedInstance(environments(_made(data, *settings)), data.env_timeout)


def spaces_for(data: RolloutDataModule) -> Spaces:
    """Observation space and action space, of the one instance or of a temporary environment.

    Raises:
        UserError: if they cannot be made, or training and evaluation have different spaces.
    """
    if data.instance is not None:
        return data.instance.env.single_observation_space, data.instance.env.single_action_space
    if data.self_play is not None:
        games = games_of(data, 1)
        data.self_play.require_use(data.num_envs)
        if data.num_steps < 2 and not data.whole_episodes and data.self_play.num_both(data.num_envs):
            raise UserError(
                "data.num_steps: must be at least 2 where the policy plays both seats: in a rollout of one turn its "
                "result is not known"
            )
        for arena_of in (training_arena, evaluation_arena):  # which refuse opponents that cannot be made
            arena_of(games, data.self_play, 0).close()
        return games.observation_space, games.action_space
    spaces = spaces_of(data.env_id, data.env_kwargs, data.wrappers, data.backend, data.env_timeout)
    if data.train_env_kwargs or data.train_wrappers:
        name = "train_wrappers" if data.train_wrappers else "train_env_kwargs"
        require_same_spaces(name, spaces, data.env_id, *training_settings(data), data.backend)
    return spaces


def new_collector(data: RolloutDataModule, seeds: list[int], action_seed: int) -> RolloutCollector:
    """The collector of new training environments, or of the one instance.

    Raises:
        UserError: if the one instance has another number of environments.
    """
    settings = data.num_steps, seeds[0], action_seed, data.whole_episodes, data.eval_max_episode_steps
    if data.instance is not None:
        if data.instance.env.num_envs != data.num_envs:
            raise UserError(
                f"data.num_envs: the one instance of backend {data.backend!r} has {data.instance.env.num_envs} "
                f"environments, not {data.num_envs}; for diagnose, set episodes to this number"
            )
        return SharedCollector(data.instance, *settings)
    if data.self_play is not None:
        seed = env_seed(action_seed, 0)  # not that of the policy's own samples
        arena = training_arena(games_of(data, data.num_envs, seed), data.self_play, seed)
        return RolloutCollector(arena, data.num_steps, seeds, *settings[2:], computes_in_double(data))
    env = _made(data, data.num_envs, *training_settings(data), data.backend, data.autoreset_mode)
    one_seed = BACKENDS[data.backend].capabilities.seeds == "one"
    return RolloutCollector(
        env, data.num_steps, seeds[0] if one_seed else seeds, *settings[2:], computes_in_double(data)
    )


def computes_in_double(data: RolloutDataModule) -> bool:
    """Whether policies compute in float64."""
    return data.trainer is not None and data.trainer.precision == "64-true"


def evaluation_environments(data: RolloutDataModule, num_envs: int) -> VectorEnv | Environments:
    """New environments whose episodes start on request, or the one instance with all its environments."""
    if data.instance is not None:
        return EvaluationTurn(data.instance)
    if data.self_play is not None:
        return evaluation_arena(games_of(data, num_envs, data.seed), data.self_play, data.seed)
    backend = BACKENDS[data.backend].evaluates_in
    return _made(data, num_envs, data.env_kwargs, data.wrappers, backend, "disabled")


def rows_vary(data: RolloutDataModule) -> bool:
    """Whether rollouts of the environments may differ in their number of valid rows."""
    if data.self_play is not None:
        return data.self_play.num_both(data.num_envs) > 0
    known = BACKENDS[data.backend] if data.instance is None else data.instance.env
    return (data.autoreset_mode or known.capabilities.autoreset) == "next_step"


def enter_episodes(env: VectorEnv | Environments, episodes: Mapping[int, int]) -> list[str]:
    """Tells the games of an evaluation which episodes it has.

    Args:
        env: of the evaluation.
        episodes: the number of each episode, by its seed.

    Returns:
        The names of the groups of episodes; the group of an episode is its number modulo their number. Empty if the
        environments are no games.
    """
    if not isinstance(env, Arena) or env.exam is None:
        return []
    env.exam.episodes, env.exam.seed = episodes, env_seed(min(episodes), 0)
    return env.exam.groups


def games_of(data: RolloutDataModule, num_games: int, seed: int = 0) -> Games:
    """The games of self-play.

    Raises:
        UserError: if there are none, or a setting is for other environments.
    """
    for name in ("wrappers", "train_env_kwargs", "train_wrappers", "autoreset_mode"):
        if getattr(data, name):
            raise UserError(f"data.{name}: data.self_play plays games as they are; remove it")
    return make_games(data.env_id, num_games, data.env_kwargs, data.backend, seed)


def check_training(data: RolloutDataModule) -> None:
    """Refuses a strategy that needs more than one instance; reports another device than the policy's, and evaluations
    that leave no time for long episodes.

    Raises:
        UserError: naming the field and the cure.
    """
    if data.instance is None:
        return
    if data.is_asynchronous:
        raise UserError(f"trainer.strategy: hogwild needs more than the one instance of backend {data.backend!r}")
    assert data.trainer is not None
    here, there = data.instance.env.capabilities.device, data.trainer.strategy.root_device
    if here != there:
        rank_zero_info(
            f"data.env_id: the environments are on {here} and the policy is on {there}, so every step copies "
            "observations and actions; choose the same device in data.env_kwargs or trainer.accelerator"
        )
    between = max(data.eval_every_steps // (data.trainer.world_size * data.num_envs), data.num_steps)
    if between < LONG_EPISODE and data.eval_every_steps < data.total_steps:
        rank_zero_warn(
            f"data.eval_every_steps: an evaluation resets all environments, and there are only {between} steps of each "
            f"between two evaluations; if episodes are longer, raise it (to {LONG_EPISODE} steps: "
            f"{LONG_EPISODE * data.trainer.world_size * data.num_envs})"
        )


def _made(
    data: RolloutDataModule,
    num_envs: int,
    env_kwargs: EnvKwargs | None,
    wrappers: list[ClassPath],
    backend: Backend,
    mode: AutoresetName | None = None,
) -> VectorEnv | Environments:
    limits = data.env_timeout, data.max_env_restarts
    # The process of `overlap` acts on a CPU.
    device = "cpu" if data.trainer is None or data.overlap else data.trainer.strategy.root_device
    return make_vector_env(data.env_id, num_envs, env_kwargs, wrappers, backend, mode, *limits, device)
