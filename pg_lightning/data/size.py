"""Whether a run has room on the machine, estimated before anything is reserved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pg_lightning.envs import BACKENDS, make_env
from pg_lightning.envs.room import in_gb, memory_of_machine, require_processes, require_room
from pg_lightning.errors import UserError, require

if TYPE_CHECKING:
    from pg_lightning.data.datamodule import RolloutDataModule

# The highest counts: seeds of all episodes are in a list; the length of a loader, twice the budget, is 64 bits.
MOST = {"eval_episodes": 10**7, "total_steps": 2**62}
ROW_BYTES = 4 + 8 + 3  # reward, timestep, and three flags


def require_counts(counts: Mapping[str, int]) -> None:
    """Refuses counts that are not at least 1, or too high.

    Raises:
        UserError: naming the field.
    """
    for name, count in counts.items():
        require(f"data.{name}", count, 1)
        require(f"data.{name}", count, 1, MOST.get(name, MOST["total_steps"]))


def require_space(data: RolloutDataModule) -> None:
    """Refuses rollouts and environments that need more than the machine has; those on a device are not estimated.

    Raises:
        UserError: naming the sizes.
    """
    spec = BACKENDS[data.backend]
    if spec.capabilities.device is not None or data.instance is not None:
        return
    obs, actions = data.observation_space, data.action_space
    item = np.dtype(obs.dtype).itemsize if np.dtype(obs.dtype).kind in "iub" else 4
    row = math.prod(obs.shape or ()) * item + math.prod(actions.shape or ()) * 8 + ROW_BYTES
    needed, there = data.num_columns * (data.num_steps + 1) * row, memory_of_machine()
    if needed > there:
        raise UserError(
            f"data.num_steps: a rollout of {data.num_steps} steps in {data.num_envs} environments (data.num_envs) "
            f"takes about {in_gb(needed)}, and this machine has {in_gb(there)} of memory; lower one of them"
        )
    if data.self_play is not None:
        return
    if spec.capabilities.supervises:
        require_processes(data.num_envs)
    elif spec.make_one is None and spec.make is BACKENDS[spec.alone].make:
        require_room(partial(make_env, data.env_id, data.env_kwargs, data.wrappers), data.num_envs)
