"""Env steps per second of one process and of several that train one policy, with the same work per process.

    python benchmarks/scaling.py [--configs ppo_cartpole a3c_cartpole] [--processes 2] [--repeats 5] [--json FILE]

Every run is `python -m pg_lightning fit` with a log and checkpoints. Three variants take turns: one process; K
processes with one policy; and K independent processes, each with its own policy, which show what the machine gives to K
processes at a time. Ratios are taken within a repeat. Speeds come from `time/steps_per_second`, which counts the steps
of all processes of a run; the first quarter of its lines is left out, and the other lines contain no evaluation.
Synchronous algorithms run under `ddp`, A3C under `hogwild`, with one thread per process. At the end, the time of an
all-reduce of a gradient over the ranks of `ddp` is measured, through gloo and through shared memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from measuring import listed, machine, median_interval, positive, versions, with_interval
from torch import distributed

from pg_lightning.analysis.curves import rows_of, seconds_of
from pg_lightning.collectives import SharedMemory, connect

STEPS = {"ppo_cartpole": 100_000, "a2c_cartpole": 60_000, "a3c_cartpole": 60_000, "ppo_halfcheetah": 40_000}
MESSAGE = 9_155  # float32: the weights of two networks of 64-64 for CartPole, and one number more


def start(config: str, processes: int, folder: str) -> subprocess.Popen[str]:
    """Starts a run of `processes` processes, each of which takes as many env steps as a single process would."""
    arguments = [
        *("fit", "--config", config, "--trainer.default_root_dir", folder, "--trainer.devices", str(processes)),
        *("--data.total_steps", str(STEPS[config] * processes), "--data.eval_every_steps", str(10**9)),
        *(() if config.startswith("a3c") else ("--trainer.strategy", "ddp" if processes > 1 else "auto")),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "pg_lightning", *arguments],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_per_second(config: str, processes: int, runs: int = 1) -> float:
    """Env steps per second of all processes of all runs, which run in parallel."""
    with tempfile.TemporaryDirectory() as folder:
        started = [start(config, processes, f"{folder}/{i}") for i in range(runs)]
        for run in started:
            _, error = run.communicate()
            if run.returncode:
                raise SystemExit(f"error: {config} on {processes} processes\n{error}")
        return sum(speed_of(file) for file in Path(folder).rglob("metrics.csv"))


def speed_of(log: Path) -> float:
    """Env steps over seconds of the last three quarters of a run, so that temporary slowdowns of a core count."""
    steps, seconds = seconds_of(rows_of(log))
    later = len(steps) // 4
    return float((steps[-1] - steps[later]) / (seconds[-1] - seconds[later]))


def exchange(rank: int, num_ranks: int, port: int, queue: multiprocessing.Queue[list[float]]) -> None:
    """All-reduces a vector by gloo and by shared memory, in turns of 100, with half a millisecond of work
    in between.

    The first half of each turn is left out, because ranks leave gloo at different times.
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=num_ranks)
    memory = cast(SharedMemory, connect(num_ranks, torch.device("cpu"), 4 * MESSAGE, timeout=60.0))
    x = torch.zeros(MESSAGE)
    ways: list[Callable[[torch.Tensor], object]] = [distributed.all_reduce, memory.all_reduce_]
    seconds = np.empty((20, 2, 100))
    for turn, way, i in np.ndindex(seconds.shape):
        then = time.perf_counter()
        while time.perf_counter() - then < 5e-4:
            pass
        then = time.perf_counter()
        ways[way](x)
        seconds[turn, way, i] = time.perf_counter() - then
    if rank == 0:
        queue.put(seconds[:, :, 50:].mean((0, 2)).tolist())
    distributed.barrier()


def seconds_to_add_up(num_ranks: int) -> list[float]:
    """Mean seconds by gloo and by shared memory; means, because ranks wait for the slowest each time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[float]] = spawn.Queue()
    processes = [spawn.Process(target=exchange, args=(rank, num_ranks, port, queue)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    seconds = queue.get(timeout=120)
    for process in processes:
        process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=STEPS, default=["ppo_cartpole", "a3c_cartpole"])
    parser.add_argument("--processes", type=positive, default=2, help="K")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", type=Path, help="write every measurement here too")
    arguments = parser.parse_args()
    k = arguments.processes
    print(f"{listed(versions())}\n{listed(machine())}\n")
    print(f"| config | steps/s of 1 process | {k} processes | {k} runs beside each other | ", end="")
    print(f"{k} processes / 1 [95 %] | {k} processes / {k} runs [95 %] |\n{'|---' * 6}|")
    measured = {}
    for config in arguments.configs:
        speeds = np.array(
            [
                [steps_per_second(config, 1), steps_per_second(config, k), steps_per_second(config, 1, runs=k)]
                for _ in range(arguments.repeats)
            ]
        )
        ratios = [speeds[:, 1] / speeds[:, 0], speeds[:, 1] / speeds[:, 2]]
        shown = [with_interval(np.median(ratio), median_interval(ratio)) for ratio in ratios]
        print(
            f"| `{config}` | {' | '.join(f'{x:,.0f}' for x in np.median(speeds, 0))} | {' | '.join(shown)} |",
            flush=True,
        )
        measured[config] = speeds.tolist()
    gloo, memory = seconds_to_add_up(k)
    print(f"\n{MESSAGE:,} float32 of {k} ranks added up: gloo {gloo * 1e6:.0f} µs, memory {memory * 1e6:.0f} µs")
    if arguments.json:
        measured |= {"processes": k, "seconds_to_add_up": {"gloo": gloo, "memory": memory}}
        arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
