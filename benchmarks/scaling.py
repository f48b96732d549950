"""Env steps per second of one process and of several that train one policy, each with the work that the one has.

    python benchmarks/scaling.py [--configs ppo_cartpole a3c_cartpole] [--processes 1 2] [--repeats 5] [--json FILE]

Every run is `python -m pg_lightning fit` with a log and checkpoints; the numbers of processes take turns, and ratios
are taken within a repeat. A run's speed is the median of its `time/steps_per_second`, which counts the steps of all
processes; the first quarter of its lines is left out, and no evaluation falls between the others. Synchronous
algorithms run under `ddp`, A3C under `hogwild`. One thread for each process.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from measuring import listed, machine, median_interval, positive, versions, with_interval

STEPS = {"ppo_cartpole": 100_000, "a2c_cartpole": 60_000, "a3c_cartpole": 60_000, "ppo_halfcheetah": 40_000}


def steps_per_second(config: str, processes: int, steps: int) -> float:
    """Of all processes together, each of which takes `steps` env steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *("fit", "--config", config, "--trainer.default_root_dir", folder, "--trainer.devices", str(processes)),
            *("--data.total_steps", str(steps * processes), "--data.eval_every_steps", str(10**9)),
            *(() if config.startswith("a3c") else ("--trainer.strategy", "ddp" if processes > 1 else "auto")),
        ]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        command = [sys.executable, "-m", "pg_lightning", *arguments]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(f"error: {' '.join(command)}\n{finished.stderr}")
        with next(Path(folder).rglob("metrics.csv")).open(newline="") as file:
            speeds = [
                float(row["time/steps_per_second"]) for row in csv.DictReader(file) if row["time/steps_per_second"]
            ]
    return median(speeds[len(speeds) // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=STEPS, default=["ppo_cartpole", "a3c_cartpole"])
    parser.add_argument("--processes", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", type=Path, help="write every measurement here too")
    arguments = parser.parse_args()
    print(f"{listed(versions())}\n{listed(machine())}\n")
    first = arguments.processes[0]
    print(f"| config | {' | '.join(f'{n} processes, steps/s' for n in arguments.processes)} | over {first} [95 %] |")
    print("|---" * (len(arguments.processes) + 2) + "|")
    measured = {}
    for config in arguments.configs:
        speeds = np.array(
            [
                [steps_per_second(config, processes, STEPS[config]) for processes in arguments.processes]
                for _ in range(arguments.repeats)
            ]
        )
        ratios = speeds[:, 1:] / speeds[:, :1]
        shown = [with_interval(np.median(column), median_interval(column)) for column in ratios.T]
        print(
            f"| `{config}` | {' | '.join(f'{x:,.0f}' for x in np.median(speeds, 0))} | {', '.join(shown)} |", flush=True
        )
        measured[config] = speeds.tolist()
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"processes": arguments.processes, "steps_per_second": measured}, indent=2)
        )


if __name__ == "__main__":
    main()
