"""`metrics.csv` on a disk that is full for a while, or for good."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from interruptions import Interrupted, differences, interrupt_at
from lightning.pytorch import Callback
from run_files import load, without_speed

from pg_lightning.callbacks import EnvStepProgress
from pg_lightning.run import MetricsFile, metrics_file
from pg_lightning.run.metrics_file import MetricsWriter

ROWS = [{"a": 0.1, "b": k / 7} for k in range(4)] + [{"a": k / 3, "new": float(k)} for k in range(4)]
TORN = "what a write that fails midway leaves"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel writes no byte of a file past a size, and says so (EFBIG) as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(logger: MetricsFile, rows: range) -> bytes:
    for k in rows:
        logger.log_metrics(ROWS[k], step=k)
    return (Path(logger.log_dir) / "metrics.csv").read_bytes()


@pytest.mark.parametrize("size", range(20, 160, 4))
def test_rows_that_found_no_room_follow_when_there_is_some(size, tmp_path, capsys):
    """The file is full at any byte: of the header, of a row, and where a new column asks for a copy of the file."""
    whole = MetricsFile(str(tmp_path), "whole")
    states = [write(whole, range(k, k + 1)) for k in range(len(ROWS))]
    logger = MetricsFile(str(tmp_path), "short")
    write(logger, range(1))
    with largest_file(size):
        for k in range(1, 6):
            assert write(logger, range(k, k + 1)) in states, TORN
    assert sorted(os.listdir(logger.log_dir)) == [".lock", "metrics.csv"]
    assert write(logger, range(6, len(ROWS))) == states[-1]
    logger.finalize("success")
    file = f"{logger.log_dir}/metrics.csv"
    warning = (
        f"warning: cannot write '{file}': File too large; training continues, and its rows are buffered in memory\n"
    )
    assert capsys.readouterr().err == (warning if len(states[5]) > size else "")


def test_a_torn_row_that_could_not_be_cut_off_at_once_is_cut_off_later(tmp_path, monkeypatch):
    whole, logger = (MetricsFile(str(tmp_path), name) for name in ("whole", "short"))
    write(logger, range(2))
    with largest_file(55), monkeypatch.context() as patch:
        patch.setattr(os, "truncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        assert not write(logger, range(2, 4)).endswith(b"\n")
    assert write(logger, range(4, len(ROWS))) == write(whole, range(len(ROWS)))


def test_a_disk_that_stays_full_is_named_at_the_end_and_memory_is_bounded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics_file, "MOST", 3)
    logger = MetricsFile(str(tmp_path), "short")
    write(logger, range(1))
    with largest_file(24):
        left = write(logger, range(1, len(ROWS)))
        assert len(logger.experiment.metrics) == 3
        logger.finalize("success")
        logger.finalize("success")
    assert left.count(b"\n") == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: cannot write ")
    assert last == f"warning: '{logger.log_dir}/metrics.csv' lacks 7 rows: File too large"


def test_rows_that_wait_are_in_the_checkpoint(run, train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("append", "replace"):
            patch.setattr(MetricsWriter, name, unless_full(getattr(MetricsWriter, name)))
        with pytest.raises(Interrupted):
            train(tmp_path, *interrupt_at(5, save=True))
    stopped = tmp_path / "runs/tiny/version_0"
    state = load(stopped / "checkpoints/last.ckpt")["callbacks"]["ContinuedMetrics"]
    assert (state["rows"], len(state["unwritten"])) == (1, 2)
    assert differences(run, train(tmp_path, "--ckpt_path", "last")) == []


def unless_full(method: Any) -> Any:
    def call(rows: MetricsWriter, *arguments: Any) -> None:
        if rows.count == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        method(rows, *arguments)

    return call


def test_a_resumed_run_on_a_full_disk_is_refused_in_one_line(run, cli, tiny, tmp_path, monkeypatch):
    stopped = shutil.copytree(run, tmp_path / "runs/tiny/version_0")
    before = (stopped / "metrics.csv").read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(MetricsWriter, "replace", lambda *_: (_ for _ in ()).throw(full))
    finished = cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last", "--data.total_steps", 1000)
    assert finished.stderr.splitlines()[-1] == (
        "error: trainer.default_root_dir: cannot write 'runs/tiny/version_0/metrics.csv': No space left on device; "
        "give a writable folder"
    )
    assert finished.returncode == 2
    assert (stopped / "metrics.csv").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_into_a_file_on_a_full_disk_does_not_end_training(fit):
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails too
    with redirect_stdout(full):
        module = fit("CartPole-v1", trainer={"callbacks": [EnvStepProgress(0.0)], "enable_progress_bar": True})
    with pytest.raises(OSError, match="No space"):
        full.close()
    assert module.env_steps == 256


class FillDisk(Callback):
    """Leaves no byte of a folder's disk from one update on, and gives all back after another."""

    def __init__(self, folder: str, first: int, last: int) -> None:
        self.ballast = Path(folder) / "ballast"
        self.updates = range(first, last)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.policy_version in self.updates:
            with suppress(OSError), self.ballast.open("ab", buffering=0) as file:
                while file.tell() < 2**24:
                    file.write(bytes(4096))
        else:
            self.ballast.unlink(missing_ok=True)


def in_own_mounts(*command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True, timeout=170, **options)


@pytest.mark.skipif(
    shutil.which("unshare") is None or in_own_mounts("mount", "-t", "tmpfs", "tmpfs", "/mnt").returncode != 0,
    reason="may not mount a small disk",
)
def test_training_goes_on_through_a_disk_that_is_full(run, tiny, tmp_path):
    """A real one: a RAM disk of 4 MB that is full from the 2nd update to the 5th, with an evaluation after the 4th."""
    (tmp_path / "runs").mkdir()
    init_args = f"{{folder: {tmp_path}/runs, first: 1, last: 5}}"
    fill = ("--trainer.callbacks", f"[{{class_path: test_metrics_file.FillDisk, init_args: {init_args}}}]")
    mount = 'mount -t tmpfs -o size=4m tmpfs runs && "$@"; status=$?; cp -r runs kept; exit $status'
    fit = (sys.executable, "-m", "pg_lightning", "fit", "--config", str(tiny), *fill)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:3])), "OMP_NUM_THREADS": "1"}
    finished = in_own_mounts("sh", "-c", mount, "sh", *fit, cwd=tmp_path, env={**os.environ, **paths})
    assert finished.returncode == 0, finished.stderr
    warnings = [line for line in finished.stderr.splitlines() if "metrics.csv" in line]
    assert warnings == [
        "warning: cannot write 'runs/tiny/version_0/metrics.csv': No space left on device; training continues, and "
        "its rows are buffered in memory"
    ]
    assert without_speed(tmp_path / "kept/tiny/version_0") == without_speed(run)
