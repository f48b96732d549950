"""The command line: `python -m pg_lightning {fit,validate,test,predict,record,export,diagnose,plot,study,compare}`."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml  # type: ignore[import-untyped]
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError
from torch.distributed.constants import default_pg_timeout

from pg_lightning import __version__
from pg_lightning.accelerator import choose_accelerator
from pg_lightning.algorithms import PolicyGradientModule
from pg_lightning.callbacks import (
    CheckpointError,
    ContinuedMetrics,
    EnvStepProgress,
    EvaluateEverySteps,
    EvaluationReport,
    LearningCurve,
    MetricsFile,
    RandomStates,
    RankWatch,
    RunCheckpoint,
    SafeCheckpointIO,
    StopOnSignal,
    TrajectoryWriter,
    read_checkpoint,
    relative,
    run_folder,
)
from pg_lightning.callbacks.tracking import commit
from pg_lightning.commands.compare import compare
from pg_lightning.commands.reference import reference
from pg_lightning.commands.study import study
from pg_lightning.commands.trainer import PolicyTrainer
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError, unwritable
from pg_lightning.plot import plot
from pg_lightning.processes import signals
from pg_lightning.strategies import WorkerError

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs",
    "max_epochs": -1,
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
LOGGER_PRESETS: dict[str, Any] = {
    "tensorboard": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}},
    "wandb": {"class_path": "pg_lightning.callbacks.FaultTolerantWandbLogger", "init_args": {"save_dir": "."}},
}
# How long ranks wait for one that hangs, unless the strategy is given with a timeout of its own.
RANK_TIMEOUT = timedelta(minutes=5)
MISTAKES = (UserError, MisconfigurationException, WorkerError, DistError, CheckpointError)
REPORTS: dict[str | None, type[EvaluationReport | TrajectoryWriter]] = {
    "validate": EvaluationReport,
    "test": EvaluationReport,
    "predict": TrajectoryWriter,
}
LAST = "last"  # as a --ckpt_path: the newest checkpoint of that name, to go on in its own folder

# What jsonargparse says of bad input.
UNKNOWN_KEY = re.compile(r"(?:unrecognized arguments: --|does not accept option '|Option ')([^\s'=]+)(?!.*before)")
SUGGESTION = "; did you mean "
KEY = re.compile(r'^Parser key "(.+?)":? ?')
EXPECTED_TYPE = re.compile(r"Expected an? (?:<class '(.+?)'>|typing\.Literal\[(.+)\])(?:\. Got value: .*)?$")


class Parser(LightningArgumentParser):
    """Complains in one line: the key at fault, what is wrong with it, and the nearest key that there is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with status 2, or hands the complaint to the parser that this one works for."""
        if unknown := UNKNOWN_KEY.search(message):
            keys = getattr(ex, "subcommand_parser", self).get_defaults().keys()
            nearest = difflib.get_close_matches(unknown[1], keys, n=1, cutoff=0.8)
            message = f'Parser key "{unknown[1]}":\n  unknown key' + "".join(f"{SUGGESTION}{key}?" for key in nearest)
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {one_line(message)}\n")


class CLI(LightningCLI):
    """Lightning's command line with a run folder, env-step callbacks and evaluation reports.

    The folder of a run is `<trainer.default_root_dir>/<config name>/version_K/`.
    """

    def __init__(self, config_name: str) -> None:
        self._config_name = config_name
        self._continued: Path | None = None
        try:
            super().__init__(
                PolicyGradientModule,
                RolloutDataModule,
                parser_class=Parser,
                parser_kwargs={
                    "prog": "pg-lightning",
                    "description": "Policy gradients on Lightning.",
                    "epilog": "Without a config of one run: plot RUN ..., study FILE, compare FILE (each with --help).",
                },
                subclass_mode_model=True,
                trainer_defaults=TRAINER_DEFAULTS,
                trainer_class=PolicyTrainer,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        finally:
            if "_csv" in vars(self):
                self._csv.release()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and those that `PolicyTrainer` adds; the arguments that are not the user's to give."""
        added = ("record", "export", "diagnose")
        return {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in added}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the model must know of the data."""
        parser.link_arguments("data.total_steps", "model.init_args.total_steps")
        for space in ("observation_space", "action_space"):
            parser.link_arguments(f"data.{space}", f"model.init_args.{space}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Makes the run's folder, and sends what other loggers write there too."""
        config = self.config[self.subcommand]
        self._config_to_save = config.clone()
        if self.subcommand == "fit":
            version = None if self._continued is None else run_folder(self._continued).name
            self._csv = MetricsFile(config.trainer.default_root_dir or ".", self._config_name, version)
            if not config.trainer.barebones and not config.trainer.fast_dev_run:
                folder = Path(self._csv.log_dir)
                for logger in _listed(config.trainer.logger):
                    _write_into(folder, logger, config.ckpt_path)
        elif config.ckpt_path is not None:
            self._run_folder = run_folder(Path(config.ckpt_path))
        if self.subcommand == "predict":
            config.return_predictions = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's loggers and callbacks to those of the config."""
        config = self._get(self.config_init, "trainer")
        given = _listed(config.callbacks)
        if self.subcommand == "fit":
            # Where several processes are asked for, each would measure for itself: the choice is Lightning's.
            alone = config.devices in ("auto", 1, "1") and config.num_nodes == 1 and "WORLD_SIZE" not in os.environ
            if config.accelerator == "auto" and alone:
                config.accelerator, reason = choose_accelerator(self.model, self.datamodule)
                config.devices = 1
                self._config_to_save.trainer.accelerator = config.accelerator  # so that the run can be repeated
                rank_zero_info(f"trainer.accelerator auto: {reason}")
            config.callbacks = [*self._fit_callbacks(config, given), *given]
            if not any(isinstance(plugin, CheckpointIO) for plugin in _listed(config.plugins)):
                config.plugins = [*_listed(config.plugins), SafeCheckpointIO(warn=True)]
            if config.barebones:
                config.log_every_n_steps = None
            else:
                config.logger = [self._csv, *(x for x in _listed(config.logger) if isinstance(x, Logger))]
        else:
            report = REPORTS.get(self.subcommand)
            config.callbacks = [*([report(self._run_folder)] if report else []), RankWatch(), *given]
            config.logger = False
            if not sys.stdout.isatty():
                config.enable_progress_bar = False
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"trainer: {error}") from error
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and strategy._timeout == default_pg_timeout:
            strategy._timeout = RANK_TIMEOUT
        signals.launches(trainer.strategy.launcher)
        return trainer

    def _fit_callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        callbacks: list[Callback] = [StopOnSignal(), RankWatch(), RandomStates(), EvaluateEverySteps()]
        if config.barebones:
            return callbacks
        if not config.fast_dev_run:
            callbacks += [SaveConfig(self._parser("fit"), self._config_to_save), LearningCurve()]
            callbacks.append(ContinuedMetrics(self._csv, self._continued))
        if config.enable_checkpointing is not False:
            callbacks += [
                RunCheckpoint(filename="best", monitor="val/return_mean", mode="max", enable_version_counter=False),
                RunCheckpoint(filename=LAST, enable_version_counter=False),
            ]
        if config.enable_progress_bar is not False and not any(isinstance(x, ProgressBar) for x in given):
            callbacks.append(EnvStepProgress())
        return callbacks

    def _parse_ckpt_path(self) -> None:
        """The word `last` becomes a path; a missing, torn or foreign checkpoint is found out before anything starts."""
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        needs_one = subcommand != "fit" and not (subcommand == "diagnose" and config.ckpt_path is None)
        if config.ckpt_path == LAST:
            runs = Path(config.trainer.default_root_dir or ".") / self._config_name
            self._continued = last_checkpoint(runs)
            config.ckpt_path = None if self._continued is None else str(self._continued)
            if self._continued is None and subcommand == "fit":
                rank_zero_info(f"ckpt_path: no {LAST}.ckpt in {runs} yet, so training starts afresh")
        path = config.ckpt_path
        if path is None:
            if needs_one:
                raise _no_checkpoint(subcommand)
            return
        if not Path(path).is_file():
            raise UserError(f"ckpt_path: no file {str(path)!r}")
        checkpoint: Any = read_checkpoint(Path(path), "meta")
        if not isinstance(checkpoint, dict) or "pg_lightning" not in checkpoint:
            raise UserError(f"ckpt_path: {str(path)!r} is not a checkpoint of pg_lightning")
        if self._continued is not None and subcommand == "fit":
            due = checkpoint.get("callbacks", {}).get("EvaluateEverySteps", {}).get("due", False)
            if checkpoint["pg_lightning"]["env_steps"] >= config.data.total_steps and not due:
                rank_zero_info(
                    f"ckpt_path: {run_folder(self._continued)} has spent its data.total_steps of "
                    f"{config.data.total_steps}; nothing is left to do"
                )
                raise SystemExit(0)

    def after_fit(self) -> None:
        """Says what was reached, where it lies and what to do next.

        Raises:
            CheckpointError: if the last checkpoint, or the best, is not that of this training.
        """
        if self._csv not in self.trainer.loggers or not self.trainer.is_global_zero:
            return
        print(f"\nrun:   {self._csv.log_dir}")
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, RunCheckpoint) and checkpoint.best_model_score is not None:
            best = relative(Path(checkpoint.best_model_path))
            print(
                f"best:  evaluation return {float(checkpoint.best_model_score):.1f} ({checkpoint.monitor}), in {best}\n"
                f"next:  python -m pg_lightning test --ckpt_path {best} --data.eval_episodes 100\n"
                f"       python -m pg_lightning predict --ckpt_path {best}"
            )
        for checkpoint in self.trainer.checkpoint_callbacks:
            if isinstance(checkpoint, RunCheckpoint) and checkpoint.failed:
                raise CheckpointError(f"training is done, and {checkpoint.filename}.ckpt could not be saved")


