"""What all tests share: one thread, fixed seeds, and hypothesis without a clock."""

import io
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_run():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries that still draw from the global stream


@pytest.fixture
def quiet_trainer() -> Callable[..., Any]:
    """Makes a CPU Trainer without logger, checkpoints or progress bar, with evaluations by env steps."""
    from lightning.pytorch import Trainer

    from pg_lightning.callbacks import EvaluateEverySteps

    def make(**kwargs: Any) -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        plain = {"accelerator": "cpu", "max_epochs": -1, "enable_model_summary": False, "num_sanity_val_steps": 0}
        return Trainer(**{**quiet, **plain, "callbacks": [EvaluateEverySteps()], **kwargs})

    return make


@pytest.fixture
def fit(quiet_trainer: Callable[..., Any]) -> Callable[..., Any]:
    """Trains PPO on an environment through a real Trainer, both small unless told otherwise; returns the module."""
    from pg_lightning.algorithms import PPO
    from pg_lightning.data import RolloutDataModule

    def run(
        env_id: str,
        data: dict[str, Any] | None = None,
        algorithm: type[PPO] = PPO,
        datamodule: type[RolloutDataModule] = RolloutDataModule,
        trainer: dict[str, Any] | None = None,
        **model: Any,
    ) -> Any:
        rollouts = datamodule(env_id, **{"num_envs": 4, "num_steps": 16, "total_steps": 256, **(data or {})})
        module = algorithm(
            observation_space=rollouts.observation_space,
            action_space=rollouts.action_space,
            total_steps=rollouts.total_steps,
            **{"hidden_sizes": [32], **model},
        )
        quiet_trainer(**(trainer or {})).fit(module, datamodule=rollouts)
        return module

    return run


TINY = """
seed_everything: 1
trainer:
  accelerator: cpu
  log_every_n_steps: 2
model:
  class_path: pg_lightning.algorithms.PPO
  init_args:
    lr: 1.0e-3
    lr_schedule: linear
    num_epochs: 2
    num_minibatches: 2
    clip_schedule: linear
    hidden_sizes: [16]
    normalize_obs: true
    scale_rewards: true
data:
  env_id: CartPole-v1
  num_envs: 4
  num_steps: 16
  total_steps: 700
  eval_every_steps: 200
  eval_episodes: 3
"""


@pytest.fixture(scope="session")
def cli() -> Callable[..., "CompletedProcess[str]"]:
    """Runs the command line in this process, as if started in a folder."""
    from pg_lightning.cli import main

    def run(folder: Path, *arguments: Any) -> "CompletedProcess[str]":
        out, err, code = io.StringIO(), io.StringIO(), 0
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["pg-lightning", *map(str, arguments)])
            with warnings.catch_warnings():
                try:
                    main()
                except SystemExit as end:
                    code = int(end.code or 0)
        return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that trains on CartPole for 11 rollouts of 64 env steps."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def train(cli: Callable[..., Any], tiny: Path) -> Callable[..., Path]:
    """Runs `fit` with the tiny config and more arguments in a folder; returns the run's folder."""

    def run(folder: Path, *arguments: Any) -> Path:
        finished = cli(folder, "fit", "--config", tiny, *arguments)
        assert finished.returncode == 0, finished.stderr
        return folder / finished.stdout.partition("run:   ")[2].splitlines()[0]

    return run


@pytest.fixture(scope="session")
def run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny config that all tests share: to be read, not written."""
    return train(tmp_path_factory.mktemp("shared"))
