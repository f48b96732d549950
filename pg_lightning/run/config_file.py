"""`config.yaml` in the folder of a run: what re-creates it, and what it was made with."""

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
    """Writes a config, YAML, with the version and the commit that it was made with in the first line.

    Raises:
        UserError: if the file cannot be written; that of a resumed run is untouched.
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
    """The commit that the config of a run names in its first line."""
    path = run / NAME
    named = re.match(r"# .*commit ([0-9a-f]+\+?)", path.read_text()) if path.is_file() else None
    return named[1] if named else None
