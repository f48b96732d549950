"""Trains configs over seeds, tests the best and the last checkpoint on new episodes, and prints the table of results.

    python benchmarks/learning.py ppo_cartpole --seeds 1 2 3 4 5
    python benchmarks/learning.py ppo_cartpole --ranks 2 --workers 1    # by two processes that share the environments
    python benchmarks/learning.py --json results.json    # all; takes hours, can be interrupted and continued

Every run uses the command line, like a user: `fit --config configs/NAME.yaml --seed_everything S`, then `test` on
100 episodes: `checkpoints/best.ckpt` and `checkpoints/last.ckpt` with the deterministic policy unless the config says
otherwise, and `best.ckpt` again with sampled actions. If a config has a target, the exit status is 1 if the best
checkpoint of any of its seeds misses it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

ROOT = Path(__file__).parents[1]
# Target of each seed; None if the result is only reported.
TARGETS: dict[str, float | None] = {
    "reinforce_cartpole": 475.0,
    "reinforce_baseline_cartpole": 475.0,
    "actor_critic_cartpole": 400.0,
    "a2c_cartpole": 475.0,
    "a3c_cartpole": 475.0,
    "vtrace_cartpole": 475.0,
    "trpo_cartpole": 475.0,
    "ppo_cartpole": 475.0,
    "reinforce_acrobot": -100.0,
    "reinforce_baseline_acrobot": -95.0,
    "a2c_acrobot": -90.0,
    "a3c_acrobot": -90.0,
    "ppo_acrobot": -85.0,
    "reinforce_pendulum": None,
    "reinforce_baseline_pendulum": None,
    "a2c_pendulum": -250.0,
    "trpo_pendulum": -200.0,
    "ppo_pendulum": -200.0,
    "reinforce_lunarlander": None,
    "reinforce_baseline_lunarlander": None,
    "a2c_lunarlander": 100.0,
    "ppo_lunarlander": 200.0,
    "reinforce_lunarlander_continuous": None,
    "reinforce_baseline_lunarlander_continuous": None,
    "a2c_lunarlander_continuous": 100.0,
    "ppo_lunarlander_continuous": 200.0,
    "ppo_halfcheetah": 1500.0,
    "ppo_hopper": 2200.0,
    "ppo_walker2d": 2200.0,
    "a2c_greycells": -5.0,
    "ppo_recall": 0.99,
    "ppo_minigrid": 0.9,
}


@dataclass
class Result:
    config: str
    seed: int
    env_id: str
    env_steps: int
    best_at: int
    seconds: float
    return_mean: float
    return_ci95: list[float]
    last_mean: float | None = None  # of the last checkpoint
    sampled_mean: float | None = None  # of the best one, with sampled actions


def among(ranks: int, path: Path) -> list[str]:
    """Arguments that make `ranks` processes train a config together, with the same total number of environments."""
    if ranks == 1:
        return []
    num_envs = yaml.safe_load(path.read_text())["data"]["num_envs"]
    if num_envs % ranks:
        raise SystemExit(f"error: --ranks: {ranks} does not divide the {num_envs} environments of {path.name}")
    each = str(num_envs // ranks)
    return ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp", "--data.num_envs", each]


def run(config: str, seed: int, runs: Path, episodes: int, ranks: int) -> Result:
    """One training and its test; wall seconds are those of the whole `fit` process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "pg_lightning"]
    path = ROOT / "configs" / f"{config}.yaml"
    fit = ["fit", "--config", str(path), "--seed_everything", str(seed), *among(ranks, path)]
    folder = runs / f"seed_{seed}"
    start = time.perf_counter()
    _call([*program, *fit, "--trainer.default_root_dir", str(folder)], environment)
    seconds = time.perf_counter() - start
    run_folder = next((folder / config).glob("version_*"))

    def test(checkpoint: str, *options: str) -> dict[str, Any]:
        given = ["--ckpt_path", str(run_folder / "checkpoints" / checkpoint), "--data.eval_episodes", str(episodes)]
        _call([*program, "test", *given, *options], environment)
        return json.loads((run_folder / "test.json").read_text())

    report = test("best.ckpt")
    last_row = (run_folder / "metrics.csv").read_text().splitlines()
    steps = int(last_row[-1].split(",")[last_row[0].split(",").index("step")])
    return Result(
        config=config,
        seed=seed,
        env_id=report["env_id"],
        env_steps=steps,
        best_at=report["env_steps"],
        seconds=seconds,
        return_mean=report["return_mean"],
        return_ci95=report["return_ci95"],
        last_mean=test("last.ckpt")["return_mean"],
        sampled_mean=test("best.ckpt", "--data.eval_deterministic", "false")["return_mean"],
    )


