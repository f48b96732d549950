"""The evaluations of a reference method: equal to those of the algorithms, with the same seeds and equally often."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pg_lightning.actor import Actor
from pg_lightning.analysis.curves import SPEED
from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.data.datamodule import VALIDATE
from pg_lightning.envs import env_seed, make_vector_env
from pg_lightning.run.files import write_csv

Arguments: TypeAlias = dict[str, Any]  # of a method, from the file of a comparison


class Evaluations:
    """Evaluates at every multiple of `eval_every_steps` and at the end of the budget, and keeps the results.

    Args:
        data: the environment, the budget and the evaluations.
        seed: of the run.

    Attributes:
        rows: of `metrics.csv`.
    """

    def __init__(self, data: RolloutDataModule, seed: int) -> None:
        self.data, self.seed = data, seed
        self.seeds = [env_seed(seed, VALIDATE, i) for i in range(data.eval_episodes)]
        self.action_seed = env_seed(seed, VALIDATE, 0, 0)
        num_envs = min(data.num_envs, data.eval_episodes)
        self.env = make_vector_env(data.env_id, num_envs, data.env_kwargs, data.wrappers, autoreset_mode="disabled")
        self.rows: list[dict[str, float]] = []
        self._clock, self._steps = time.perf_counter(), 0

    def is_due(self, steps: int) -> bool:
        """Whether an evaluation is due after `steps` env steps: a multiple was reached since the last, or the end."""
        every = self.data.eval_every_steps
        return steps // every > self._steps // every or self._steps < self.data.total_steps <= steps

    def evaluate(self, actor: Actor, steps: int) -> None:
        """Plays the episodes after `steps` env steps of learning; the clock is stopped meanwhile."""
        speed = (steps - self._steps) / (time.perf_counter() - self._clock)
        deterministic, most = self.data.eval_deterministic, self.data.eval_max_episode_steps
        episodes = EvaluationDataset(self.env, actor, self.seeds, self.action_seed, deterministic, most)
        returns = [episode.episode_return.item() for episode in episodes]
        self.rows.append({"step": steps, SPEED: speed, "val/return_mean": float(np.mean(returns))})
        self._clock, self._steps = time.perf_counter(), steps

    def write(self, folder: Path) -> None:
        """Writes `metrics.csv`."""
        self.env.close()
        write_csv(folder / "metrics.csv", self.rows)
