"""Vector environments from an id: construction, wrappers, seeds, and the choice of back-end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv

from pg_lightning.class_path import ClassPath, new_name, require_id, resolve, with_functions
from pg_lightning.envs.backends import simulator
from pg_lightning.envs.backends.jax import CAPABILITIES as IN_JAX
from pg_lightning.envs.backends.jax import Library, make_jax, make_one_jax
from pg_lightning.envs.backends.pool import PoolEnv, PoolVectorEnv
from pg_lightning.envs.backends.serial import SerialVectorEnv
from pg_lightning.envs.backends.tensor import TensorEnvironments
from pg_lightning.envs.backends.vectorised import (
    CAPABILITIES,
    MODES,
    REFUSALS,
    AutoresetName,
    make_vectorised,
    refused_field,
)
from pg_lightning.envs.backends.workers import WorkerVectorEnv
from pg_lightning.envs.contract import Capabilities, Environments, EnvKwargs
from pg_lightning.envs.failures import in_code, made
from pg_lightning.envs.flattened import Flattened
from pg_lightning.envs.replay import Replayable
from pg_lightning.envs.stateful import refuse_statistics
from pg_lightning.errors import UserError, cause_of, one_line

Backend = Literal["sync", "async", "vector", "envpool", "device", "gymnax", "brax", "simulator", "auto"]


class Order(NamedTuple):
    """The arguments of `make_vector_env`."""

    env_id: str
    num_envs: int
    env_kwargs: EnvKwargs | None
    wrappers: Sequence[ClassPath]
    backend: Backend
    autoreset_mode: AutoresetName | None
    env_timeout: float
    max_env_restarts: int
    device: torch.device | str


_FLATTENED = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
# Imported modules, and the extra that installs them.
EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "minigrid": "minigrid", "mujoco": "mujoco"}
# Prefixes of ids that are registered only after an import.
REGISTERED_BY = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Tuple or Dict of these"


def make_env(
    env_id: str,
    env_kwargs: EnvKwargs | None = None,
    wrappers: Sequence[ClassPath] = (),
    backend: Backend = "sync",
) -> gym.Env:
    """One environment whose observations are arrays.

    Args:
        env_id: a Gymnasium id; `module:EnvId` imports the module that registers it first.
        env_kwargs: arguments of the environment.
        wrappers: class paths, or `{class_path, init_args}`, applied in this order.
        backend: `envpool`, `gymnax` or `brax` for the implementation of these libraries, any other for Gymnasium's.

    Returns:
        The environment, with `Discrete`, `MultiDiscrete`, `MultiBinary`, `Tuple` and `Dict` observations flattened
        (categories one-hot); then its observation space is a `FlattenedBox`.

    Raises:
        UserError: if the id, a wrapper, an argument or the observation space cannot be used, naming it.
    """
    require_id(env_id)
    if (make_one := BACKENDS[backend].make_one) is not None:
        _refuse_wrappers(wrappers, backend)
        return make_one(env_id, env_kwargs)
    with made("data.env_id", env_id):
        env = _registered(env_id, env_kwargs)
    refuse_statistics(env, "data.env_id")
    for wrapper in wrappers:
        env = _wrap(env, wrapper)
    refuse_statistics(env, "data.wrappers")
    if not _has_vector_form(env.observation_space):
        raise UserError(
            f"data.env_id: observation space {one_line(env.observation_space)} is not supported; "
            f"supported are {SUPPORTED_OBSERVATIONS}{_filter_wrapper(env.observation_space)}"
        )
    if not isinstance(env.observation_space, spaces.Box) or not env.observation_space.shape:
        env = Flattened(env)
    return env


def _registered(env_id: str, env_kwargs: EnvKwargs | None) -> gym.Env:
    try:
        return gym.make(env_id, disable_env_checker=True, **(env_kwargs or {}))
    except REFUSALS as error:
        if name := new_name(env_id):
            raise UserError(f"data.env_id: {env_id!r} is now {name!r}") from error
        cure = _missing_extra(error) or _missing_import(env_id) or cause_of(error) + in_code(error)
        raise UserError(f"{refused_field(error)}: cannot make {env_id!r}: {cure}") from error


def make_vector_env(
    env_id: str,
    num_envs: int,
    env_kwargs: EnvKwargs | None = None,
    wrappers: Sequence[ClassPath] = (),
    backend: Backend = "sync",
    autoreset_mode: AutoresetName | None = None,
    env_timeout: float = 60.0,
    max_env_restarts: int = 100,
    device: torch.device | str = "cpu",
) -> Any:
    """`num_envs` environments that step together.

    Args:
        env_id: see `make_env`, also for `env_kwargs` and `wrappers`.
        num_envs: number of environments.
        backend: `sync` steps them in this process, one after the other; `async` in one process each, through shared
            memory; `vector` uses the environment's own vectorised implementation; `envpool` uses EnvPool's. For an
            autoreset mode other than EnvPool's `next_step`, each environment gets its own pool, stepped one by one.
            `device` steps classic control tasks as tensors on `device`, `gymnax` and `brax` those of these libraries;
            `simulator` uses a vector environment that returns tensors, on its own device.
        autoreset_mode: when a finished episode is reset; by default within the step, or as in the vectorised
            implementation.
        env_timeout: with `async`, the seconds after which an environment that does not answer is replaced.
        max_env_restarts: with `async`, the number of replacements after which the next failure raises.
        device: of the tensors, for the back-ends `device`, `gymnax` and `brax`.

    Returns:
        A Gymnasium vector environment, or an object that implements `envs.contract.Environments`.

    Raises:
        UserError: if they cannot be made with these arguments, naming the field.
    """
    require_id(env_id)
    order = Order(
        env_id, num_envs, env_kwargs, wrappers, backend, autoreset_mode, env_timeout, max_env_restarts, device
    )
    return BACKENDS[backend].make(order)


def _make_replayable(*arguments: Any) -> gym.Env:
    return Replayable(make_env(*arguments))


def _one_by_one(order: Order) -> Callable[[], gym.Env]:
    return partial(_make_replayable, order.env_id, order.env_kwargs, order.wrappers, order.backend)


def _serial(order: Order) -> SerialVectorEnv:
    mode = MODES[order.autoreset_mode or "same_step"]
    return SerialVectorEnv([_one_by_one(order)] * order.num_envs, copy=False, autoreset_mode=mode)


def _workers(order: Order) -> VectorEnv:
    mode = MODES[order.autoreset_mode or "same_step"]
    return WorkerVectorEnv(_one_by_one(order), order.num_envs, mode, order.env_timeout, order.max_env_restarts)


def _vectorised(order: Order) -> VectorEnv:
    _refuse_wrappers(order.wrappers, order.backend)
    return make_vectorised(order.env_id, order.num_envs, order.env_kwargs, order.autoreset_mode)


def _on_device(order: Order) -> Environments:
    _refuse_wrappers(order.wrappers, order.backend)
    if order.autoreset_mode not in (None, "same_step"):
        raise UserError(f"data.autoreset_mode: backend 'device' resets as same_step, not {order.autoreset_mode}")
    return TensorEnvironments(order.env_id, order.num_envs, order.env_kwargs, order.device)


def _in_jax(library: Library) -> BackendSpec:
    def make(order: Order) -> VectorEnv | Environments:
        _refuse_wrappers(order.wrappers, library)
        return make_jax(library, order.env_id, order.num_envs, order.env_kwargs, order.autoreset_mode, order.device)

    one = partial(make_one_jax, library)
    return BackendSpec(make, IN_JAX, library, library, one, renders=False, forks=False)


def _simulator(order: Order) -> Environments:
    _refuse_wrappers(order.wrappers, order.backend)
    env = simulator.make_simulator(order.env_id, order.num_envs, order.env_kwargs)
    if order.autoreset_mode not in (None, mode := env.capabilities.autoreset):
        env.close()
        raise UserError(f"data.autoreset_mode: {order.env_id} resets as {mode}, not {order.autoreset_mode}")
    return env


def _pool(order: Order) -> VectorEnv:
    if order.autoreset_mode not in (None, "next_step"):
        env = _serial(order)
        env.capabilities = replace(env.capabilities, can_save_state="no")  # EnvPool's random numbers are its own
        return env
    _refuse_wrappers(order.wrappers, order.backend)
    return PoolVectorEnv(order.env_id, order.num_envs, order.env_kwargs)


@dataclass(frozen=True)
class BackendSpec:
    """Properties of a back-end that are known before it has made an environment.

    Attributes:
        make: makes the vector environment.
        capabilities: in its default autoreset mode.
        evaluates_in: the back-end for evaluations; it can reset single environments.
        alone: the back-end that steps the same environments in this process.
        make_one: makes a single environment if the implementation is not Gymnasium's; wrappers are refused.
        renders: whether its environments can render.
        forks: whether its environments can be stepped in a forked process.
    """

    make: Callable[[Order], VectorEnv | Environments]
    capabilities: Capabilities
    evaluates_in: Backend = "sync"
    alone: Backend = "sync"
    make_one: Callable[[str, EnvKwargs | None], gym.Env] | None = None
    renders: bool = True
    forks: bool = True


SAME_STEP: Any = {"autoreset": "same_step", "can_reset_some": False}
# The only place that uses back-end names. `auto` is replaced by the measured choice.
BACKENDS: dict[Backend, BackendSpec] = {
    "sync": BackendSpec(_serial, replace(SerialVectorEnv.capabilities, **SAME_STEP)),
    "async": BackendSpec(_workers, replace(WorkerVectorEnv.capabilities, **SAME_STEP), evaluates_in="async"),
    "vector": BackendSpec(_vectorised, CAPABILITIES),
    "envpool": BackendSpec(_pool, PoolVectorEnv.capabilities, "envpool", "envpool", PoolEnv, renders=False),
    "device": BackendSpec(_on_device, TensorEnvironments.capabilities),
    "gymnax": _in_jax("gymnax"),
    "brax": _in_jax("brax"),
    "simulator": BackendSpec(_simulator, simulator.CAPABILITIES, "simulator", "simulator", renders=False),
    "auto": BackendSpec(_serial, Capabilities(seeds="per_env")),
}


def _refuse_wrappers(wrappers: Sequence[ClassPath], backend: Backend) -> None:
    if wrappers:
        raise UserError(
            f"data.wrappers: backend {backend!r} runs the environment's own vectorised code, which takes no "
            "wrappers; remove them"
        )


def _has_vector_form(space: Space) -> bool:
    if isinstance(space, spaces.Tuple):
        return all(map(_has_vector_form, space.spaces))
    if isinstance(space, spaces.Dict):
        return all(map(_has_vector_form, space.spaces.values()))
    return isinstance(space, (spaces.Box, *_FLATTENED))


def _filter_wrapper(space: Space) -> str:
    """The cure: a wrapper that keeps the entries of a `Dict` that can be flattened, if there are any."""
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else ()
    keys = ", ".join(key for key, part in parts if _has_vector_form(part))
    wrapper = f"{{class_path: gymnasium.wrappers.FilterObservation, init_args: {{filter_keys: [{keys}]}}}}"
    return f"; to drop the other entries, use data.wrappers [{wrapper}]" if keys else ""


def _wrap(env: gym.Env, wrapper: ClassPath) -> gym.Env:
    path = wrapper if isinstance(wrapper, str) else str(wrapper.get("class_path", ""))
    with made("data.wrappers", path):
        wrap, given = resolve("data.wrappers", wrapper)
        arguments = with_functions("data.wrappers", wrap, given) if isinstance(given, Mapping) else given
        try:
            return wrap(env, **arguments)
        except REFUSALS as error:
            cure = _missing_extra(error) or cause_of(error) + in_code(error)
            raise UserError(f"data.wrappers: {path} cannot wrap the environment: {cure}") from error


def _missing_extra(error: BaseException | None) -> str:
    """The command that installs the missing package, if the error was caused by importing a package of an extra."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and name in EXTRAS:
            return f'{name} is not installed; pip install "pg_lightning[{EXTRAS[name]}]"'
        error = error.__cause__ or error.__context__
    return ""


def _missing_import(env_id: str) -> str:
    """The cure for an id whose module was not imported."""
    module = next((module for start, module in REGISTERED_BY.items() if env_id.startswith(start)), None)
    return f"name it '{module}:{env_id}'" if module is not None and module not in sys.modules else ""
