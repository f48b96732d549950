"""`data.backend auto`: measures which back-end is fastest."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium.vector.utils import batch_space

from pg_lightning.class_path import ClassPath
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.backends.vectorised import AutoresetName
from pg_lightning.envs.contract import Environments, EnvKwargs
from pg_lightning.envs.make import Backend, make_vector_env
from pg_lightning.errors import UserError

CANDIDATES: tuple[Backend, ...] = ("sync", "async", "vector")


def choose_backend(
    env_id: str,
    num_envs: int,
    env_kwargs: EnvKwargs | None = None,
    wrappers: Sequence[ClassPath] = (),
    autoreset_mode: AutoresetName | None = None,
    seconds: float = 0.25,
) -> tuple[Backend, str]:
    """Measures each back-end that can run the environment with random actions.

    EnvPool is not considered: its environments are another implementation, with other arguments and random numbers,
    so the training environment would depend on the installed packages.

    Returns:
        The fastest, and the reason in words.
    """
    speeds: dict[Backend, float] = {}
    for backend in CANDIDATES:
        try:
            env = environments(make_vector_env(env_id, num_envs, env_kwargs, wrappers, backend, autoreset_mode))
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


def _steps_per_second(env: Environments, seconds: float) -> float:
    env.reset(0)
    space = batch_space(env.single_action_space, env.num_envs)
    space.seed(0)
    actions = torch.from_numpy(np.asarray(space.sample()))
    for _ in range(3):
        env.reset()
        env.step(actions)
    env.reset()
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        env.step(actions)
        env.trim(np.zeros(env.num_envs, int))
        rounds += 1
    return rounds * env.num_envs / elapsed
