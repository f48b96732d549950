"""Seconds from the start of a process to its first env step: `pg_lightning fit`, Stable-Baselines3 and imports.

    python benchmarks/startup.py [--config ppo_cartpole] [--repeats 5] [--json startup.json]

Every start is a new Python process; the systems take turns, and ratios are taken within a repeat. A first repeat, which
may read from a cold disk, is not counted. `fit` has all features of a user's run: log, checkpoints, evaluation and
progress.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import listed, median_interval, positive, versions, with_interval

HERE = Path(__file__).resolve().parent
ENV_ID = "first_step:FirstStep-v0"
SB3 = "Stable-Baselines3, first step"
SB3_PROGRAM = f"""
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

PPO("MlpPolicy", make_vec_env("{ENV_ID}", 8), n_steps=32, batch_size=256, device="cpu").learn(256)
"""


def systems(config: str) -> dict[str, list[str]]:
    """The arguments of `python`; each program prints `time.time()` at the end."""
    fit = ["-m", "pg_lightning", "fit", "--config", config, "--data.env_id", ENV_ID]
    return {
        "import torch": ["-c", "import time, torch; print(time.time())"],
        "import lightning.pytorch": ["-c", "import time, lightning.pytorch; print(time.time())"],
        "pg_lightning fit, first step": fit,
        SB3: ["-c", SB3_PROGRAM],
    }


def seconds_until_stamp(arguments: list[str]) -> float:
    """Seconds from before the process to the time that it prints last."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        done = subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    try:
        return float(done.stdout.splitlines()[-1]) - start
    except (IndexError, ValueError):
        complaint = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise SystemExit(f"error: python {' '.join(arguments[:3])} ...: {complaint[0]}") from None


def measure(commands: dict[str, list[str]], repeats: int) -> dict[str, Any]:
    runs: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, command in commands.items():
            runs[name].append(seconds_until_stamp(command))
    seconds = {name: np.array(values[1:]) for name, values in runs.items()}
    ratios = {name: values / seconds[SB3] for name, values in seconds.items()}
    return {
        name: {
            "seconds": float(np.median(seconds[name])),
            "seconds_ci95": median_interval(seconds[name]),
            "ratio": float(np.median(ratios[name])),
            "ratio_ci95": median_interval(ratios[name]),
            "repeats": seconds[name].tolist(),
        }
        for name in commands
    }


def table(report: dict[str, Any]) -> str:
    """Markdown, one row per system."""
    lines = [f"| from process start to | seconds [95 %] | ratio to {SB3} [95 %] |", "|---|--:|--:|"]
    for name, row in report.items():
        seconds, ratio = (with_interval(row[key], row[f"{key}_ci95"]) for key in ("seconds", "ratio"))
        lines.append(f"| {name} | {seconds} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default="ppo_cartpole", help="a path, or the name of a shipped config (default: ppo_cartpole)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="interleaved starts of each (default: 5)")
    parser.add_argument("--json", type=Path, help="where to write the numbers, of every repeat too")
    arguments = parser.parse_args()
    path = Path(arguments.config)
    commands = systems(str(path.resolve()) if path.is_file() else arguments.config)
    print(f"{listed(versions())}\n", flush=True)
    report = measure(commands, arguments.repeats)
    print(table(report))
    print(f"\nMedians of {arguments.repeats} interleaved starts, ratios within each repeat; less is better.")
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions(), "systems": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
