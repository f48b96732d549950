"""The command line: `python -m pg_lightning {fit,validate,test,predict}`."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger

from pg_lightning.algorithms import PolicyGradientModule
from pg_lightning.callbacks import (
    EnvStepAxis,
    EnvStepProgress,
    EvaluateEverySteps,
    EvaluationReport,
    LearningCurve,
    TrajectoryWriter,
)
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs",
    "max_epochs": -1,
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
LOGGER_PRESETS = {
    "tensorboard": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}},
    "wandb": {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "pg_lightning"}},
}


class CLI(LightningCLI):
    """Lightning's command line with a run folder, env-step callbacks and evaluation reports.

    The folder of a run is `<trainer.default_root_dir>/<config name>/version_K/`.
    """

    def __init__(self, config_name: str) -> None:
        self._config_name = config_name
        self._csv: CSVLogger | None = None
        super().__init__(
            PolicyGradientModule,
            RolloutDataModule,
            subclass_mode_model=True,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the model must know of the data."""
        parser.link_arguments("data.total_steps", "model.init_args.total_steps")
        for space in ("observation_space", "action_space"):
            parser.link_arguments(f"data.{space}", f"model.init_args.{space}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Fixes the run's folder, and sends what other loggers write there too."""
        config = self.config[self.subcommand]
        self._config_to_save = config.clone()
        if self.subcommand == "fit":
            self._csv = CSVLogger(config.trainer.default_root_dir, name=self._config_name)
            loggers = config.trainer.logger
            for logger in loggers if isinstance(loggers, list) else [loggers]:
                _write_into(Path(self._csv.log_dir), logger)
        else:
            checkpoint = Path(config.ckpt_path) if config.ckpt_path else None
            if checkpoint is None:
                raise UserError(
                    f"ckpt_path: {self.subcommand} needs a checkpoint, --ckpt_path RUN/checkpoints/best.ckpt"
                )
            self._run_folder = (
                checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's loggers and callbacks to those of the config."""
        config = self._get(self.config_init, "trainer")
        callbacks = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        config.callbacks = [*self._callbacks(config), *(c for c in callbacks if c is not None)]
        if self.subcommand != "fit":
            config.logger = False
            if not sys.stdout.isatty():
                config.enable_progress_bar = False
        elif not config.barebones:
            given = config.logger if isinstance(config.logger, list) else [config.logger]
            config.logger = [self._csv, *(logger for logger in given if isinstance(logger, Logger))]
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, config: Any) -> list[Callback]:
        if self.subcommand == "predict":
            return [TrajectoryWriter(self._run_folder)]
        if self.subcommand != "fit":
            return [EvaluationReport(self._run_folder)]
        callbacks: list[Callback] = [EvaluateEverySteps()]
        if config.barebones:
            return callbacks
        callbacks += [SaveConfig(self._parser("fit"), self._config_to_save), EnvStepAxis(), LearningCurve()]
        if config.enable_checkpointing is not False:
            callbacks += [
                ModelCheckpoint(filename="best", monitor="val/return_mean", mode="max", enable_version_counter=False),
                ModelCheckpoint(filename="last", enable_version_counter=False),
            ]
        if config.enable_progress_bar is not False:
            callbacks.append(EnvStepProgress())
        return callbacks

    def _parse_ckpt_path(self) -> None:
        """A missing or torn checkpoint is found out before anything starts."""
        path = self.config[self.config.subcommand].ckpt_path
        if path is None:
            return
        if not Path(path).is_file():
            raise UserError(f"ckpt_path: no file {str(path)!r}")
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"ckpt_path: cannot read {str(path)!r}: {reason}") from error

    def after_fit(self) -> None:
        """Says what was reached, where it lies and what to do next."""
        checkpoint = self.trainer.checkpoint_callback
        if not self.trainer.is_global_zero or not isinstance(checkpoint, ModelCheckpoint) or self.trainer.fast_dev_run:
            return
        best = checkpoint.best_model_path
        score = checkpoint.best_model_score
        print(f"\nrun:   {self.trainer.log_dir}")
        if best and score is not None:
            best = str(Path(best).relative_to(Path.cwd())) if Path(best).is_relative_to(Path.cwd()) else best
            print(
                f"best:  evaluation return {float(score):.1f} ({checkpoint.monitor}), in {best}\n"
                f"next:  python -m pg_lightning test --ckpt_path {best} --data.eval_episodes 100\n"
                f"       python -m pg_lightning predict --ckpt_path {best}"
            )


