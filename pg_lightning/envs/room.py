"""Whether many environments have room on the machine: memory, time, processes and open files."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
from lightning.pytorch.utilities import rank_zero_info

from pg_lightning.envs import failures
from pg_lightning.errors import UserError

MANY = 1000  # environments in one process from which their cost is estimated first
SAMPLE = 50  # environments that are made for the estimate
LONG_S = 10.0  # from here on it is announced how long they take
PROCESS_BYTES = 8e6  # memory that a forked process has for itself, at least
FILES_PER_PROCESS, FILES_BESIDE = 2, 64  # of a process of an environment, and of everything else
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_of_machine() -> float:
    """Bytes of memory that this process may use; infinity if unknown."""
    limit = math.inf
    with suppress(OSError, ValueError, AttributeError):
        limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # of a container
        limit = min(limit, float(CGROUP_LIMIT.read_text()))
    return limit


def require_processes(num_envs: int) -> None:
    """Refuses more processes than memory or the limit of open files allow.

    Raises:
        UserError: with the number that is possible.
    """
    needed, there = num_envs * PROCESS_BYTES, memory_of_machine()
    if needed > there:
        raise UserError(
            f"data.num_envs: backend async starts {num_envs} processes, which take at least {in_gb(needed)}, and this "
            f"machine has {in_gb(there)} of memory; set at most {int(there / PROCESS_BYTES)}"
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and FILES_PER_PROCESS * num_envs + FILES_BESIDE > files:
        most = (files - FILES_BESIDE) // FILES_PER_PROCESS
        cure = f"set at most {most}, or raise the limit" if most > 0 else "raise the limit"
        raise UserError(
            f"data.num_envs: backend async opens {FILES_PER_PROCESS} files for each of {num_envs} environments, and "
            f"this process may open {files} (ulimit -n); {cure}"
        )


def require_room(make: Callable[[], gym.Env], num_envs: int) -> None:
    """Refuses more environments in one process than memory allows, and announces how long it takes to make many.

    Few are not measured.

    Raises:
        UserError: with the estimate.
    """
    if num_envs < MANY:
        return
    before, begin = _resident(), time.perf_counter()
    sample = [make() for _ in range(SAMPLE)]
    seconds = (time.perf_counter() - begin) / SAMPLE * num_envs
    needed, there = (_resident() - before) / SAMPLE * num_envs, memory_of_machine()
    for env in sample:
        failures.close(env)
    if needed > there:
        raise UserError(
            f"data.num_envs: {num_envs} environments take about {in_gb(needed)}, and this machine has "
            f"{in_gb(there)} of memory; lower it"
        )
    if seconds > LONG_S:
        rank_zero_info(
            f"data.num_envs: it takes about {seconds:,.0f} s and {in_gb(needed)} to make {num_envs} environments "
            "one by one; data.backend vector, envpool or device has one for all, if the environment has such code"
        )


def in_gb(size: float) -> str:
    """A number of bytes in gigabytes."""
    return f"{size / 1e9:,.1f} GB"


def _resident() -> int:
    """Bytes of this process in memory; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
