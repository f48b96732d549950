"""Starts pairs of runs in the same moment, and counts those that share a folder.

    python benchmarks/races.py --pairs 50 --seed 1

Every other pair begins anew: both must succeed, each in a folder of its own. The other pairs continue the newest run,
`fit --ckpt_path last`, the second one after a random fraction of a second: one must be refused in one line, and the
`metrics.csv` must be that of one run. A third of the pairs is killed on the way and continued, which must succeed.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill import CONFIG, ROOT

REFUSED = "error: trainer.default_root_dir: another fit is running in "


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a run, whose output goes to a file of that name."""
    return subprocess.Popen(
        [sys.executable, "-m", "pg_lightning", "fit", "--config", "kill.yaml", *arguments],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)},
        stdout=(folder / name).open("wb"),
        stderr=subprocess.STDOUT,
    )


def faults(folder: Path, names: list[str], status: list[int], continues: bool) -> list[str]:
    """What is wrong after a pair."""
    found = [] if sorted(status) == ([0, 2] if continues else [0, 0]) else [f"exit status {status}"]
    for name, code in zip(names, status, strict=True):
        errors = [line for line in (folder / name).read_text().splitlines() if "rror" in line]
        if (code == 2 and [line.startswith(REFUSED) for line in errors] != [True]) or (code != 2 and errors):
            found.append(f"{name}: {errors}")
    for file in folder.glob("runs/kill/*/metrics.csv"):
        with file.open(newline="") as lines:
            steps = [int(row["step"]) for row in csv.DictReader(lines)]
        if steps != sorted(steps):
            found.append(f"{file.parent.name}: metrics.csv is mixed")
    return found


def pair(folder: Path, number: int, draw: random.Random) -> list[str]:
    """What is wrong after one pair."""
    continues, killed = number % 2 == 1, number % 3 == 0
    arguments = ["--data.total_steps", "1000"]
    if continues:
        if start(folder, f"{number}_first", *arguments).wait():
            return ["the first part failed"]
        arguments = [
            "--ckpt_path",
            "last",
            "--data.total_steps",
            str(4000 + 200 * number),
            "--data.save_every_steps",
            "128",
        ]
    names = [f"{number}_{i}" for i in range(2)]
    processes = [start(folder, names[0], *arguments)]
    time.sleep(draw.random() * 0.5 * continues)
    processes.append(start(folder, names[1], *arguments))
    if continues and killed:
        while all(process.poll() is None for process in processes):
            time.sleep(0.01)
        time.sleep(draw.random())
        for i in range(2):
            if processes[i].poll() is None:
                processes[i].send_signal(signal.SIGKILL)
                processes[i].wait()
                processes[i] = start(folder, names[i], *arguments)
    return faults(folder, names, [process.wait() for process in processes], continues)


def main() -> int:
    """Prints a line per pair; the exit status is 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="races_"))
    wrong = 0
    for number in range(options.pairs):
        folder = root / str(number)
        folder.mkdir()
        (folder / "kill.yaml").write_text(CONFIG)
        found = pair(folder, number, draw)
        wrong += bool(found)
        print(f"{number + 1:3d}  {'continued' if number % 2 else 'anew'}: {found or 'right'}", flush=True)
    print(f"{wrong} of {options.pairs} pairs are mixed or wrong, in {root}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
