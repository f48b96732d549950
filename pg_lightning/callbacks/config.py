"""Saves the config of a run when it starts."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.run.config_file import write_config
from pg_lightning.run.secrets import without_secrets


class SaveConfig(Callback):
    """Writes `config.yaml`, which re-creates the run, into its folder, and passes it to the trackers; without secrets.

    Args:
        parser: of `fit`, which saves the config.
        config: the parsed arguments of `fit`.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self.parser = parser
        self.config = config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint has been accepted, before the environments start; with the back-end that `auto` chose, so
        that the run can be repeated.

        Raises:
            UserError: if the file cannot be written.
        """
        folder = trainer.log_dir  # a collective: all ranks must read it
        if not trainer.is_global_zero or folder is None:
            return
        if "backend" in self.config.data:
            self.config.data.backend = trainer.datamodule.backend  # type: ignore[attr-defined]
        for key in set(vars(self.config)) - {"seed_everything", "trainer", "model", "data"}:
            self.config.pop(key, None)
        config = yaml.safe_load(
            self.parser.dump(cast(Namespace, _plain(self.config)), skip_none=False, skip_check=True)
        )
        public = {key: without_secrets(value, key) for key, value in config.items()}
        write_config(Path(folder), yaml.safe_dump(public, sort_keys=False, allow_unicode=True))
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(public)


def _plain(x: object) -> object:
    """The same config with values instead of enums, which some callbacks have as defaults and YAML cannot hold."""
    if isinstance(x, Namespace):
        return Namespace(**{key: _plain(value) for key, value in vars(x).items()})
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_plain(value) for value in x]
    return x.value if isinstance(x, Enum) else x
