"""Lightning's command line for all commands on one policy: fit, validate, test, predict and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pg_lightning.algorithms import PolicyGradientModule
from pg_lightning.callbacks import EvaluateEverySteps, RunCheckpoint
from pg_lightning.cli.assembly import TRAINER_DEFAULTS, FitAssembly, add_reports
from pg_lightning.cli.configs import no_checkpoint
from pg_lightning.cli.launch import prepare_launch, require_cores
from pg_lightning.cli.parser import Parser
from pg_lightning.commands.trainer import PolicyTrainer
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.lightning_private import OpenCLI
from pg_lightning.run import CheckpointError, last_checkpoint, read_own_checkpoint, relative, run_folder
from pg_lightning.run.folder import LAST_CHECKPOINT
from pg_lightning.run.found_config import options_to_trust
from pg_lightning.run.secrets import refuse_hidden

# The sub-commands of Lightning and of `PolicyTrainer`, each with the arguments that the user does not set.
ADDED = ("record", "play", "export", "diagnose")
NO_TEXT = ("record", "play", "diagnose")
SUBCOMMANDS = {**OpenCLI.subcommands(), **{name: {"model", "datamodule"} for name in ADDED}}


class CLI(OpenCLI):
    """Lightning's command line with a run folder, env-step callbacks and evaluation reports.

    The folder of a run is `<trainer.default_root_dir>/<config name>/version_K/`.

    Args:
        config_name: of the run.
        subcommand: if given, only this one gets a parser, because each takes 30 ms; empty for all.
        data_class: of the datamodule.
    """

    def __init__(
        self, config_name: str, subcommand: str = "", data_class: type[LightningDataModule] = RolloutDataModule
    ) -> None:
        self._config_name, self._subcommand = config_name, subcommand
        self._is_text = data_class is not RolloutDataModule
        self._continued: Path | None = None
        self._fit: FitAssembly | None = None
        try:
            super().__init__(
                PolicyGradientModule,
                data_class,
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
            if self._fit is not None:
                self._fit.metrics.release()

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks the instance
        """The sub-commands that get a parser: the requested one, or all for the general help."""
        return {name: given for name, given in SUBCOMMANDS.items() if self._subcommand in ("", name)}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links arguments of the model to those of the data."""
        parser.link_arguments("data.total_steps", "model.init_args.total_steps")
        for space in ("observation_space", "action_space"):
            parser.link_arguments(f"data.{space}", f"model.init_args.{space}", apply_on="instantiate")

    def seed_all(self) -> None:
        """Seeds the generators of the run.

        Raises:
            UserError: if the seed is not within 32 bits.
        """
        try:
            super().seed_all()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Creates the run folder, and makes other loggers write there too."""
        config = self.config[self.subcommand]
        refuse_hidden(config.as_dict())
        if self._is_text and self.subcommand in NO_TEXT:
            raise UserError(f"{self.subcommand}: needs an environment, and the data are prompts; predict writes texts")
        if self.subcommand == "fit":
            self._fit = FitAssembly(config, self._config_name, self._continued)
        if self.subcommand == "predict":
            config.return_predictions = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's loggers and callbacks to those of the config."""
        config = self.trainer_config
        require_cores(config.devices)
        if self._fit is not None:
            self._fit.choose_accelerator(config, self.model, self.datamodule)
            self._fit.add_to(config, self.parser_of("fit"))
        else:
            add_reports(config, str(self.subcommand), self.config[self.subcommand].ckpt_path, self._is_text)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"trainer: {error}") from error
        prepare_launch(trainer)
        return trainer

    def resolve_checkpoint(self) -> None:
        """Replaces `last` by a path; detects a missing, truncated or foreign checkpoint before anything starts."""
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        if config.ckpt_path == LAST_CHECKPOINT:
            self._find_last(subcommand, config)
        if config.ckpt_path is None:
            if subcommand not in ("fit", "diagnose"):
                raise no_checkpoint(subcommand)
            return
        checkpoint = read_own_checkpoint(config.ckpt_path, "fit" if subcommand == "fit" else "evaluate")
        if self._continued is not None and subcommand == "fit":
            spent = checkpoint["pg_lightning"]["env_steps"] >= config.data.total_steps
            if spent and not EvaluateEverySteps.was_due(checkpoint):
                rank_zero_info(
                    f"ckpt_path: {run_folder(self._continued)} has used its data.total_steps of "
                    f"{config.data.total_steps}; there is nothing left to do"
                )
                raise SystemExit(0)

    def _find_last(self, subcommand: str, config: Any) -> None:
        runs = Path(config.trainer.default_root_dir or ".") / self._config_name
        self._continued = last_checkpoint(runs)
        config.ckpt_path = None if self._continued is None else str(self._continued)
        if self._continued is not None:
            return
        if subcommand != "fit":
            raise no_checkpoint(subcommand)
        rank_zero_info(f"ckpt_path: no {LAST_CHECKPOINT}.ckpt in {runs} yet, so training starts from the beginning")

    def after_fit(self) -> None:
        """Prints the result, its location and the next commands.

        Raises:
            CheckpointError: if the last or the best checkpoint could not be saved in this training.
        """
        if self._fit is None or self._fit.metrics not in self.trainer.loggers or not self.trainer.is_global_zero:
            return
        print(f"\nrun:   {self._fit.metrics.log_dir}")
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, RunCheckpoint) and checkpoint.best_model_score is not None:
            best = relative(Path(checkpoint.best_model_path))
            given = f"{best}{options_to_trust(run_folder(best) / 'config.yaml')}"
            print(
                f"best:  evaluation return {float(checkpoint.best_model_score):.1f} ({checkpoint.monitor}), in {best}\n"
                f"next:  python -m pg_lightning test --ckpt_path {given} --data.eval_episodes 100\n"
                f"       python -m pg_lightning predict --ckpt_path {given}"
            )
        for checkpoint in self.trainer.checkpoint_callbacks:
            if isinstance(checkpoint, RunCheckpoint) and checkpoint.failed:
                raise CheckpointError(f"training has ended, but {checkpoint.filename}.ckpt could not be saved")