class SaveConfig(Callback):
    """Writes `config.yaml`, which re-creates the run, into its folder, and hands it to the trackers."""

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self.parser = parser
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the environments start; with the back-end that `auto` chose, so that the run can be repeated.

        Raises:
            UserError: if the file cannot be written.
        """
        folder = trainer.log_dir  # asks rank 0, so every rank must
        if stage != "fit" or not trainer.is_global_zero or folder is None:
            return
        self.config.data.backend = trainer.datamodule.backend  # type: ignore[attr-defined]
        for key in set(vars(self.config)) - {"seed_everything", "trainer", "model", "data"}:
            self.config.pop(key, None)
        file, new = (Path(folder) / name for name in ("config.yaml", "config.yaml.new"))
        try:
            made_by = f"# pg_lightning {__version__}, commit {commit() or 'unknown'}\n"
            new.write_text(made_by + self.parser.dump(self.config, skip_none=False, skip_check=True))
            os.replace(new, file)
        except OSError as error:  # of a resumed run the file from before is untouched
            with suppress(OSError):
                new.unlink()
            raise unwritable(file, error) from error
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(file.read_text()))


def main() -> None:
    """Entry point. A user's mistake ends in one line on stderr and status 2, a signal in one and its `EXIT_STATUS`.

    One thread, unless `OMP_NUM_THREADS` says otherwise: more gain nothing on small networks, and wait for each other at
    every operation where runs share a machine.
    """
    _quiet()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    signals.listen()
    try:
        name = "".join(sys.argv[1:2])
        if name in COMMANDS:
            COMMANDS[name](sys.argv[2:])
            return
        known = [*CLI.subcommands(), *COMMANDS]
        if name and not name.startswith("-") and name not in known:
            meant = "".join(f"{SUGGESTION}{near}?" for near in difflib.get_close_matches(name, known, n=1))
            raise UserError(f"{name}: unknown command{meant or '; there are ' + ', '.join(known)}")
        arguments = expand_arguments(sys.argv[1:] or ["--help"])
        sys.argv[1:] = arguments
        CLI(config_name=_config_name(arguments))
    except signals.Stopped as stop:
        signals.join()
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(stop, file=sys.stderr)
            if stop.signum == signal.SIGUSR1:
                requeue()
        raise
    except Exception as error:
        # What a model's constructor raises comes wrapped.
        mistake = error if isinstance(error, MISTAKES) else error.__cause__
        if not isinstance(mistake, MISTAKES):
            raise
        if not getattr(mistake, "is_told", False):
            sys.stderr.write(f"error: {' '.join(str(mistake).split())}\n")  # at once: ranks share a terminal
        raise SystemExit(2) from None
    finally:
        signals.forget()


def plot_runs(arguments: list[str]) -> None:
    """The command `plot`."""
    parser = Parser(prog="pg-lightning plot", description="Learning curves of runs in one picture.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders with runs anywhere below")
    parser.add_function_arguments(plot, skip={"runs"})
    for file in plot(**parser.parse_args(arguments).as_dict()):
        print(file)


def run_study(arguments: list[str]) -> None:
    """The command `study`."""
    settings = read_study(study, "What a setting does: many runs, over the same seeds.", arguments)
    study(**{**settings, "config": find_config(str(settings["config"]))})


def run_compare(arguments: list[str]) -> None:
    """The command `compare`."""
    settings = read_study(compare, "Algorithms at one budget, beside a value-based method and chance.", arguments)
    compare(**{**settings, "methods": [find_config(str(method)) for method in settings["methods"]]})


def read_study(function: Callable[..., None], description: str, arguments: list[str]) -> dict[str, Any]:
    """The arguments of a study: those of its file, which comes first and gives it its name, and the command line's."""
    parser = Parser(prog=f"pg-lightning {function.__name__}", description=description, usage="%(prog)s FILE [options]")
    parser.add_argument("--file", action="config", help=argparse.SUPPRESS)
    parser.add_function_arguments(function)
    if not arguments:
        raise UserError(f"{function.__name__}: give a file, such as configs/studies/lr_cartpole.yaml, or --help")
    if not arguments[0].startswith("-"):
        file = find_config(arguments[0], "studies")
        arguments = [f"--file={file}", f"--name={file.stem}", *arguments[1:]]
    settings = parser.parse_args(arguments).as_dict()
    del settings["file"]
    return settings


