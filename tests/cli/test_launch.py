"""More processes or nodes than there can be are one line, before anything starts."""

import os

import pytest
from lightning.pytorch import Trainer
from run_files import complaint

from pg_lightning.cli.launch import MOST_PER_CORE, require_cores, require_launcher
from pg_lightning.errors import UserError

# What tells Lightning about other nodes, in any of its cluster environments.
VARIABLES = [
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"),
    *("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "LSB_JOBID"),
]
BY_HAND = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1"}


@pytest.fixture
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("strategy", ["auto", "ddp", "hogwild"])
@pytest.mark.parametrize("devices", [1000, 10**13])
def test_many_more_processes_than_cores_are_refused(devices, strategy, cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    arguments = ("--trainer.devices", devices, "--trainer.strategy", strategy)
    assert complaint(cli(tmp_path, "fit", "--config", tiny, *arguments)) == (
        f"trainer.devices: {devices} processes, each of which needs a core, and this machine has 2; for more "
        "environments raise data.num_envs"
    )


def test_some_more_are_not(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for devices in (1, "auto", -1, "-1", [0, 1], 2 * MOST_PER_CORE, str(2 * MOST_PER_CORE), None):
        require_cores(devices)
    for devices in (2 * MOST_PER_CORE + 1, str(2 * MOST_PER_CORE + 1)):
        with pytest.raises(UserError, match=f"^trainer.devices: {2 * MOST_PER_CORE + 1} processes"):
            require_cores(devices)


@pytest.mark.parametrize("missing", [("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"), ("MASTER_PORT",), ("NODE_RANK",)])
def test_nodes_that_nothing_starts_are_refused_with_what_starts_them(missing, cli, tiny, tmp_path, alone):
    for name in BY_HAND.keys() - set(missing):
        alone.setenv(name, BY_HAND[name])
    assert complaint(cli(tmp_path, "fit", "--config", tiny, "--trainer.num_nodes", 3)) == (
        f"trainer.num_nodes: 3 nodes, but nothing sets {', '.join(missing)}; start this command on every node with "
        "torchrun, or with srun in a SLURM job, or set these variables on every node"
    )


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "GROUP_RANK": "1"}
SLURM = {"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train"}
SLURM |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}


@pytest.mark.parametrize("started", [BY_HAND, TORCHRUN, SLURM, {"GROUP_RANK": "1"} | BY_HAND], ids=str)
def test_nodes_that_are_started_are_accepted(started, alone):
    for name, value in started.items():
        alone.setenv(name, value)
    trainer = Trainer(accelerator="cpu", strategy="ddp", devices=1, num_nodes=3, logger=False)
    require_launcher(trainer)
    for name in started:
        alone.delenv(name)
    require_launcher(Trainer(accelerator="cpu", strategy="ddp", devices=2, logger=False))
