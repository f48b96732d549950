"""Interrupting a run, and comparing what became of it with a run that was not."""

import csv
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from run_files import load

from pg_lightning.errors import UserError
from pg_lightning.lightning_private import process_group_timeout, set_process_group_timeout

WALL_CLOCK = {"time/steps_per_second"}


class Interrupted(Exception):
    """Stands for SIGKILL in tests that stay in their process: nothing is saved because of it."""


class InterruptAt(Callback):
    """Ends a run when an update is done, before its evaluation; first saves `last.ckpt` there if told to."""

    def __init__(self, update: int, save: bool = False) -> None:
        self.update = update
        self.save = save

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.policy_version == self.update:
            if self.save:
                trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints/last.ckpt")
            raise Interrupted


class RefuseOn(Callback):
    """Has some ranks find a mistake of the user's when training begins."""

    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank in self.ranks:
            raise UserError("model.lr: not today")


class ShortenTimeout(Callback):
    """Bounds the wait for other ranks anew once all have arrived, for which they need longer than for a rollout."""

    def __init__(self, before: int, seconds: int) -> None:
        self.before = timedelta(seconds=before)
        self.seconds = seconds

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        assert process_group_timeout(trainer.strategy) == self.before
        set_process_group_timeout(trainer.strategy, timedelta(seconds=self.seconds))


class TellFolder(Callback):
    """Prints which folder each rank takes for the run's, without asking the others."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        print(f"rank {trainer.global_rank}: {trainer.logger.log_dir}\n", end="", flush=True)


def interrupt_at(update: int, save: bool = False) -> tuple[str, str]:
    """Arguments of the command line."""
    init_args = f"{{update: {update}, save: {str(save).lower()}}}"
    return "--trainer.callbacks", f"[{{class_path: interruptions.InterruptAt, init_args: {init_args}}}]"


def sends(signum: int, function: Callable[..., Any], at: int, sleep: float = 0.0) -> Callable[..., Any]:
    """A function that sends its own process a signal in its `at`-th call, sleeps, and then does what it is for."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signum)
            time.sleep(sleep)
        return function(*args, **kwargs)

    return wrapped


def differences(one: Path, other: Path) -> list[str]:
    """What differs in the checkpoints, byte for byte, and the metrics of two runs, wall-clock times aside."""
    found = []
    for name in ("last", "best"):
        files = [run / f"checkpoints/{name}.ckpt" for run in (one, other)]
        differing = _differing(*map(load, files), name)
        if not differing and one.name == other.name and files[0].read_bytes() != files[1].read_bytes():
            differing = [f"{name}.ckpt: the same values, but not the same bytes"]
        found += differing
    ours, theirs = map(_rows, (one, other))
    if ours != theirs:
        found.append(f"metrics.csv: {[row for row in ours + theirs if (row in ours) != (row in theirs)][:2]}")
    return found


def _rows(run: Path) -> list[dict[str, str]]:
    """Text, not numbers: what is equal is equal to the last digit. Columns in their order."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in csv.DictReader(file)]


def _anywhere(x: Any) -> Any:
    """A path without the number of its run: one that was stopped before its first checkpoint begins another."""
    return re.sub(r"version_\d+", "version_K", x) if isinstance(x, str) else x


def _differing(one: Any, other: Any, where: str) -> list[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({_anywhere(key): value for key, value in each.items()} for each in (one, other))
        keys = sorted(one.keys() | other.keys(), key=str)
        return [x for key in keys for x in _differing(one.get(key), other.get(key), f"{where}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [x for i, pair in enumerate(zip(one, other, strict=True)) for x in _differing(*pair, f"{where}[{i}]")]
    return (
        []
        if type(one) is type(other) and _anywhere(one) == _anywhere(other)
        else [f"{where}: {one!r:.80} {other!r:.80}"]
    )
