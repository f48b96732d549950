"""Configs and checkpoints given on the command line."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pg_lightning
from pg_lightning.errors import UserError
from pg_lightning.run.folder import LAST_CHECKPOINT, run_folder
from pg_lightning.run.found_config import require_harmless
from pg_lightning.run.reading import read_yaml

LOGGER_PRESETS: dict[str, Any] = {
    "tensorboard": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}},
    "wandb": {"class_path": "pg_lightning.run.FaultTolerantWandbLogger", "init_args": {"save_dir": "."}},
}


def expand_arguments(arguments: list[str], subcommands: Collection[str]) -> list[str]:
    """Expands the short forms.

    A config name is replaced by the path of a shipped config, a checkpoint without a config uses the config of its run,
    and `--trainer.logger wandb` or `tensorboard` becomes the logger's class.

    Args:
        arguments: the sub-command and its arguments.
        subcommands: the sub-commands that train or use a policy.

    Raises:
        UserError: if a config or a checkpoint does not exist, or the config beside a checkpoint is not harmless.
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
    if subcommand in subcommands and not {"--config", "-c", "--help", "-h"} & set(expanded):
        checkpoint = dict(pairwise(expanded)).get("--ckpt_path")
        if checkpoint == LAST_CHECKPOINT:
            raise UserError(f"ckpt_path: {LAST_CHECKPOINT} is the newest checkpoint of a config; give --config too")
        if checkpoint is not None:
            expanded[1:1] = ["--config", str(_config_beside(Path(checkpoint)))]
        elif subcommand != "fit":
            raise no_checkpoint(subcommand)
    return expanded


def find_config(name: str, below: str = "") -> Path:
    """A config by path, or by the name of a shipped config in a folder of the configs.

    Raises:
        UserError: if there is none, listing the shipped ones, or if it is not YAML, naming the line, or too large.
    """
    package = Path(pg_lightning.__file__).parent
    shipped = [folder / "configs" / below for folder in (package, package.parent)]
    paths = [Path(name), *(folder / f"{Path(name).stem}.yaml" for folder in shipped)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None and Path(name).exists() and ("/" in name or Path(name).suffix):
        path = Path(name)  # a folder or a FIFO, which is refused below
    if path is None:
        names = sorted({path.stem for folder in shipped for path in folder.glob("*.yaml")})
        raise UserError(f"config: no file {name!r}; shipped: {', '.join(names)}")
    content = read_yaml(path, "config")
    if not isinstance(content, dict):
        raise UserError(f"config: {name!r} contains no keys")
    return path


def config_name(arguments: list[str]) -> str:
    """The name of the folder above a run: the name of its config, or of the run that the config belongs to."""
    for option, value in pairwise(arguments):
        if option in ("--config", "-c"):
            path = Path(value).absolute()
            return path.parents[1].name if path.parent.name.startswith("version_") else path.stem
    return "unnamed"


def is_about_text(arguments: list[str]) -> bool:
    """Whether the data are prompts, not environments: by the options, or by the config."""
    if any(argument.startswith("--data.prompts") for argument in arguments):
        return True
    for option, value in pairwise(arguments):
        if option in ("--config", "-c"):
            config = read_yaml(Path(value), "config")
            data = config.get("data") if isinstance(config, dict) else None
            if isinstance(data, dict) and "prompts" in data:
                return True
    return False


def no_checkpoint(subcommand: str) -> UserError:
    """The error for a sub-command that needs a checkpoint and has none."""
    return UserError(f"ckpt_path: {subcommand} needs a checkpoint, --ckpt_path RUN/checkpoints/best.ckpt")


def _config_beside(checkpoint: Path) -> Path:
    if not checkpoint.is_file():
        raise UserError(f"ckpt_path: no file {str(checkpoint)!r}")
    config = run_folder(checkpoint) / "config.yaml"
    if not config.is_file():
        raise UserError(f"ckpt_path: no config.yaml beside {str(checkpoint)!r}; give --config")
    require_harmless(config)
    return config