class SaveConfig(Callback):
    """Writes `config.yaml`, which re-creates the run, into its folder, and hands it to the trackers."""

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self.parser = parser
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the environments start; with the back-end that `auto` chose, so that the run can be repeated."""
        folder = trainer.log_dir
        if stage != "fit" or trainer.fast_dev_run or not trainer.is_global_zero or folder is None:
            return
        self.config.data.backend = trainer.datamodule.backend  # type: ignore[attr-defined]
        for key in set(vars(self.config)) - {"seed_everything", "trainer", "model", "data"}:
            self.config.pop(key, None)
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, Path(folder) / "config.yaml", skip_none=False, overwrite=True, skip_check=True)
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(self.config.as_dict())


def main() -> None:
    """Entry point. A user's mistake ends in one line on stderr and exit status 2."""
    _quiet()
    try:
        arguments = expand_arguments(sys.argv[1:])
        sys.argv[1:] = arguments
        CLI(config_name=_config_name(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def expand_arguments(arguments: list[str]) -> list[str]:
    """The short forms written out.

    A config given by name is looked for among those shipped, an evaluation without one takes the run's own, and
    `--trainer.logger wandb` or `tensorboard` becomes the logger's class.

    Raises:
        UserError: if a config or a checkpoint does not exist.
    """
    expanded: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        expanded += (
            [option, value]
            if equals and option in ("--config", "-c", "--trainer.logger", "--ckpt_path")
            else [argument]
        )
    for i, (option, value) in enumerate(zip(expanded, expanded[1:], strict=False)):
        if option in ("--config", "-c"):
            expanded[i + 1] = str(find_config(value))
        elif option == "--trainer.logger" and value in LOGGER_PRESETS:
            expanded[i + 1] = json.dumps(LOGGER_PRESETS[value])
    is_evaluation = bool(expanded) and expanded[0] in ("validate", "test", "predict")
    if is_evaluation and "--ckpt_path" in expanded[:-1] and not {"--config", "-c"} & set(expanded):
        checkpoint = Path(expanded[expanded.index("--ckpt_path") + 1])
        if not checkpoint.is_file():
            raise UserError(f"ckpt_path: no file {str(checkpoint)!r}")
        config = checkpoint.parent.parent / "config.yaml"
        if not config.is_file():
            raise UserError(f"ckpt_path: no config.yaml beside {str(checkpoint)!r}; give --config")
        expanded[1:1] = ["--config", str(config)]
    return expanded


def find_config(name: str) -> Path:
    """A config by path, or by name among those shipped.

    Raises:
        UserError: if there is none, naming those that there are.
    """
    if Path(name).is_file():
        return Path(name)
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        shipped = folder / Path(name).with_suffix(".yaml").name
        if shipped.is_file():
            return shipped
    names = sorted({path.stem for folder in (package, package.parent) for path in folder.glob("configs/*.yaml")})
    raise UserError(f"config: no file {name!r}; shipped: {', '.join(names)}")


def _config_name(arguments: list[str]) -> str:
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option in ("--config", "-c"):
            path = Path(value)
            return path.parent.parent.name if path.name == "config.yaml" else path.stem
    return "unnamed"


def _write_into(folder: Path, logger: Any) -> None:
    init_args = getattr(logger, "init_args", None)
    if init_args is not None and "save_dir" in init_args and str(init_args.save_dir) == ".":
        init_args.save_dir = str(folder)
        if logger.class_path.endswith("TensorBoardLogger"):
            init_args.name = init_args.version = ""


def _quiet() -> None:
    """Silences what Lightning says of map-style datasets on disk, and advertisements."""
    for message in (
        r".*does not have many workers",
        r".*IterableDataset.* has `__len__` defined",
        r".*treespec, LeafSpec",
        r".*have no logger configured",
        r".*callbacks used to create the checkpoint need to be provided",
        r".*Couldn't infer the batch indices",
        r".*ended before the epoch ended and your dataloader is not resumable",
        r".*dirpath has changed from",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
