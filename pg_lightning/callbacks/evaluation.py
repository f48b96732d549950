"""Evaluation by env steps: when Lightning's validation loop runs, and the files with its results."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from pg_lightning.analysis.intervals import confidence_interval
from pg_lightning.errors import UserError
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.learning.metrics import game_results
from pg_lightning.rollout import Episode
from pg_lightning.run.files import write_file, write_json


class EvaluateEverySteps(Callback):
    """Runs the validation loop at the first rollout boundary at or past every multiple of `data.eval_every_steps`,
    and when training ends.

    Lightning counts batches, and the number of env steps in a batch may vary. Put this before callbacks that monitor
    validation metrics: it makes validation independent of epochs for them.
    """

    def __init__(self) -> None:
        self._next = 0
        self._due = False

    @property
    def is_due(self) -> bool:
        """Whether an evaluation is about to start; True from the end of a rollout to the end of its evaluation."""
        return self._due

    @classmethod
    def was_due(cls, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was written between a rollout and its evaluation."""
        return checkpoint.get("callbacks", {}).get(cls().state_key, {}).get("due", False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes validation independent of epochs: the whole training is one epoch."""
        if stage == "fit":
            trainer.check_val_every_n_epoch = None

    def state_dict(self) -> dict[str, object]:
        """Whether an evaluation is due, because a run may be stopped between a rollout and its evaluation."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training starts."""
        self._due = state_dict["due"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Runs an evaluation that was due; schedules the next one."""
        if self._due:
            if pl_module.env_steps >= pl_module.total_steps:
                trainer.should_stop = True
            trainer.fit_loop.epoch_loop.val_loop.restarting = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        trainer.val_check_batch = sys.maxsize
        self._aim(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        """Enables or disables validation after this rollout."""
        self._due = pl_module.env_steps >= self._next or pl_module.env_steps >= pl_module.total_steps
        self._due |= _ends_here(trainer)
        trainer.val_check_batch = 1 if self._due else sys.maxsize
        if self._due:
            self._aim(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Records that the evaluation is done, for callbacks that save its state."""
        self._due = False

    def _aim(self, trainer: Any, pl_module: PolicyGradientModule) -> None:
        every = trainer.datamodule.eval_every_steps
        self._next = (pl_module.env_steps // every + 1) * every


def _ends_here(trainer: Trainer) -> bool:
    """Whether the Trainer's own limit, `max_steps` or `max_epochs`, is reached with this batch."""
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return (trainer.is_last_batch and last_epoch) or 0 <= trainer.max_steps <= trainer.global_step


class EvaluationReport(Callback):
    """Writes `validate.json` or `test.json` into a run's folder.

    Keys: `env_id, episodes, deterministic, seed, env_steps` (of training), `return_mean, return_std, return_ci95`
    (Student's t, as [low, high]), `length_mean, returns, lengths`; for games also `games` (see `game_results`),
    `groups` (opponents and seats) and `group_of_episode`.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out before the first episode whether the folder can be written."""
        with writable(self.run_folder):
            pass

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before `test`."""
        self.on_test_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """After `validate`."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `test`."""
        self._write(trainer, pl_module, "test")

    @rank_zero_only
    def _write(self, trainer: Any, pl_module: Any, name: str) -> None:
        returns, lengths = (x.double().cpu().numpy() for x in pl_module.evaluation[:2])
        report = {
            "env_id": trainer.datamodule.env_id,
            "episodes": len(returns),
            "deterministic": trainer.datamodule.eval_deterministic,
            "seed": trainer.datamodule.seed,
            "env_steps": pl_module.env_steps,
            "return_mean": returns.mean(),
            "return_std": returns.std(),
            "return_ci95": confidence_interval(returns),
            "length_mean": lengths.mean(),
            "returns": returns.tolist(),
            "lengths": lengths.astype(int).tolist(),
        }
        names = trainer.datamodule.eval_groups
        if names:
            report |= {"games": game_results(pl_module.evaluation, names), "groups": names}
            report["group_of_episode"] = pl_module.evaluation.groups.tolist()
        path = self.run_folder / f"{name}.json"
        with writable(self.run_folder):
            write_json(path, report)
        low, high = report["return_ci95"]
        print(
            f"{name}: return {report['return_mean']:.1f} (95% interval {low:.1f} to {high:.1f}) over "
            f"{len(returns)} episodes of {report['env_id']}"
        )
        for name in names:
            won, drawn, lost = (
                report["games"].get(f"{what}_rate/{name}", math.nan) for what in ("win", "draw", "loss")
            )
            print(f"{name:>24}: won {won:7.2%}, drew {drawn:7.2%}, lost {lost:7.2%}")
        print(f"written to {path}")


class TrajectoryWriter(BasePredictionWriter):
    """Writes every episode of `predict` as `predict/episode_0000.npz` in the run's folder.

    Arrays: `obs [L + 1, *obs]`, `actions [L, *action]`, `rewards`, `terminated`, `truncated` `[L]`.
    """

    def __init__(self, run_folder: Path) -> None:
        super().__init__("batch")
        self.folder = run_folder / "predict"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out before the first episode whether the folder can be written."""
        with writable(self.folder):
            pass

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Episode,
        batch_indices: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """One file per episode, in the order in which they started; ranks interleave."""
        index = batch_idx * trainer.world_size + trainer.global_rank
        arrays = {name: _array(values) for name, values in prediction.trajectory.items()}
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        with writable(self.folder):
            write_file(self.folder / f"episode_{index:04d}.npz", content.getvalue(), durable=False)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the folder of the files."""
        if trainer.is_global_zero:
            print(f"predict: {len(list(self.folder.glob('episode_*.npz')))} episodes written to {self.folder}")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A block that writes into a folder of a run, which is made if it is missing.

    Raises:
        UserError: if it cannot be written, because the run is of someone else, for example.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    except OSError as error:
        raise UserError(
            f"ckpt_path: cannot write {str(folder)!r}: {error.strerror or error}; results are written beside the "
            "checkpoint, so copy the run into a writable folder"
        ) from error


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
