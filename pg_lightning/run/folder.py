"""The run folder: `<root>/<config name>/version_K/`, with `checkpoints/`, `config.yaml` and `metrics.csv`."""

from __future__ import annotations

from pathlib import Path

LAST_CHECKPOINT = "last"  # name of the newest checkpoint; as --ckpt_path: continue in the folder of the newest run


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    folder = checkpoint.absolute().parent
    return relative(folder.parent if folder.name == "checkpoints" else folder)


def relative(path: Path) -> Path:
    """A path relative to the current folder, if possible."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def last_checkpoint(runs: Path) -> Path | None:
    """The newest `last.ckpt` of the runs `version_K` in a folder."""
    found = [(path.stat().st_mtime_ns, path) for path in runs.glob(f"version_*/checkpoints/{LAST_CHECKPOINT}.ckpt")]
    return max(found)[1] if found else None


def next_free_version(root: Path) -> int:
    """One more than the highest K of the folders `version_K`."""
    taken = [path.name.removeprefix("version_") for path in root.glob("version_*") if path.is_dir()]
    return max((int(number) for number in taken if number.isdigit()), default=-1) + 1
