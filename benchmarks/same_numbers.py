"""Checks that a change of the code changes no bit of the results of training: hashes of weights and metrics.

    python benchmarks/same_numbers.py --record before.json     # on the commit before a change; two minutes
    python benchmarks/same_numbers.py --compare before.json    # after it; exit status 1 where anything differs

20,000 env steps of a configuration for every algorithm, head, memory and mask, with normalisers, overlap, two ranks,
and A3C with one worker, each run from the command line in its own process. Hashes depend on the machine and on the
versions of torch and NumPy, so compare them on one machine and do not commit them. Tensors are compared as a set,
because a change may rename a parameter, or move it. So are the columns of `metrics.csv`, by name, except those with
times.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import positive, refuse_unknown

ROOT = Path(__file__).parents[1]
STEPS = 20_000
TOY = "pg_lightning.envs.tasks.toy:pg_lightning/"


def toy(env: str) -> list[str]:
    return ["--config", "ppo_cartpole", "--data.env_id", f"{TOY}{env}-v0"]


PPO = ["--config", "ppo_cartpole"]
PENDULUM = ["--config", "ppo_pendulum"]
CASES: dict[str, list[str]] = {
    "reinforce": ["--config", "reinforce_cartpole"],
    "reinforce, batch mean": ["--config", "reinforce_cartpole", "--model.baseline", "batch_mean"],
    "reinforce_baseline": ["--config", "reinforce_baseline_cartpole"],
    "actor_critic": ["--config", "actor_critic_cartpole"],
    "a2c": ["--config", "a2c_cartpole"],
    "a2c, two ranks": ["--config", "a2c_cartpole", "--trainer.devices", "2", "--data.num_envs", "4"],
    "a3c, one worker": ["--config", "a3c_cartpole", "--trainer.devices", "1"],
    "ppo": PPO,
    "ppo, all statistics": [
        *PENDULUM,
        "--model.normalize_obs=true",
        "--model.normalize_values=true",
        "--model.scale_rewards=true",
    ],
    "ppo, target_kl": [*PPO, "--model.target_kl", "0.005"],
    "ppo, kl_penalty": [*PPO, "--model.target_kl", "0.005", "--model.kl_penalty", "1.0"],
    "ppo, clip_range_vf": [*PPO, "--model.clip_range_vf", "0.2", "--model.ent_coef", "0.01"],
    "ppo, plateau": [*PPO, "--model.lr_schedule", "plateau", "--model.critic_lr", "2e-3"],
    "ppo, rmsprop": [*PPO, "--model.optimizer", "rmsprop"],
    "ppo, next_step": [*PPO, "--data.autoreset_mode", "next_step"],
    "ppo, disabled": [*PPO, "--data.autoreset_mode", "disabled"],
    "ppo, vector": [*PPO, "--data.backend", "vector"],
    "ppo, async": [*PPO, "--data.backend", "async"],
    "ppo, overlap": [*PPO, "--data.overlap", "true"],
    "ppo, two ranks": [*PPO, "--trainer.devices", "2", "--data.num_envs", "4"],
    "ppo, two ranks, all statistics": [
        *[*PENDULUM, "--trainer.devices", "2", "--data.num_envs", "2"],
        "--model.normalize_obs=true",
        "--model.normalize_values=true",
        "--model.scale_rewards=true",
    ],
    "ppo, bf16-mixed": [*PPO, "--trainer.precision", "bf16-mixed"],
    "ppo, shared torso": [*PPO, "--model.shared_torso", "true"],
    "gaussian": PENDULUM,
    "squashed_gaussian": [*PENDULUM, "--model.head", "squashed_gaussian"],
    "beta": [*PENDULUM, "--model.head", "beta"],
    "state_dependent_std": [*PENDULUM, "--model.state_dependent_std", "true"],
    "multi_discrete": toy("MultiDiscreteReward"),
    "multi_binary": toy("MultiBinaryReward"),
    "mask": toy("MaskedReward"),
    "memory, lstm": ["--config", "ppo_recall"],
    "memory, gru, a2c": ["--config", "a2c_greycells"],
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(case: str) -> dict[str, Any]:
    """Hashes of the tensors and of the columns that a training writes."""
    budget = ["--data.total_steps", str(STEPS), "--data.eval_every_steps", str(STEPS // 2), "--data.eval_episodes", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        where = ["--trainer.default_root_dir", folder, "--seed_everything", "1"]
        command = [sys.executable, "-m", "pg_lightning", "fit", *CASES[case], *budget, *where]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        run = next(Path(folder).glob("*/version_0"))
        checkpoint = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    tensors = [digest(x.contiguous().numpy().tobytes()) for x in checkpoint["state_dict"].values()]
    columns = {name: [row[name] for row in rows] for name in sorted(rows[0]) if name != "time/steps_per_second"}
    return {"tensors": sorted(tensors), "metrics": {name: digest(repr(x).encode()) for name, x in columns.items()}}


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The differences in words; an empty string if there are none."""
    if "failed" in before or "failed" in after:
        return f"failed: {before.get('failed', 'not')} before, {after.get('failed', 'not')} now"
    lost = sum((Counter(before["tensors"]) - Counter(after["tensors"])).values())
    one, other = before["metrics"], after["metrics"]
    columns = [name for name in sorted(one | other) if one.get(name) != other.get(name)]
    words = [f"{lost} of {len(before['tensors'])} tensors"] if lost else []
    return ", ".join(words + columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--record", type=Path, help="where to write the hashes")
    task.add_argument("--compare", type=Path, help="hashes recorded before")
    parser.add_argument("--only", nargs="+", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--workers", type=positive, default=2, help="trainings at a time (default: 2)")
    arguments = parser.parse_args()
    refuse_unknown(parser, "--only", arguments.only, CASES)
    before = json.loads(arguments.compare.read_text()) if arguments.compare else {}
    found: dict[str, Any] = {}
    moved = 0
    with ThreadPoolExecutor(arguments.workers) as pool:
        for case, result in zip(arguments.only, pool.map(fingerprint, arguments.only), strict=True):
            found[case] = result
            if arguments.record:
                print(f"{case}: {result.get('failed') or 'recorded'}", flush=True)
                continue
            changed = difference(before[case], result) if case in before else "not recorded"
            moved += bool(changed)
            print(f"{case}: {changed or 'the same'}", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(found, indent=1) + "\n")
        return int(any("failed" in result for result in found.values()))
    print(f"{moved} of {len(found)} differ")
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())
