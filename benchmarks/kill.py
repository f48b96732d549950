"""Kills runs with SIGKILL at random moments, resumes them, and compares them with an uninterrupted run.

    python benchmarks/kill.py --moments 20 --seed 1 --ranks 1
    python benchmarks/kill.py --ranks 2 --data.backend async

Other arguments are passed to the command line. The moment is uniform between the creation of the run's folder and its
end; the whole process group is killed, and only `fit --ckpt_path last` follows. Equal means: the files `last.ckpt` and
`best.ckpt`, byte for byte, and every line of `metrics.csv` except the wall-clock column. A run that was killed before
its first checkpoint begins another folder, whose name is in the files: then every value in them is compared.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from interruptions import differences  # noqa: E402

CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, log_every_n_steps: 3}
model:
  class_path: pg_lightning.algorithms.PPO
  init_args: {lr_schedule: linear, num_minibatches: 2, normalize_obs: true, scale_rewards: true}
data: {env_id: CartPole-v1, num_envs: 4, num_steps: 32, total_steps: 8000, eval_every_steps: 250, eval_episodes: 2}
"""


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Starts a run of the config in a folder, in its own process group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kill.yaml").write_text(CONFIG)
    return subprocess.Popen(
        [sys.executable, "-m", "pg_lightning", "fit", "--config", "kill.yaml", *arguments],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)},
        stdout=(folder / "log.txt").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def version(folder: Path, number: int = 0) -> Path:
    """The folder of a run."""
    return folder / f"runs/kill/version_{number}"


def began(process: subprocess.Popen[bytes], run: Path) -> float:
    """The time at which the run's folder exists."""
    while not (run / "config.yaml").exists():
        if process.poll() is not None:
            raise SystemExit(f"ended before it began, see {run.parents[2] / 'log.txt'}")
        time.sleep(0.01)
    return time.monotonic()


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for the end, which must be successful."""
    if process.wait() != 0:
        raise SystemExit(f"exited with {process.returncode}, see {folder / 'log.txt'}")


def main() -> int:
    """Prints a line per moment; the exit status is 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    options, arguments = parser.parse_known_args()
    if options.ranks > 1:
        arguments += ["--trainer.devices", str(options.ranks), "--trainer.strategy", "ddp"]
    draw = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill_"))
    whole = start(folder / "whole", arguments)
    first = began(whole, version(folder / "whole"))
    finish(whole, folder / "whole")
    seconds = time.monotonic() - first
    print(f"{folder}: {options.ranks} rank(s) {' '.join(arguments)}; the run takes {seconds:.1f} s", flush=True)
    killed = mismatches = 0
    while killed < options.moments:
        own = folder / f"moment_{killed}"
        moment = draw.random() * seconds
        process = start(own, arguments)
        began(process, version(own))
        time.sleep(moment)
        if process.poll() is not None:
            print(f"over before {moment:.2f} s; drawn again", flush=True)
            own.rename(folder / f"over_{time.monotonic_ns()}")
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        saved = (version(own) / "checkpoints/last.ckpt").exists()
        try:
            finish(start(own, [*arguments, "--ckpt_path", "last"]), own)
            found = differences(version(folder / "whole"), version(own, 0 if saved else 1))
        except SystemExit as error:
            found = [str(error)]
        killed += 1
        mismatches += bool(found)
        how = "from the checkpoint" if saved else "from the beginning"
        print(f"{killed:3d}  killed after {moment:5.2f} s, resumed {how}: {found or 'equal'}", flush=True)
    print(f"{mismatches} mismatches in {killed} moments")
    return int(mismatches > 0)


if __name__ == "__main__":
    sys.exit(main())
