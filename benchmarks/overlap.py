"""What `data.overlap` gains: seconds per rollout of PPO on CartPole-v1, 8 environments x 128 steps.

    python benchmarks/overlap.py --repeats 11

With it and without take turns in this process, so that they share whatever else the machine is doing: ratios are taken
within a repeat. The clock starts after the third update.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from measuring import listed, machine, median_interval, positive, with_interval

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutDataModule

ENVS, STEPS, WARM_UP = 8, 128, 3


class Clock(Callback):
    """When each update ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def seconds_per_rollout(overlap: bool, rollouts: int) -> float:
    seed_everything(1, verbose=False)
    steps = ENVS * STEPS * (rollouts + WARM_UP)
    data = RolloutDataModule("CartPole-v1", num_envs=ENVS, num_steps=STEPS, total_steps=steps, overlap=overlap)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        **quiet, accelerator="cpu", max_epochs=-1, limit_val_batches=0, enable_model_summary=False, callbacks=[clock]
    ).fit(PPO(**spaces, total_steps=steps), datamodule=data)
    return (clock.times[-1] - clock.times[WARM_UP - 1]) / rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=11)
    parser.add_argument("--rollouts", type=positive, default=20, help="on the clock, in each repeat")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seconds = np.array(
        [
            [seconds_per_rollout(overlap, arguments.rollouts) for overlap in (False, True)]
            for _ in range(arguments.repeats)
        ]
    )
    without, with_overlap = np.median(seconds, axis=0)
    ratios = seconds[:, 0] / seconds[:, 1]
    print(listed(machine()))
    print(f"seconds per {ENVS * STEPS} env steps: {without:.4f} without overlap, {with_overlap:.4f} with it")
    ratio = with_interval(float(np.median(ratios)), median_interval(ratios))
    print(f"ratio: median {ratio} of {arguments.repeats} repeats")


if __name__ == "__main__":
    main()
