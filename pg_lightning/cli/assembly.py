"""What the command line adds to a Trainer: run folder, loggers, callbacks, checkpoint plugin."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from pg_lightning.callbacks import (
    CompletionWriter,
    ContinuedMetrics,
    EnvStepProgress,
    EvaluateEverySteps,
    EvaluationReport,
    LeakWatch,
    LearningCurve,
    RandomStates,
    RankWatch,
    RunCheckpoint,
    SaveConfig,
    SaveTimes,
    StopOnSignal,
    TrajectoryWriter,
)
from pg_lightning.cli.accelerator import choose_accelerator
from pg_lightning.data import RolloutDataModule
from pg_lightning.data.size import require_space
from pg_lightning.run import MetricsFile, SafeCheckpointIO, run_folder
from pg_lightning.run.folder import LAST_CHECKPOINT

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs",
    "max_epochs": -1,
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
REPORTS: dict[str, type[EvaluationReport | TrajectoryWriter]] = {
    "validate": EvaluationReport,
    "test": EvaluationReport,
    "predict": TrajectoryWriter,
}


class FitAssembly:
    """The components that the command line adds to `fit`.

    Args:
        config: the parsed arguments; loggers in it will write into the run folder.
        config_name: names the folder above that of the run.
        continued: the checkpoint of a run that continues in its own folder, or None.

    Raises:
        UserError: if another process trains in that folder.

    Attributes:
        metrics: the logger that writes `metrics.csv`; it creates the run folder.
    """

    def __init__(self, config: Any, config_name: str, continued: Path | None) -> None:
        self._saved_config = config.clone()
        self._continued = continued
        version = None if continued is None else run_folder(continued).name
        self.metrics = MetricsFile(config.trainer.default_root_dir or ".", config_name, version)
        if not config.trainer.barebones and not config.trainer.fast_dev_run:
            if continued is not None:
                self.metrics.claim()
            folder = Path(self.metrics.log_dir)
            for logger in _listed(config.trainer.logger):
                _write_into(folder, logger, config.ckpt_path)

    def choose_accelerator(self, trainer: Any, model: Any, data: LightningDataModule) -> None:
        """Chooses the device for `trainer.accelerator auto` by measurement, and records it in `config.yaml`.

        With several processes the choice is Lightning's, because each process would measure for itself.
        """
        if not isinstance(data, RolloutDataModule):
            return  # to Lightning, which takes a GPU if there is one: measuring a language model takes too long
        require_space(data)
        alone = trainer.devices in ("auto", 1, "1") and trainer.num_nodes == 1 and "WORLD_SIZE" not in os.environ
        if trainer.accelerator == "auto" and alone:
            trainer.accelerator, reason = choose_accelerator(model, data)
            trainer.devices = 1
            self._saved_config.trainer.accelerator = trainer.accelerator  # so that the run can be repeated
            rank_zero_info(f"trainer.accelerator auto: {reason}")

    def add_to(self, trainer: Any, parser: LightningArgumentParser) -> None:
        """Inserts loggers, callbacks and checkpoint plugin before those of the Trainer's arguments.

        Args:
            trainer: the arguments, instantiated.
            parser: of `fit`, which writes `config.yaml`.
        """
        given = _listed(trainer.callbacks)
        trainer.callbacks = [*self._callbacks(trainer, parser, given), *given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in _listed(trainer.plugins)):
            trainer.plugins = [*_listed(trainer.plugins), SafeCheckpointIO(warn=True)]
        if trainer.barebones:
            trainer.log_every_n_steps = None
        else:
            trainer.logger = [self.metrics, *(x for x in _listed(trainer.logger) if isinstance(x, Logger))]

    def _callbacks(self, trainer: Any, parser: LightningArgumentParser, given: list[Callback]) -> list[Callback]:
        evaluations = EvaluateEverySteps()
        callbacks: list[Callback] = [StopOnSignal(), RankWatch(), RandomStates(), evaluations]
        if trainer.barebones:
            return callbacks
        if saving := [x for x in given if isinstance(x, ModelCheckpoint)]:
            callbacks.append(SaveTimes(saving))
        if not trainer.fast_dev_run:
            callbacks += [SaveConfig(parser, self._saved_config), LearningCurve(), LeakWatch()]
            callbacks.append(ContinuedMetrics(self.metrics, self._continued))
        if trainer.enable_checkpointing is not False:
            best = {"filename": "best", "monitor": "val/return_mean", "mode": "max"}
            callbacks += [RunCheckpoint(evaluations, **best), RunCheckpoint(evaluations, filename=LAST_CHECKPOINT)]
        if trainer.enable_progress_bar is not False and not any(isinstance(x, ProgressBar) for x in given):
            callbacks.append(EnvStepProgress())
        return callbacks


def add_reports(trainer: Any, subcommand: str, ckpt_path: str | None, is_text: bool) -> None:
    """Makes a sub-command other than `fit` write its result into the run folder, and disables logging.

    Args:
        trainer: the arguments of the Trainer, instantiated.
        subcommand: its name.
        ckpt_path: the checkpoint, which every sub-command with a report needs.
        is_text: whether an episode is a completion.
    """
    report: Callable[[Path], Callback] | None = REPORTS.get(subcommand)
    if is_text and subcommand == "predict":
        report = CompletionWriter
    reports: list[Callback] = []
    if report is not None and ckpt_path is not None:
        reports.append(report(run_folder(Path(ckpt_path))))
    trainer.callbacks = [*reports, RankWatch(), *_listed(trainer.callbacks)]
    trainer.logger = False
    if not sys.stdout.isatty():
        trainer.enable_progress_bar = False


def _write_into(folder: Path, logger: Any, checkpoint: str | None) -> None:
    """Makes a logger write into the run folder, under the run's name, or continue an earlier part of the run.

    A run from the latest checkpoint of a run continues that run, in any folder; any other checkpoint starts a new run.
    """
    init_args = getattr(logger, "init_args", None)
    if init_args is None:
        return
    if str(init_args.get("save_dir")) == ".":
        init_args.save_dir = str(folder)
        if logger.class_path.endswith("TensorBoardLogger"):
            init_args.name = init_args.version = ""
    if logger.class_path.endswith("FaultTolerantWandbLogger"):
        if init_args.name is None and "WANDB_NAME" not in os.environ:
            init_args.name = f"{folder.parent.name}/{folder.name}"
        if checkpoint is not None and Path(checkpoint).name.startswith("last"):
            init_args.continues = str(run_folder(Path(checkpoint)))


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [] if values is None else [values]
