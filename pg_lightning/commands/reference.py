"""The reference methods of a comparison: a value-based method (Stable-Baselines3's DQN) and a random policy."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from pg_lightning.analysis.curves import SPEED
from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.data.datamodule import VALIDATE
from pg_lightning.envs import env_seed, make_env, make_vector_env
from pg_lightning.errors import UserError
from pg_lightning.run.files import write_csv, write_file

Method = Literal["dqn", "random"]


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of `reference` on the command line."""
    parser.add_function_arguments(reference)


def reference(method: Method, data: dict[str, Any], seed: int, folder: Path, arguments: dict[str, Any]) -> None:
    """Runs a method in an environment and evaluates it like the algorithms: with the same seeds, equally often.

    Writes `config.yaml` and `metrics.csv` like a run, the latter with `val/return_mean` and, if the method learns,
    `time/steps_per_second`.

    Args:
        method: `dqn`, or `random`: actions drawn from the action space, without learning.
        data: arguments of `RolloutDataModule`: the environment, the budget and the evaluations.
        seed: of the run.
        folder: of the run.
        arguments: of `stable_baselines3.DQN`.

    Raises:
        UserError: if an argument is invalid, or Stable-Baselines3 is not installed.
    """
    torch.manual_seed(seed)
    reached = _Evaluations(RolloutDataModule(**data), seed, folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = "stable_baselines3.DQN" if method == "dqn" else "random"
    config = {"seed_everything": seed, "model": {"class_path": path, "init_args": arguments}, "data": data}
    write_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    if method == "dqn":
        _train_dqn(reached, seed, arguments)
    else:
        reached.evaluate(_RandomPolicy(reached.data.action_space), reached.data.total_steps)
        del reached.rows[-1][SPEED]  # nothing was trained
    reached.write()


class _Evaluations:
    """Evaluates at every multiple of `eval_every_steps`, and keeps the results."""

    def __init__(self, data: RolloutDataModule, seed: int, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.seeds = [env_seed(seed, VALIDATE, i) for i in range(data.eval_episodes)]
        self.action_seed = env_seed(seed, VALIDATE, 0, 0)
        num_envs = min(data.num_envs, data.eval_episodes)
        self.env = make_vector_env(data.env_id, num_envs, data.env_kwargs, data.wrappers, autoreset_mode="disabled")
        self.rows: list[dict[str, float]] = []
        self.clock, self.steps = time.perf_counter(), 0

    def evaluate(self, actor: Any, steps: int) -> None:
        """Plays the episodes; the clock is stopped meanwhile."""
        speed = (steps - self.steps) / (time.perf_counter() - self.clock)
        deterministic, most = self.data.eval_deterministic, self.data.eval_max_episode_steps
        episodes = EvaluationDataset(self.env, actor, self.seeds, self.action_seed, deterministic, most)
        returns = [episode.episode_return.item() for episode in episodes]
        self.rows.append({"step": steps, SPEED: speed, "val/return_mean": float(np.mean(returns))})
        self.clock, self.steps = time.perf_counter(), steps

    def write(self) -> None:
        """Writes `metrics.csv`."""
        self.env.close()
        write_csv(self.folder / "metrics.csv", self.rows)


class _RandomPolicy:
    """An `Actor` with random actions from the action space."""

    device = torch.device("cpu")

    def __init__(self, space: gym.Space) -> None:
        self.space = space

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(
        self, obs: Tensor, generator: torch.Generator, deterministic: bool, mask: Tensor | None, state: None
    ) -> tuple[Tensor, None]:
        self.space.seed(int(torch.randint(2**31, (), generator=generator)))
        masks = [None] * len(obs) if mask is None else [row.numpy().astype(np.int8) for row in mask]
        return torch.from_numpy(np.stack([self.space.sample(row) for row in masks])), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


class _StableBaselines3Policy(_RandomPolicy):
    """A model of Stable-Baselines3."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def act(
        self, obs: Tensor, generator: torch.Generator, deterministic: bool, mask: Tensor | None, state: None
    ) -> tuple[Tensor, None]:
        return torch.from_numpy(self.model.predict(obs.numpy(), deterministic=deterministic)[0]), None


def _train_dqn(reached: _Evaluations, seed: int, arguments: dict[str, Any]) -> None:
    try:
        from stable_baselines3 import DQN
    except ImportError as error:
        raise UserError('dqn: needs Stable-Baselines3; pip install "pg_lightning[bench]"') from error
    data = reached.data
    try:
        env = make_env(data.env_id, data.env_kwargs, data.wrappers)
        model = DQN("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"dqn: {error}") from error

    def after_step(*_: object) -> bool:
        if model.num_timesteps % data.eval_every_steps == 0 or model.num_timesteps == data.total_steps:
            reached.evaluate(_StableBaselines3Policy(model), model.num_timesteps)
        return model.num_timesteps < data.total_steps

    model.learn(data.total_steps, callback=after_step)
    env.close()