def run_reference(arguments: list[str]) -> None:
    """The command `reference`, which `compare` gives."""
    parser = Parser(prog="pg-lightning reference", description="What algorithms are compared with.")
    parser.add_function_arguments(reference)
    reference(**parser.parse_args(arguments).as_dict())


COMMANDS = {"plot": plot_runs, "study": run_study, "compare": run_compare, "reference": run_reference}


def requeue() -> None:
    """Puts the job back into SLURM's queue, if it is one."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"warning: scontrol requeue {job} failed: {reason}", file=sys.stderr)
    else:
        print(f"requeued job {job}", file=sys.stderr)


def expand_arguments(arguments: list[str]) -> list[str]:
    """The short forms written out.

    A config given by name is looked for among those shipped, a checkpoint without a config takes that of its own run,
    and `--trainer.logger wandb` or `tensorboard` becomes the logger's class.

    Raises:
        UserError: if a config or a checkpoint does not exist.
    """
    expanded: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        split = equals and option in ("--config", "--trainer.logger", "--ckpt_path")
        expanded += [option, value] if split else [argument]
    for i, (option, value) in enumerate(pairwise(expanded)):
        if option in ("--config", "-c"):
            expanded[i + 1] = str(find_config(value))
        elif option == "--trainer.logger" and value in LOGGER_PRESETS:
            expanded[i + 1] = json.dumps(LOGGER_PRESETS[value])
    subcommand = expanded[0]
    if subcommand in CLI.subcommands() and not {"--config", "-c", "--help", "-h"} & set(expanded):
        checkpoint = dict(pairwise(expanded)).get("--ckpt_path")
        if checkpoint == LAST:
            raise UserError(f"ckpt_path: {LAST} is the newest checkpoint of a config; give --config too")
        if checkpoint is not None:
            expanded[1:1] = ["--config", str(_config_beside(Path(checkpoint)))]
        elif subcommand != "fit":
            raise _no_checkpoint(subcommand)
    return expanded


def find_config(name: str, below: str = "") -> Path:
    """A config by path, or by name among those shipped in a folder of the configs.

    Raises:
        UserError: if there is none, naming those that there are, or if it is not YAML, naming the line.
    """
    package = Path(__file__).parent
    shipped = [folder / "configs" / below for folder in (package, package.parent)]
    paths = [Path(name), *(folder / f"{Path(name).stem}.yaml" for folder in shipped)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        names = sorted({path.stem for folder in shipped for path in folder.glob("*.yaml")})
        raise UserError(f"config: no file {name!r}; shipped: {', '.join(names)}")
    try:
        with path.open() as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {name!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {name!r} holds no keys")
    return path


def last_checkpoint(runs: Path) -> Path | None:
    """The newest `last.ckpt` of the runs `version_K` in a folder."""
    found = [(path.stat().st_mtime_ns, path) for path in runs.glob(f"version_*/checkpoints/{LAST}.ckpt")]
    return max(found)[1] if found else None


def _config_beside(checkpoint: Path) -> Path:
    if not checkpoint.is_file():
        raise UserError(f"ckpt_path: no file {str(checkpoint)!r}")
    config = run_folder(checkpoint) / "config.yaml"
    if not config.is_file():
        raise UserError(f"ckpt_path: no config.yaml beside {str(checkpoint)!r}; give --config")
    return config


def _config_name(arguments: list[str]) -> str:
    for option, value in pairwise(arguments):
        if option in ("--config", "-c"):
            path = Path(value).absolute()
            return path.parents[1].name if path.parent.name.startswith("version_") else path.stem
    return "unnamed"


def _no_checkpoint(subcommand: str) -> UserError:
    return UserError(f"ckpt_path: {subcommand} needs a checkpoint, --ckpt_path RUN/checkpoints/best.ckpt")


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [] if values is None else [values]


def one_line(message: str) -> str:
    """The cause in an error of jsonargparse, behind the key that it lies in.

    The error is a tree, one line a node, deeper by indentation: keys, class paths, and the types that were tried. The
    cause is the deepest line, and the key is spread over the lines above it.
    """
    if "Parser key" not in message:
        return " ".join(message.split())
    tree = [(len(line) - len(line.lstrip(" -")), line.lstrip(" -")) for line in message.splitlines() if line.strip()]
    deepest = max(depth for depth, _ in tree)
    first = next(i for i, (depth, _) in enumerate(tree) if depth == deepest)
    keys: list[str] = []
    level = deepest + 1
    for depth, text in reversed(tree[: first + 1]):
        if depth < level:
            level = depth
            keys += KEY.findall(text)
    keys = list(dict.fromkeys(reversed(keys)))
    causes = [KEY.sub("", text) for depth, text in tree if depth == deepest]
    types = [EXPECTED_TYPE.match(cause) for cause in causes]
    if all(types):
        names = dict.fromkeys(match[1] or f"one of {match[2]}" for match in types if match and match[1] != "NoneType")
        got = re.search(r"(?:Got|Given) value: (.*)", "\n".join(text for _, text in tree[first:]))
        cause = f"expected {' or '.join(names)}" + (f", got {got[1]!r}" if got else "")
    else:
        cause = next(cause for cause, match in zip(causes, types, strict=True) if not match)
    return f"{'.'.join(keys)}: {cause.replace(SUGGESTION, SUGGESTION + '.'.join([*keys[:-1], '']))}"


def _write_into(folder: Path, logger: Any, checkpoint: str | None) -> None:
    """Has a logger write into the run's folder, under the run's name, or go on where an earlier part of the run ended.

    The latest checkpoint of a run, in whatever folder, is that run going on; any other begins a run of its own.
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
        r"Checkpoint directory .* exists and is not empty",
        r".*smaller than the logging interval",
        r".*Trainer\(barebones=True\)` is configured",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
