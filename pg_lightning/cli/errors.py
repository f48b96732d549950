"""How a command ends: a user error is one line on stderr; a signal may requeue the job."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import traceback
from typing import NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from pg_lightning.errors import ReportedElsewhere, UserError, one_line, show_traceback
from pg_lightning.processes import signals
from pg_lightning.run import CheckpointError
from pg_lightning.run.secrets import without_secrets_in
from pg_lightning.strategies import WorkerError

MISTAKES = (UserError, MisconfigurationException, WorkerError, DistError, CheckpointError)
CALLBACKS = ("lightning.pytorch.callbacks.", "lightning.pytorch.tuner.")
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: "  # of torch


def end_by_signal(stop: signals.Stopped) -> NoReturn:
    """Waits for the processes of the run, reports the signal, and requeues a SLURM job after SIGUSR1."""
    signals.join()
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(stop, file=sys.stderr)
        if stop.signum == signal.SIGUSR1:
            requeue()
    raise stop


def end_by_error(error: Exception) -> NoReturn:
    """Prints a user error as one line and exits with its status, which is 2 but for an environment that failed: 1.

    Raises any other exception again.
    """
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        error = UserError(
            f"out of memory: {one_line(error).partition(NO_MEMORY)[2] or one_line(error)}; lower data.num_envs, "
            "data.num_steps or the size of the network"
        )
    if os.strerror(errno.EMFILE) in str(error):
        error = UserError(
            "this process may open no more files (ulimit -n); raise the limit, or lower data.num_envs with async"
        )
    if isinstance(error, torch.OutOfMemoryError):
        needed = one_line(error).partition(" GPU ")[0].rstrip(".")  # the rest is about the allocator
        error = UserError(f"{needed}; lower data.num_envs or data.num_steps, or set model.micro_batch_size")
    if not isinstance(error, MISTAKES) and (name := _refusing(error)):
        refusal = UserError(f"trainer.callbacks: {name}: {one_line(error)}")
        refusal.__cause__ = error
        error = refusal
    # jsonargparse wraps exceptions of a model's constructor.
    mistake = error if isinstance(error, MISTAKES) else error.__cause__
    if not isinstance(mistake, MISTAKES):
        raise error
    show_traceback(error)
    if not isinstance(mistake.__cause__, ReportedElsewhere):
        sys.stderr.write(f"error: {without_secrets_in(one_line(mistake))}\n")  # at once: ranks share a terminal
    raise SystemExit(getattr(mistake, "status", 2)) from None


def _refusing(error: Exception) -> str:
    """The module of Lightning's callback that raised; empty if the code of this package did, or that of others.

    Lightning's callbacks refuse a misspelt metric, for example, or manual optimization, by an error of any type.
    """
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in names if name.startswith(("pg_lightning.", *CALLBACKS))]
    return ours[-1].rpartition(".")[2] if ours and ours[-1].startswith(CALLBACKS) else ""


def requeue() -> None:
    """Requeues the SLURM job, if there is one."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"warning: scontrol requeue {job} failed: {reason}", file=sys.stderr)
    else:
        print(f"requeued job {job}", file=sys.stderr)
