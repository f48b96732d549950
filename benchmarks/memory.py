"""Memory of `fit` over thousands of iterations: the resident set of the process, which must stay constant.

    python benchmarks/memory.py                     # A2C on CartPole, 10,000 iterations; Linux; about a minute
    python benchmarks/memory.py --env_id my_envs:My-v0 [--episodes 1000]

Prints the resident set at every tenth of the run, and the slope of a line through the second half per 1,000
iterations; caches may still fill in the first half.

With an environment, plays it alone with random actions, and prints memory, threads, open files and processes at every
tenth of the episodes: what still grows in the second half, without any training, leaks in the environment.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from measuring import listed, machine, positive, versions
from workloads import WORKLOADS

from pg_lightning.callbacks.leaks import counts_of
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs import make_env


class Memory(Callback):
    """The resident set in MiB after each hundredth of the run."""

    def __init__(self, iterations: int) -> None:
        self.every = max(1, iterations // 100)
        self.mib: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.policy_version % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def soak(env_id: str, episodes: int) -> None:
    """Plays an environment alone; prints what it holds, and what grew in the second half."""
    env = make_env(env_id)
    env.action_space.seed(0)
    rows = []
    for episode in range(episodes):
        env.reset(seed=episode)
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
        if (episode + 1) % max(1, episodes // 10) == 0:
            rows.append(counts_of(os.getpid()))
            print(f"{episode + 1:,} episodes: {listed(rows[-1])}")
    env.close()
    half, last = rows[len(rows) // 2 - 1], rows[-1]
    growing = {name: last[name] - half[name] for name in last if last[name] > half[name]}
    print(f"second half: {listed(growing) + ' more' if growing else 'nothing grew'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=positive, default=10_000, help="updates (default: 10,000)")
    parser.add_argument("--workload", default="a2c_cartpole", choices=WORKLOADS, help="default: a2c_cartpole")
    parser.add_argument("--env_id", help="play this environment alone, without training")
    parser.add_argument("--episodes", type=positive, default=1000, help="of that environment (default: 1,000)")
    arguments = parser.parse_args()
    if arguments.env_id:
        soak(arguments.env_id, max(2, arguments.episodes))
        return
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Trains, and prints the resident set."""
    from throughput import make_model, make_trainer  # it needs Stable-Baselines3

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    workload = WORKLOADS[arguments.workload]
    total_steps = arguments.iterations * workload.rows
    memory = Memory(arguments.iterations)
    shape = {"num_envs": workload.num_envs, "num_steps": workload.num_steps, "whole_episodes": workload.whole_episodes}
    data = RolloutDataModule(workload.env_id, **shape, total_steps=total_steps, eval_every_steps=total_steps // 10)
    module = make_model(workload, data.observation_space, data.action_space, total_steps)
    print(f"{listed(versions())}\n{listed(machine())}; {arguments.workload}, {arguments.iterations:,} iterations\n")
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(Path(folder), memory, log_every_n_steps=workload.log_every).fit(module, data)
    tenth = len(memory.mib) // 10 or 1
    print("MiB resident:", " ".join(f"{mib:.1f}" for mib in memory.mib[::tenth]))
    second = memory.mib[len(memory.mib) // 2 :]
    slope = np.polyfit(np.arange(len(second)) * memory.every / 1000, second, 1)[0]
    print(f"second half: {slope:+.3f} MiB per 1,000 iterations")


if __name__ == "__main__":
    main()
