"""Every mistake ends in one line that names the field: no traceback, no success, no wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mistakes import Mistake, all_mistakes

from pg_lightning.data.evaluation import EvaluationDataset

MISTAKES = all_mistakes()
MOST_SECONDS = 10.0


def test_there_are_enough_and_each_is_made_once() -> None:
    assert len(MISTAKES) >= 120
    assert len({mistake.arguments for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake.arguments))
def test_a_mistake_ends_in_one_line(mistake: Mistake, cli: Any, tiny: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    finished = cli(tmp_path, "fit", "--config", tiny, "--trainer.enable_progress_bar=false", *mistake.arguments)
    assert finished.returncode == mistake.status, finished.stderr
    lines = finished.stderr.splitlines()
    assert lines[-1].startswith(f"error: {mistake.line}"), finished.stderr
    assert finished.stderr.count("error: ") == 1
    assert "Traceback" not in finished.stderr
    assert "run:  " not in finished.stdout
    assert time.monotonic() - begin < MOST_SECONDS


def test_a_working_folder_that_is_gone_is_named_before_the_imports(tmp_path: Path) -> None:
    begin = time.monotonic()
    gone = 'mkdir gone && cd gone && rmdir "$PWD" && exec "$0" -m pg_lightning fit --config ppo_cartpole'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    finished = subprocess.run(
        ["sh", "-c", gone, sys.executable], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: the working folder is gone; change to one that exists\n"
    assert time.monotonic() - begin < 2


def test_too_many_open_files_are_named(capsys: Any) -> None:
    from pg_lightning.cli.errors import end_by_error

    with pytest.raises(SystemExit) as end:
        end_by_error(OSError(24, os.strerror(24), "/dev/null"))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: this process may open no more files (ulimit -n); raise the limit")


@pytest.mark.parametrize(("command", "blocked"), [("predict", "predict"), ("test", "."), ("validate", ".")])
@pytest.mark.parametrize("fault", ["read-only", "in the way"])
def test_results_that_cannot_be_written_are_named_before_the_first_episode(
    command: str, blocked: str, fault: str, run: Path, cli: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Permissions do not bind root, so the answer of the system is replaced."""

    def too_late(dataset: object) -> Iterator[object]:
        pytest.fail("too late")
        yield

    monkeypatch.setattr(EvaluationDataset, "__iter__", too_late)
    copy = shutil.copytree(run, tmp_path / "got")
    folder = (copy / blocked).resolve()
    if fault == "read-only":
        asked = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve() != folder and asked(path, mode))
    elif command == "predict":
        folder.write_text("")
    else:
        pytest.skip("the folder of the run is that of the checkpoint")
    finished = cli(tmp_path, command, "--ckpt_path", copy / "checkpoints/last.ckpt")
    assert finished.returncode == 2, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert line.startswith(f"error: ckpt_path: cannot write {str(folder.relative_to(tmp_path.resolve()))!r}: ")
    assert line.endswith("; results are written beside the checkpoint, so copy the run into a writable folder")
