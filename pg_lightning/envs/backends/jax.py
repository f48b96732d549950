"""Environments written in JAX: gymnax and Brax, chosen by the name of the library.

Importing this module does not import JAX; making an environment does.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch

from pg_lightning.envs.backends.vectorised import AutoresetName
from pg_lightning.envs.contract import Capabilities, EnvKwargs
from pg_lightning.errors import UserError

if TYPE_CHECKING:
    from pg_lightning.envs.backends.jax_programs import JaxEnv, JaxEnvironments, JaxVectorEnv, Programs

Library = Literal["gymnax", "brax"]
CAPABILITIES = Capabilities(torch.device("cpu"), "same_step", "per_env", can_save_state="by_copy")
_PROGRAMS: dict[tuple[str, str, str], Programs] = {}


def make_jax(
    library: Library,
    env_id: str,
    num_envs: int,
    env_kwargs: EnvKwargs | None,
    autoreset_mode: AutoresetName | None,
    device: torch.device | str,
) -> JaxEnvironments | JaxVectorEnv:
    """`num_envs` environments of one task, compiled and stepped together.

    Args:
        library: that has the task.
        env_id: its name there.
        num_envs: N.
        env_kwargs: arguments of the task.
        autoreset_mode: `same_step` or None for tensors on `device`; `disabled` for NumPy arrays, as evaluation needs.
        device: of the tensors; JAX computes there too.

    Raises:
        UserError: if the library is not installed, or lacks the task, an argument, the mode or the device.
    """
    if autoreset_mode == "next_step":
        raise UserError(f"data.autoreset_mode: backend {library!r} resets as same_step or disabled, not next_step")
    programs = _programs(library, env_id, env_kwargs)
    from pg_lightning.envs.backends.jax_programs import JaxEnvironments, JaxVectorEnv

    form = JaxVectorEnv if autoreset_mode == "disabled" else JaxEnvironments
    return form(programs, num_envs, torch.device(device))


def make_one_jax(library: Library, env_id: str, env_kwargs: EnvKwargs | None) -> JaxEnv:
    """One environment on the CPU, whose arrays are NumPy's; see `make_jax` for arguments and errors."""
    programs = _programs(library, env_id, env_kwargs)
    from pg_lightning.envs.backends.jax_programs import JaxEnv

    return JaxEnv(programs)


def _programs(library: Library, env_id: str, env_kwargs: EnvKwargs | None) -> Programs:
    """The programs of a task, made once: training and evaluation run the same, and Brax's take long to compile.

    Raises:
        UserError: if the library is not installed; see the tasks for others.
    """
    # JAX would take three quarters of a GPU's memory for itself, and the policy needs it too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        from pg_lightning.envs.backends.jax_programs import Programs

        tasks = import_module(f"pg_lightning.envs.backends.{library}_task")
    except ImportError as error:
        missing = (error.name or library).partition(".")[0]
        raise UserError(f'data.backend: {missing} is not installed; pip install "pg_lightning[{library}]"') from error
    key = library, env_id, repr(env_kwargs or {})
    if key not in _PROGRAMS:
        _PROGRAMS[key] = Programs(tasks.Task(env_id, env_kwargs or {}))
    return _PROGRAMS[key]
