"""Environments written in JAX: gymnax and Brax, chosen by the name of the library.

Importing this module does not import JAX; making an environment does.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Literal

import gymnasium as gym
import torch

from pg_lightning.envs.backends.vectorised import AutoresetName
from pg_lightning.envs.contract import Capabilities, EnvKwargs
from pg_lightning.errors import UserError

Library = Literal["gymnax", "brax"]
CAPABILITIES = Capabilities(torch.device("cpu"), "same_step", "per_env", can_save_state="by_copy")
_PROGRAMS: dict[tuple[str, str, str], Any] = {}


def make_jax(
    library: Library,
    env_id: str,
    num_envs: int,
    env_kwargs: EnvKwargs | None,
    autoreset_mode: AutoresetName | None,
    device: torch.device | str,
) -> Any:
    """`num_envs` environments of one task, compiled and stepped together.

    Args:
        library: that has the task.
        env_id: its name there.
        num_envs: N.
        env_kwargs: arguments of the task.
        autoreset_mode: `same_step` or None for tensors on `device`; `disabled` for NumPy arrays, as evaluation needs.
        device: of the tensors; JAX computes there too.

    Returns:
        A `JaxEnvironments`, or with `disabled` a `JaxVectorEnv`.

    Raises:
        UserError: if the library is not installed, or lacks the task, an argument, the mode or the device.
    """
    if autoreset_mode == "next_step":
        raise UserError(f"data.autoreset_mode: backend {library!r} resets as same_step or disabled, not next_step")
    forms, programs = _programs(library, env_id, env_kwargs)
    form = forms.JaxVectorEnv if autoreset_mode == "disabled" else forms.JaxEnvironments
    return form(programs, num_envs, torch.device(device))


def make_one_jax(library: Library, env_id: str, env_kwargs: EnvKwargs | None) -> gym.Env[Any, Any]:
    """One environment on the CPU, whose arrays are NumPy's; see `make_jax` for arguments and errors."""
    forms, programs = _programs(library, env_id, env_kwargs)
    env: gym.Env[Any, Any] = forms.JaxEnv(programs)
    return env


def _programs(library: Library, env_id: str, env_kwargs: EnvKwargs | None) -> tuple[Any, Any]:
    """The module with the forms of environments, and the programs of a task.

    The programs are made once, because training and evaluation run the same ones: Brax takes half a minute to compile.
    """
    # JAX would take three quarters of a GPU's memory for itself, and the policy needs it too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    here = __name__.rpartition(".")[0]
    try:
        forms, tasks = import_module(f"{here}.jax_programs"), import_module(f"{here}.{library}_task")
    except ImportError as error:
        missing = (error.name or library).partition(".")[0]
        raise UserError(f'data.backend: {missing} is not installed; pip install "pg_lightning[{library}]"') from error
    key = library, env_id, repr(env_kwargs or {})
    if key not in _PROGRAMS:
        _PROGRAMS[key] = forms.Programs(tasks.Task(env_id, env_kwargs or {}))
    return forms, _PROGRAMS[key]
