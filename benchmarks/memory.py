"""Memory of `fit` over thousands of iterations: the resident set of the process, which must stay constant.

    python benchmarks/memory.py                     # A2C on CartPole, 10,000 iterations; Linux; about a minute

Prints the resident set at every tenth of the run, and the slope of a line through the second half per 1,000
iterations; caches may still fill in the first half.
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
from throughput import make_model, make_trainer
from workloads import WORKLOADS

from pg_lightning.data import RolloutDataModule


class Memory(Callback):
    """The resident set in MiB after each hundredth of the run."""

    def __init__(self, iterations: int) -> None:
        self.every = max(1, iterations // 100)
        self.mib: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.policy_version % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=positive, default=10_000, help="updates (default: 10,000)")
    parser.add_argument("--workload", default="a2c_cartpole", choices=WORKLOADS, help="default: a2c_cartpole")
    arguments = parser.parse_args()
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
