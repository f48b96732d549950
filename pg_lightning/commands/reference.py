"""`python -m pg_lightning reference`, which `compare` starts: one run of another method than our algorithms."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.commands.references import reference_of
from pg_lightning.commands.references.evaluations import Arguments, Evaluations
from pg_lightning.data import RolloutDataModule
from pg_lightning.run.files import write_file


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of `reference` on the command line."""
    parser.add_function_arguments(reference)


def reference(method: str, data: Arguments, seed: int, folder: Path, arguments: Arguments) -> None:
    """Runs a method in an environment and evaluates it like the algorithms: with the same seeds, equally often.

    Writes `config.yaml` and `metrics.csv` like a run, the latter with `val/return_mean` and, if the method learns,
    `time/steps_per_second`.

    Args:
        method: a name in `references.REFERENCES`.
        data: arguments of `RolloutDataModule`: the environment, the budget and the evaluations.
        seed: of the run.
        folder: of the run.
        arguments: of the method.

    Raises:
        UserError: if an argument is invalid, or a package that the method needs is not installed.
    """
    label, run = reference_of(method)
    torch.manual_seed(seed)
    evaluations = Evaluations(RolloutDataModule(**data), seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed_everything": seed, "model": {"class_path": label, "init_args": arguments}, "data": data}
    write_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    run(evaluations, arguments)
    evaluations.write(folder)