def table(results: list[Result]) -> str:
    """Markdown, one row per config: the interquartile mean (IQM) over seeds with a bootstrap interval, and every seed.

    Of the last checkpoint and of sampled actions it has the IQM and the worst seed.
    """
    lines = [
        "| config | env steps | return, IQM over seeds [95 %] | each seed | last checkpoint (worst seed) "
        "| sampled actions (worst seed) | target | wall seconds a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for config in dict.fromkeys(result.config for result in results):
        rows = [result for result in results if result.config == config]
        returns = np.array([row.return_mean for row in rows])
        iqm = stats.trim_mean(returns, 0.25)
        digits = 1 if abs(iqm) >= 1 else 2
        interval = ""
        if len(rows) > 1 and np.ptp(returns) > 0:
            drawn = stats.bootstrap(
                (returns,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile", rng=0
            ).confidence_interval
            interval = f" [{drawn.low:.{digits}f}, {drawn.high:.{digits}f}]"
        seeds = ", ".join(f"{row.return_mean:.{digits}f}" for row in rows)
        seconds = np.median([row.seconds for row in rows])
        lines.append(
            f"| `{config}` | {max(row.env_steps for row in rows):,} | {iqm:.{digits}f}{interval} | {seeds} "
            f"| {_with_worst([row.last_mean for row in rows], digits)} "
            f"| {_with_worst([row.sampled_mean for row in rows], digits)} "
            f"| {'–' if TARGETS[config] is None else f'≥ {TARGETS[config]:g}'} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def _with_worst(returns: list[float | None], digits: int) -> str:
    """The IQM over seeds and the worst seed; a dash if they were not measured."""
    known = [value for value in returns if value is not None]
    return f"{stats.trim_mean(known, 0.25):.{digits}f} ({min(known):.{digits}f})" if known else "–"


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=list(TARGETS), metavar="CONFIG", help=", ".join(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train one policy, under `ddp`")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--json", type=Path, help="keep every result here; existing results are not run again")
    arguments = parser.parse_args()
    known = {}
    if arguments.json and arguments.json.exists():
        known = {(row["config"], row["seed"]): Result(**row) for row in json.loads(arguments.json.read_text())}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.workers) as pool:
        runs = arguments.runs or Path(scratch)
        wanted = [(config, seed) for config in arguments.configs for seed in arguments.seeds]
        jobs = [pool.submit(run, *job, runs, arguments.episodes, arguments.ranks) for job in wanted if job not in known]
        for job in as_completed(jobs):
            result = job.result()
            known[result.config, result.seed] = result
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in known.values()], indent=1) + "\n")
    results = [known[job] for job in wanted]
    packages = ("torch", "lightning", "gymnasium", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(table(results))
    print(
        f"\nSeeds {' '.join(map(str, arguments.seeds))}; {arguments.episodes} deterministic episodes each "
        f"on the best and on the last checkpoint, and on the best with sampled actions; "
        f"{arguments.workers} runs at a time, {arguments.ranks} processes each, one thread a process; {versions}."
    )
    short = [f"{row.config} seed {row.seed}" for row in results if row.return_mean < (TARGETS[row.config] or -np.inf)]
    if short:
        raise SystemExit(f"short of the target: {', '.join(short)}")


if __name__ == "__main__":
    main()
