"""Simulators: vector environments that return tensors, made from a name and recognised by their attributes."""

from __future__ import annotations

import importlib
import inspect
from typing import Literal, cast

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from pg_lightning.class_path import resolve
from pg_lightning.envs import failures
from pg_lightning.envs.backends.simulator_contracts import (
    FiveValueEnv,
    FiveValues,
    FourValueEnv,
    FourValues,
)
from pg_lightning.envs.backends.vectorised import REFUSALS, refused_field
from pg_lightning.envs.contract import Capabilities, Environments, EnvKwargs
from pg_lightning.envs.stateful import refuse_statistics
from pg_lightning.errors import UserError, cause_of

CAPABILITIES = Capabilities(autoreset="same_step", single_instance=True)
MANISKILL = "for ManiSkill, set data.env_id to mani_skill.vector.wrappers.gymnasium.ManiSkillVectorEnv"


def make_simulator(env_id: str, num_envs: int, env_kwargs: EnvKwargs | None) -> Environments:
    """A simulator as `Environments`.

    Args:
        env_id: a Gymnasium id, or the path of a function or a class that returns the environment.
        num_envs: N, passed on if the function has such an argument.
        env_kwargs: arguments of the environment.

    Raises:
        UserError: if it cannot be made, is of no known kind, has another number of environments or returns no tensors.
    """
    if "num_envs" in (env_kwargs or {}):
        raise UserError("data.env_kwargs: num_envs is data.num_envs; remove it")
    with failures.made("data.env_id", env_id):
        try:
            made = _made(env_id, num_envs, env_kwargs or {})
        except UserError:
            raise
        except REFUSALS as error:
            cause = cause_of(error) + failures.in_code(error)
            raise UserError(f"{refused_field(error)}: cannot make {env_id!r}: {cause}") from error
        refuse_statistics(made, "data.env_id")
        env = _adapted(env_id, made)
    if env.num_envs != num_envs:
        env.close()
        raise UserError(
            f"data.num_envs: {env_id} has {env.num_envs} environments, not {num_envs}; set it to {env.num_envs}"
        )
    return env


def _made(env_id: str, num_envs: int, env_kwargs: EnvKwargs) -> object:
    """What the name makes: Gymnasium's registered environment, or the result of the function."""
    if env_id in gym.registry or ":" in env_id or "." not in env_id:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        if gym.spec(name).vector_entry_point is not None:
            return gym.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **env_kwargs)
        try:
            return gym.make(name, disable_env_checker=True, num_envs=num_envs, **env_kwargs)
        except TypeError as error:
            if "num_envs" in str(error):
                raise UserError(f"data.backend: {env_id!r} is one environment, not many; set it to sync") from error
            raise
    make, _ = resolve("data.env_id", env_id)
    count = {"num_envs": num_envs} if "num_envs" in inspect.signature(make).parameters else {}
    return make(**count, **env_kwargs)


def _adapted(env_id: str, env: object) -> Environments:
    """The adapter for what the object has."""
    if isinstance(capabilities := getattr(env, "capabilities", None), Capabilities) and not isinstance(env, VectorEnv):
        if capabilities.device is None:
            raise UserError(f"data.backend: {env_id} returns NumPy arrays, not tensors; set it to vector")
        return cast(Environments, env)
    if hasattr(env, "get_observations") and hasattr(env, "num_actions"):
        return FourValues(cast(FourValueEnv, env))
    if isinstance(env, VectorEnv) or getattr(getattr(env, "unwrapped", env), "is_vector_env", False):
        return FiveValues(cast(FiveValueEnv, env), _autoreset(env_id, env))
    raise UserError(
        f"data.env_id: {env_id} is no vector environment: neither a gymnasium.vector.VectorEnv, nor a class with "
        f"is_vector_env, nor an rsl_rl VecEnv; {MANISKILL}"
    )


def _autoreset(env_id: str, env: object) -> Literal["same_step", "next_step"]:
    """When a simulator resets a finished episode.

    Isaac Lab and mjlab do so within the step unless their `cfg` disables it; ManiSkill has an argument `auto_reset`.
    """
    cfg = getattr(getattr(env, "unwrapped", env), "cfg", None)
    said = getattr(env, "metadata", {}).get("autoreset_mode")
    resets = getattr(env, "auto_reset", getattr(cfg, "auto_reset", None))
    modes = said, getattr(cfg, "autoreset_mode", None)
    if resets is False or any("disabled" in str(mode).lower() for mode in modes):
        raise UserError(f"data.env_id: {env_id} does not reset finished episodes; enable its automatic reset")
    if said is not None:
        return "next_step" if AutoresetMode(said) is AutoresetMode.NEXT_STEP else "same_step"
    if isinstance(env, VectorEnv) and resets is None:
        raise UserError(
            f"data.env_id: {type(env).__name__} does not say when it resets a finished episode; "
            'set metadata["autoreset_mode"] to AutoresetMode.SAME_STEP or NEXT_STEP in the class'
        )
    return "same_step"
