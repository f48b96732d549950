"""The version of the code that made a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pg_lightning.version import __version__

DESCRIBE = ("describe", "--always", "--abbrev=40", "--exclude=*")


def commit() -> str | None:
    """The commit of the working tree in the current folder, with a `+` if it has changes; None outside a tree."""
    return _git(*DESCRIBE, "--dirty=+")


def code_version() -> dict[str, str]:
    """The `version` of this package, and the `commit` if it runs from a git repository, with `-dirty` if modified."""
    version = {"version": __version__}
    root = Path(__file__).parents[2]
    if (root / ".git").exists() and (found := _git("-C", str(root), *DESCRIBE, "--dirty")):
        version["commit"] = found
    return version


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
