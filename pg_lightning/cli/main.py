"""The entry point of the command line."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings

import torch

from pg_lightning.cli.commands import COMMANDS
from pg_lightning.cli.configs import config_name, expand_arguments, is_about_text
from pg_lightning.cli.errors import end_by_error, end_by_signal
from pg_lightning.cli.lightning_cli import CLI, SUBCOMMANDS
from pg_lightning.cli.parser import SUGGESTION
from pg_lightning.cli.streams import outlive_readers
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.processes import signals
from pg_lightning.text import TextDataModule


def main() -> None:
    """Entry point. A user error ends in one line on stderr and status 2, a signal in one line and its `EXIT_STATUS`.

    Uses one thread unless `OMP_NUM_THREADS` is set: more threads do not help on small networks, and they wait for each
    other at every operation if several runs share a machine.
    """
    outlive_readers()
    _quiet()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    signals.listen()
    try:
        _run(sys.argv[1:])
    except signals.Stopped as stop:
        end_by_signal(stop)
    except Exception as error:
        end_by_error(error)
    finally:
        signals.forget()


def _run(arguments: list[str]) -> None:
    name = "".join(arguments[:1])
    if name in COMMANDS:
        COMMANDS[name](arguments[1:])
        return
    known = [*SUBCOMMANDS, *COMMANDS]
    if name and not name.startswith("-") and name not in known:
        meant = "".join(f"{SUGGESTION}{near}?" for near in difflib.get_close_matches(name, known, n=1))
        raise UserError(f"{name}: unknown command{meant or '; there are ' + ', '.join(known)}")
    sys.argv[1:] = expand_arguments(arguments or ["--help"], SUBCOMMANDS)
    data_class = TextDataModule if is_about_text(sys.argv[1:]) else RolloutDataModule
    CLI(config_name(sys.argv[1:]), name if name in SUBCOMMANDS else "", data_class)


def _quiet() -> None:
    """Silences Lightning's hints about map-style datasets, and its advertisements."""
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
