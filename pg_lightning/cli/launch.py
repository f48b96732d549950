"""What starts the processes of a run, and how many: settled before anything starts."""

from __future__ import annotations

import os
from datetime import timedelta

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from pg_lightning.errors import UserError
from pg_lightning.lightning_private import process_group_timeout, set_process_group_timeout
from pg_lightning.processes import signals
from pg_lightning.torch_private import DEFAULT_TIMEOUT

# How long ranks wait for a rank that hangs, unless the strategy has its own timeout.
RANK_TIMEOUT = timedelta(minutes=5)
MOST_PER_CORE = 16  # processes; more are a mistake
OF_A_NODE = {"MASTER_ADDR": (), "MASTER_PORT": (), "NODE_RANK": ("GROUP_RANK",)}  # and their other names


def require_cores(devices: object) -> None:
    """Refuses far more processes than this machine has cores, whatever the accelerator.

    Args:
        devices: of the Trainer: a number, a list or a word.

    Raises:
        UserError: naming both numbers.
    """
    count = int(devices) if isinstance(devices, (int, str)) and str(devices).isdecimal() else 0
    cores = os.cpu_count() or 1
    if count > MOST_PER_CORE * cores:
        raise UserError(
            f"trainer.devices: {count} processes, each of which needs a core, and this machine has {cores}; for more "
            "environments raise data.num_envs"
        )


def require_launcher(trainer: Trainer) -> None:
    """Refuses several nodes if nothing tells this process which of them it is on: it would wait for the others.

    Raises:
        UserError: naming what starts the processes of several nodes.
    """
    strategy = trainer.strategy
    if trainer.num_nodes == 1 or not isinstance(strategy, ParallelStrategy):
        return
    if type(strategy.cluster_environment) is not LightningEnvironment:  # torchrun, SLURM, LSF, MPI, or the user's own
        return
    missing = [name for name, others in OF_A_NODE.items() if not {name, *others} & os.environ.keys()]
    if missing:
        raise UserError(
            f"trainer.num_nodes: {trainer.num_nodes} nodes, but nothing sets {', '.join(missing)}; start this "
            "command on every node with torchrun, or with srun in a SLURM job, or set these variables on every node"
        )


def prepare_launch(trainer: Trainer) -> None:
    """Sets the timeout for other ranks, and forwards signals to the ranks that the Trainer will launch."""
    require_launcher(trainer)
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and process_group_timeout(strategy) == DEFAULT_TIMEOUT:
        set_process_group_timeout(strategy, RANK_TIMEOUT)
    signals.launches(strategy.launcher)
