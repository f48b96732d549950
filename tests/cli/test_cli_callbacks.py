"""Callbacks and wrappers of others on the command line: they work, or are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from run_files import complaint

SHORT = ("--data.total_steps", 192, "--data.eval_every_steps", 64, "--trainer.enable_progress_bar", "false")


class Raises(Callback):
    """A callback of a user's that fails."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise RuntimeError("my own mistake")


@pytest.fixture
def with_callback(cli: Any, tiny: Path, tmp_path: Path) -> Any:
    """Runs `fit` with a callback."""

    def run(name: str, *more: Any, **init_args: Any) -> Any:
        callbacks = json.dumps([{"class_path": name, "init_args": init_args}])
        return cli(tmp_path, "fit", "--config", tiny, *SHORT, "--trainer.callbacks", callbacks, *more)

    return run


@pytest.mark.parametrize("interval", [{}, {"interval": "epoch"}])
def test_an_enum_as_default_does_not_keep_a_run_from_its_config(
    with_callback: Any, cli: Any, tmp_path: Path, interval: Any
) -> None:
    """Lightning's Timer has one; the written config repeats the run."""
    finished = with_callback("Timer", duration="00:00:10:00", **interval)
    assert finished.returncode == 0, finished.stderr
    config = tmp_path / "runs/tiny/version_0/config.yaml"
    assert f"interval: {interval.get('interval', 'step')}\n" in config.read_text()
    again = cli(tmp_path, "fit", "--config", config)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("name", "init_args", "said"),
    [
        (
            "EarlyStopping",
            {"monitor": "val/return_man"},
            "early_stopping: Early stopping conditioned on metric `val",
        ),
        ("GradientAccumulationScheduler", {"scheduling": {"0": 2}}, "gradient_accumulation_scheduler: Automatic gradi"),
        ("LearningRateFinder", {}, "lr_finder: When using the learning rate finder, either `model`"),
        ("BackboneFinetuning", {}, "finetuning: 'PPO' object has no attribute 'backbone'"),
    ],
)
def test_a_callback_that_refuses_is_one_line(with_callback: Any, name: str, init_args: Any, said: str) -> None:
    line = complaint(with_callback(name, **init_args))
    assert line.startswith(f"trainer.callbacks: {said}")
    if name == "EarlyStopping":
        assert "`val/return_mean`" in line


def test_a_callback_of_ones_own_that_fails_keeps_its_traceback(with_callback: Any) -> None:
    with pytest.raises(RuntimeError, match="my own mistake"):
        with_callback("test_cli_callbacks.Raises")


@pytest.mark.parametrize(("every", "rollouts"), [(3, 3), (6, 3), (4, None), (8, None), (0, None)])
def test_an_interval_that_misses_the_ends_of_rollouts_is_said(
    with_callback: Any, tmp_path: Path, every: int, rollouts: int | None, recwarn: Any
) -> None:
    """A rollout is 4 optimizer steps, and there are 3 rollouts: 4, 8 and 12 are compared with multiples of it."""
    finished = with_callback("ModelCheckpoint", dirpath="own", every_n_train_steps=every, save_top_k=-1)
    assert finished.returncode == 0, finished.stderr
    said = [str(x.message) for x in recwarn if "every_n_train_steps" in str(x.message) and "rollout" in str(x.message)]
    if rollouts is None:
        assert said == []
    else:
        (line,) = said
        assert f"every_n_train_steps {every} saves only at the end of a rollout, which is 4 optimizer steps" in line
        assert f"every {rollouts} rollouts" in line
        steps = [torch.load(path, weights_only=True)["global_step"] for path in (tmp_path / "own").glob("*.ckpt")]
        assert steps == [4 * rollouts]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_function_in_the_arguments_of_a_wrapper_is_named_by_its_path(
    cli: Any, tiny: Path, tmp_path: Path, backend: str
) -> None:
    wrapper = "[{class_path: gymnasium.wrappers.TransformReward, init_args: {func: numpy.negative}}]"
    finished = cli(tmp_path, "fit", "--config", tiny, *SHORT, "--data.wrappers", wrapper, "--data.backend", backend)
    assert finished.returncode == 0, finished.stderr
    assert "best:  evaluation return -" in finished.stdout


@pytest.mark.parametrize("path", ["nope.sign", "numpy.sing", "sign"])
def test_a_function_that_does_not_exist_is_named(cli: Any, tiny: Path, tmp_path: Path, path: str) -> None:
    wrapper = f"[{{class_path: gymnasium.wrappers.TransformReward, init_args: {{func: {path}}}}}]"
    said = complaint(cli(tmp_path, "fit", "--config", tiny, "--data.wrappers", wrapper))
    assert said.startswith(f"data.wrappers: cannot import {path!r}: ")
