"""The version of the code that made a run.

A repository may come from someone else, and its `.git/config` can name programs that git runs: `core.fsmonitor`,
filters, hooks, and the same in submodules. So that configuration is not read: git gets a directory of its own with an
empty one, and from the repository only the index and the objects. Submodules are not looked into.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from pg_lightning.errors import UserError
from pg_lightning.run.reading import read_text
from pg_lightning.version import __version__

HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
MAX_REFS_BYTES = 16 * 1024**2
# Options of a file system that `git init` detects; without them files that are unchanged would seem changed.
FILE_SYSTEM = re.compile(r"^\s*(filemode|symlinks|ignorecase)\s*=\s*(true|false)\s*$", re.MULTILINE | re.IGNORECASE)


def commit() -> str | None:
    """The commit of the working tree in the current folder, with a `+` if it has changes; None outside a tree."""
    return _described(Path.cwd(), "+")


def code_version() -> dict[str, str]:
    """The `version` of this package, and the `commit` if it runs from a git repository, with `-dirty` if modified."""
    version = {"version": __version__}
    root = Path(__file__).parents[2]
    if (root / ".git").exists() and (found := _described(root, "-dirty")):
        version["commit"] = found
    return version


def _described(folder: Path, mark: str) -> str | None:
    """The commit of the working tree around a folder, with a mark if files in it have changed."""
    root = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)
    if root is None:
        return None
    try:
        git = root / ".git"
        if git.is_file():  # another worktree of a repository, or a submodule
            git = root / read_text(git, "git").removeprefix("gitdir:").strip()
        common = git / read_text(git / "commondir", "git").strip() if (git / "commondir").exists() else git
        head = _head(git, common)
        return None if head is None else head + mark * _is_changed(root, git, common, head)
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: also a UserError, and a NUL in a path
        return None


def _head(git: Path, common: Path) -> str | None:
    """The commit that is checked out; None if there is none yet, or git keeps it in another format."""
    head = read_text(git / "HEAD", "git").strip()
    if not head.startswith("ref: "):
        return head if HASH.fullmatch(head) else None
    name = head.removeprefix("ref: ")
    for folder in (git, common):
        if (folder / name).is_file():
            found = read_text(folder / name, "git").strip()
            return found if HASH.fullmatch(found) else None
    try:
        packed = read_text(common / "packed-refs", "git", MAX_REFS_BYTES)
    except UserError:
        return None
    return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), None)


def _is_changed(root: Path, git: Path, common: Path, head: str) -> bool:
    """Whether files that git knows differ from a commit.

    Raises:
        subprocess.SubprocessError: if git cannot tell.
        OSError: if there is no git, or its index is not a file.
    """
    index = (git / "index").absolute()
    if index.exists() and not index.is_file():
        raise OSError(f"not a file: {str(index)!r}")
    with tempfile.TemporaryDirectory() as empty:
        own = Path(empty)
        for folder in ("refs", "objects"):
            (own / folder).mkdir()
        (own / "HEAD").write_text(f"{head}\n")
        found = FILE_SYSTEM.findall(read_text(common / "config", "git"))
        kind = "[extensions]\nobjectformat = sha256\n" if len(head) == 64 else ""
        settings = "".join(f"{name} = {value}\n" for name, value in found)
        (own / "config").write_text(f"[core]\nrepositoryformatversion = {int(bool(kind))}\n{settings}{kind}")
        where = {
            "GIT_DIR": empty,
            "GIT_WORK_TREE": str(root),
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str((common / "objects").absolute()),
            "GIT_OPTIONAL_LOCKS": "0",  # the index is not written
            "GIT_TERMINAL_PROMPT": "0",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        options = ("--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "diff", *options, "HEAD", "--"],
            cwd=root,
            env={**inherited, **where},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5,
        )
    if done.returncode not in (0, 1):
        raise subprocess.SubprocessError(done.stderr)
    return done.returncode == 1
