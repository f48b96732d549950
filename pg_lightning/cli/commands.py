"""Commands that are not about a single policy: each parses its arguments and calls its function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from pg_lightning.cli.configs import find_config
from pg_lightning.cli.parser import Parser
from pg_lightning.commands import compare, plot, reference, study
from pg_lightning.errors import UserError


def run_plot(arguments: list[str]) -> None:
    """The command `plot`."""
    parser = Parser(prog="pg-lightning plot", description="Draws the learning curves of runs in one figure.")
    plot.add_arguments(parser)
    for file in plot.plot(**parser.parse_args(arguments).as_dict()):
        print(file)


def run_study(arguments: list[str]) -> None:
    """The command `study`."""
    settings = _read_study(
        "study", study.add_arguments, "Measures the effect of a setting: many runs with the same seeds.", arguments
    )
    study.study(**{**settings, "config": find_config(str(settings["config"]))})


def run_compare(arguments: list[str]) -> None:
    """The command `compare`."""
    description = "Compares algorithms at one budget, with a value-based method and a random policy."
    settings = _read_study("compare", compare.add_arguments, description, arguments)
    compare.compare(**{**settings, "methods": [find_config(str(method)) for method in settings["methods"]]})


def run_reference(arguments: list[str]) -> None:
    """The command `reference`, which `compare` starts."""
    parser = Parser(prog="pg-lightning reference", description="Runs the reference methods of a comparison.")
    reference.add_arguments(parser)
    reference.reference(**parser.parse_args(arguments).as_dict())


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "plot": run_plot,
    "study": run_study,
    "compare": run_compare,
    "reference": run_reference,
}


def _read_study(
    name: str, add_arguments: Callable[[Parser], None], description: str, arguments: list[str]
) -> dict[str, Any]:
    """The arguments of a study: those of its file, which gives the study its name, and of the command line.

    Raises:
        UserError: if there are no arguments.
    """
    parser = Parser(prog=f"pg-lightning {name}", description=description, usage="%(prog)s FILE [options]")
    parser.add_argument("--file", action="config", help=argparse.SUPPRESS)
    add_arguments(parser)
    if not arguments:
        raise UserError(f"{name}: give a file, such as configs/studies/lr_cartpole.yaml, or --help")
    if not arguments[0].startswith("-"):
        file = find_config(arguments[0], "studies")
        arguments = [f"--file={file}", f"--name={file.stem}", *arguments[1:]]
    settings = parser.parse_args(arguments).as_dict()
    del settings["file"]
    return settings
