"""`config.yaml` in the run folder: re-creates the run, and names the version of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pg_lightning.errors import unwritable
from pg_lightning.run.files import write_file
from pg_lightning.run.provenance import commit
from pg_lightning.version import __version__

NAME = "config.yaml"


def write_config(folder: Path, config: str) -> Path:
    """Writes a config, YAML, with version and commit of the code in the first line.

    Raises:
        UserError: if the file cannot be written; the file of a resumed run is unchanged.
    """
    file = folder / NAME
    try:
        write_file(file, f"# pg_lightning {__version__}, commit {commit() or 'unknown'}\n{config}")
    except OSError as error:
        raise unwritable(file, error) from error
    return file


def read_config(run: Path) -> Any:
    """The config of a run; None if there is none."""
    path = run / NAME
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def trained_from(run: Path) -> str | None:
    """The commit in the first line of a run's config."""
    path = run / NAME
    named = re.match(r"# .*commit ([0-9a-f]+\+?)", path.read_text()) if path.is_file() else None
    return named[1] if named else None
