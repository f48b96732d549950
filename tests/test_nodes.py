"""The ways onto several nodes: torchrun, and the batch file for SLURM with an srun of our own."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from run_files import load

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
# One process per task, as on one node of two tasks.
SRUN = """#!/bin/bash
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
  tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""


def env_steps(folder: Path) -> int:
    return load(folder / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"]


def test_torchrun(tiny, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pg_lightning"]
    arguments = ["fit", "--config", str(tiny), "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    finished = subprocess.run(
        launch + arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert env_steps(tmp_path) == 768  # 704 in rollouts of two ranks, 128 each


def test_the_batch_file_starts_goes_on_and_ends(tiny, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pg_lightning", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    batch_file = Path(__file__).parents[1] / "docs/train.sbatch"
    for total_steps, reached in (("400", 512), ("700", 768)):
        finished = subprocess.run(
            ["bash", batch_file, str(tiny), "--data.total_steps", total_steps],
            cwd=tmp_path,
            env={**ENVIRONMENT, **slurm, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stderr
        assert env_steps(tmp_path) == reached
    assert [folder.name for folder in (tmp_path / "runs/tiny").iterdir()] == ["version_0"]
