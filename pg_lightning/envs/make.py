"""Vector environments from an id: construction, wrappers, seeds, and the choice of back-end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.envs.contract import Capabilities
from pg_lightning.envs.pool import PoolEnv, PoolVectorEnv
from pg_lightning.envs.replay import Replayable
from pg_lightning.envs.serial import SerialVectorEnv
from pg_lightning.envs.workers import WorkerVectorEnv
from pg_lightning.errors import UserError, cause_of, one_line
from pg_lightning.spaces import FlattenedBox

Backend = Literal["sync", "async", "vector", "envpool", "auto"]
AutoresetName = Literal["next_step", "same_step", "disabled"]

_MODES: dict[AutoresetName, AutoresetMode] = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}
_FLATTENED = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
REFUSALS = (gym.error.Error, ImportError, TypeError, ValueError, AssertionError)
# What an import asks for, and the extra that installs it.
EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "minigrid": "minigrid", "mujoco": "mujoco"}
# How ids begin that are known only once a module is imported.
REGISTERED_BY = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Tuple or Dict of these"


def make_env(
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[ClassPath] = (),
    backend: Backend = "sync",
) -> gym.Env:
    """One environment whose observations are arrays.

    Args:
        env_id: a Gymnasium id; `module:EnvId` imports the module that registers it first.
        env_kwargs: arguments of the environment.
        wrappers: class paths, or `{class_path, init_args}`, applied in this order.
        backend: `envpool` for EnvPool's implementation, anything else for Gymnasium's.

    Returns:
        The environment, with `Discrete`, `MultiDiscrete`, `MultiBinary`, `Tuple` and `Dict` observations flattened
        (one-hot where they are categories); then its observation space is a `FlattenedBox`.

    Raises:
        UserError: if the id, a wrapper, an argument or the observation space is of no use, naming which.
    """
    if backend == "envpool":
        _refuse_wrappers(wrappers, backend)
        return PoolEnv(env_id, env_kwargs)
    try:
        env: gym.Env = gym.make(env_id, disable_env_checker=True, **(env_kwargs or {}))
    except REFUSALS as error:
        field = "data.env_id" if isinstance(error, (gym.error.Error, ImportError)) else "data.env_kwargs"
        cure = _missing_extra(error) or _missing_import(env_id) or cause_of(error)
        raise UserError(f"{field}: cannot make {env_id!r}: {cure}") from error
    for wrapper in wrappers:
        env = _wrap(env, wrapper)
    if not _has_vector_form(env.observation_space):
        raise UserError(
            f"data.env_id: observation space {one_line(env.observation_space)} is not supported; "
            f"supported are {SUPPORTED_OBSERVATIONS}{_without_the_rest(env.observation_space)}"
        )
    if not isinstance(env.observation_space, spaces.Box) or not env.observation_space.shape:
        original = env.observation_space
        env = gym.wrappers.FlattenObservation(env)
        env.observation_space = FlattenedBox(original)
    return env


def make_vector_env(
    env_id: str,
    num_envs: int,
    env_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[ClassPath] = (),
    backend: Literal["sync", "async", "vector", "envpool"] = "sync",
    autoreset_mode: AutoresetName | None = None,
    env_timeout: float = 60.0,
    max_env_restarts: int = 100,
) -> VectorEnv:
    """`num_envs` environments that step together.

    Args:
        env_id: see `make_env`, as `env_kwargs` and `wrappers`.
        num_envs: how many.
        backend: `sync` steps them in this process, one after the other; `async` in one process each, through shared
            memory; `vector` uses the environment's own vectorised implementation; `envpool` EnvPool's, where another
            mode than its `next_step` has one pool for each environment, stepped one after the other.
        autoreset_mode: when an ended episode restarts; by default within the step, or as the vectorised
            implementation does it.
        env_timeout: with `async`, the seconds after which an environment that gives no answer is replaced.
        max_env_restarts: with `async`, how many are replaced before it raises.

    Raises:
        UserError: if they cannot be made so, naming the field.
    """
    if backend == "vector":
        return _make_vectorised(env_id, num_envs, env_kwargs, wrappers, autoreset_mode)
    if backend == "envpool" and autoreset_mode in (None, "next_step"):
        _refuse_wrappers(wrappers, backend)
        return PoolVectorEnv(env_id, num_envs, env_kwargs)
    mode = _MODES[autoreset_mode or "same_step"]
    make = partial(_make_replayable, env_id, env_kwargs, wrappers, backend)
    if backend == "async":
        return WorkerVectorEnv(make, num_envs, mode, env_timeout, max_env_restarts)
    return SerialVectorEnv([make] * num_envs, copy=False, autoreset_mode=mode)


def choose_backend(
    env_id: str,
    num_envs: int,
    env_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[ClassPath] = (),
    autoreset_mode: AutoresetName | None = None,
    seconds: float = 0.25,
) -> tuple[Literal["sync", "async", "vector"], str]:
    """Measures each back-end that can run the environment with random actions.

    EnvPool is left out: its environments are another implementation, with arguments and random numbers of their own,
    so what a run trains on would depend on what happens to be installed.

    Returns:
        The fastest, and the reason in words.
    """
    speeds: dict[Literal["sync", "async", "vector"], float] = {}
    for backend in ("sync", "async", "vector"):
        try:
            env = make_vector_env(env_id, num_envs, env_kwargs, wrappers, backend, autoreset_mode)
        except UserError:
            if backend == "vector":
                continue
            raise
        try:
            speeds[backend] = _steps_per_second(env, seconds)
        finally:
            env.close()
    best = max(speeds, key=lambda backend: speeds[backend])
    measured = ", ".join(f"{backend} {speed:,.0f}" for backend, speed in speeds.items())
    return best, f"{best}, the fastest with random actions in {num_envs} envs ({measured} env steps/s)"


def _make_replayable(*arguments: Any) -> gym.Env:
    return Replayable(make_env(*arguments))


def _make_vectorised(
    env_id: str,
    num_envs: int,
    env_kwargs: dict[str, Any] | None,
    wrappers: Sequence[ClassPath],
    autoreset_mode: AutoresetName | None,
) -> VectorEnv:
    _refuse_wrappers(wrappers, "vector")
    try:
        env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **(env_kwargs or {}))
        if not isinstance(env.single_observation_space, spaces.Box) or not env.single_observation_space.shape:
            env = gym.wrappers.vector.FlattenObservation(env)
    except REFUSALS as error:
        raise UserError(f"data.backend: no vectorised {env_id!r}: {cause_of(error)}") from error
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if autoreset_mode is not None and mode != _MODES[autoreset_mode]:
        env.close()
        raise UserError(
            f"data.autoreset_mode: the vectorised {env_id!r} resets as {AutoresetMode(mode).name.lower()}, "
            f"not {autoreset_mode}"
        )
    env.capabilities = Capabilities(can_save_state="by_copy")  # type: ignore[attr-defined]
    return env


def _refuse_wrappers(wrappers: Sequence[ClassPath], backend: Backend) -> None:
    if wrappers:
        raise UserError(f"data.wrappers: backend {backend!r} runs vectorised code as it is, without wrappers")


def _steps_per_second(env: VectorEnv, seconds: float) -> float:
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = env.action_space.sample()
    disabled = env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED
    for _ in range(3):
        env.reset()
        env.step(actions)
    env.reset()
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        _, _, terminated, truncated, _ = env.step(actions)
        ended = np.logical_or(terminated, truncated)
        if disabled and ended.any():
            env.reset(options={"reset_mask": ended})
        rounds += 1
    return rounds * env.num_envs / elapsed


def _has_vector_form(space: Space) -> bool:
    if isinstance(space, spaces.Tuple):
        return all(map(_has_vector_form, space.spaces))
    if isinstance(space, spaces.Dict):
        return all(map(_has_vector_form, space.spaces.values()))
    return isinstance(space, (spaces.Box, *_FLATTENED))


def _without_the_rest(space: Space) -> str:
    """The wrapper that keeps those parts of a `Dict` that have a vector form, if there are any."""
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else ()
    keys = ", ".join(key for key, part in parts if _has_vector_form(part))
    wrapper = f"{{class_path: gymnasium.wrappers.FilterObservation, init_args: {{filter_keys: [{keys}]}}}}"
    return f"; to do without the rest, data.wrappers [{wrapper}]" if keys else ""


def _wrap(env: gym.Env, wrapper: ClassPath) -> gym.Env:
    wrap, arguments = resolve("data.wrappers", wrapper)
    try:
        return wrap(env, **arguments)
    except REFUSALS as error:
        path = wrapper if isinstance(wrapper, str) else wrapper["class_path"]
        cure = _missing_extra(error) or cause_of(error)
        raise UserError(f"data.wrappers: {path} refuses the environment: {cure}") from error


def _missing_extra(error: BaseException | None) -> str:
    """What to install, if an import of what an extra brings is at the bottom of the error."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and name in EXTRAS:
            return f'{name} is not installed; pip install "pg_lightning[{EXTRAS[name]}]"'
        error = error.__cause__ or error.__context__
    return ""


def _missing_import(env_id: str) -> str:
    """What to call an environment whose module nobody has imported."""
    module = next((module for start, module in REGISTERED_BY.items() if env_id.startswith(start)), None)
    return f"name it '{module}:{env_id}'" if module is not None and module not in sys.modules else ""
