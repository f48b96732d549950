"""Threads, open files, processes and memory that grow from evaluation to evaluation: reported before there are none."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

PROC = Path("/proc")
TIMES = 5  # evaluations in a row at which a number must have grown
MIB = 2**20
# What is counted, and by how much it must have grown in that time.
LEAST = {"processes": 10, "threads": 10, "open files": 10, "MiB of memory": 500}


class LeakWatch(Callback):
    """Reports, once, what has grown at each of the last evaluations of a training. On Linux only.

    This package keeps all of these constant, so what grows belongs to the environment, or to other code of the user.
    Counts are those of this process and all processes below it, on rank 0.
    """

    def __init__(self) -> None:
        self._counts: deque[dict[str, int]] = deque(maxlen=TIMES + 1)
        self._reported: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts after an evaluation, and compares with those before."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._counts.append(counts_of(os.getpid()))
        new = [name for name in grown(self._counts) if name not in self._reported]
        if new:
            self._reported |= {*new}
            first, last = self._counts[0], self._counts[-1]
            named = " and ".join(f"{name} ({first[name]:,}, now {last[name]:,})" for name in new)
            rank_zero_warn(
                f"data.env_id: {trainer.datamodule.env_id!r} seems to leak: {named} grew at each of the last {TIMES} "  # type: ignore[attr-defined]
                "evaluations; look for what its reset or step, or a wrapper or callback of yours, never gives back"
            )


def grown(counts: Sequence[Mapping[str, int]]) -> list[str]:
    """The names that grew from each of `TIMES + 1` counts to the next, and in all by `LEAST`."""
    if len(counts) <= TIMES or not all(counts):
        return []
    series = {name: [count[name] for count in counts] for name in LEAST}
    return [
        name
        for name, values in series.items()
        if values[-1] - values[0] >= LEAST[name] and all(one < following for one, following in pairwise(values))
    ]


def counts_of(pid: int) -> dict[str, int]:
    """The counts of a process and all processes below it; empty where there is no `/proc`."""
    pids, counts = [pid], dict.fromkeys(LEAST, 0)
    for each in pids:
        folder = PROC / str(each)
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            threads = os.listdir(folder / "task")
            counts["threads"] += len(threads)
            for thread in threads:  # each has the processes that it has started
                pids += map(int, (folder / "task" / thread / "children").read_text().split())
            counts["open files"] += len(os.listdir(folder / "fd"))
            counts["MiB of memory"] += (
                int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // MIB
            )
    counts["processes"] = len(pids)
    return counts if counts["threads"] else {}
