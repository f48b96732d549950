"""`config.yaml` in the run folder: re-creates the run, and names the version of the code."""

from __future__ import annotations

import re
from pathlib import Path

from pg_lightning.errors import unwritable
from pg_lightning.run.files import write_file
from pg_lightning.run.provenance import commit
from pg_lightning.run.reading import read_config, read_text
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


def config_of(run: Path) -> dict[str, object] | None:
    """The config of a run; None if there is none.

    Raises:
        UserError: if it cannot be read.
    """
    path = run / NAME
    return read_config(path, "config") if path.is_file() else None


def trained_from(run: Path) -> str | None:
    """The commit in the first line of a run's config.

    Raises:
        UserError: if it cannot be read.
    """
    path = run / NAME
    named = re.match(r"# .*commit ([0-9a-f]+\+?)", read_text(path, "config")) if path.is_file() else None
    return named[1] if named else None
