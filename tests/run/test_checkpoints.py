"""Checkpoints outlive what goes wrong while they are written, and training outlives a disk that is full."""

import builtins
import errno
import io
import os
import pathlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm
from run_files import load, read_metrics

from pg_lightning.errors import UserError
from pg_lightning.run import CheckedCheckpointIO, CheckpointError, SafeCheckpointIO, checkpoints, read_checkpoint
from pg_lightning.run.checkpoints import previous_of, write_checkpoint
from pg_lightning.run.files import write_file

OLDEST, OLD, NEW = ({"weights": torch.full((1000,), float(i))} for i in range(3))


def value(path):
    """Which of the three a file is, 1 for OLD; fails if it is torn."""
    return int(read_checkpoint(path)["weights"][0])


@pytest.fixture
def last(tmp_path):
    """A checkpoint that has been saved twice."""
    path = tmp_path / "run/checkpoints/last.ckpt"
    for checkpoint in (OLDEST, OLD):
        SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def test_the_one_before_is_kept(last):
    assert (value(last), value(previous_of(last))) == (1, 0)
    SafeCheckpointIO().save_checkpoint(NEW, last)
    assert (value(last), value(previous_of(last))) == (2, 1)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_also_where_there_are_no_hard_links(last, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "not permitted")))
    SafeCheckpointIO().save_checkpoint(NEW, last)
    assert (value(last), value(previous_of(last))) == (2, 1)
    assert len(list(last.parent.iterdir())) == 2


class Power(BaseException):
    """It is gone."""


class Disk:
    """Counts the calls that touch the disk; the n-th fails, or is the last before the power goes."""

    CALLS = ((io, "open"), (os, "fsync"), (os, "link"), (os, "replace"), (os, "open"), (os, "mkdir"), (os, "unlink"))

    def __init__(self, monkeypatch, fails_at, error):
        self.count, self.fails_at, self.error = 0, fails_at, error
        for owner, name in self.CALLS:
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, call):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.fails_at or (isinstance(self.error, Power) and self.count > self.fails_at):
                raise self.error
            result = call(*args, **kwargs)
            return Writes(result, self) if call is builtins.open and args[1] in ("wb", "xb") else result

        return wrapped


class Writes:
    """A file of which each write is a call too; the one that fails has written half."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.disk.wrap(self.file.write)(data[len(data) // 2 :])


ERRORS = [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied"), Power()]
ERRORS += [OSError(errno.EIO, "Input/output error")]
MOST = 30


def fails_at(monkeypatch, n, error, path):
    """Saves NEW with a disk that fails at its n-th call; how many there were, and what was raised."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, n, error)
        try:
            SafeCheckpointIO().save_checkpoint(NEW, path)
        except (CheckpointError, Power) as raised:
            return disk.count, raised
    return disk.count, None


@pytest.mark.parametrize("error", ERRORS, ids=["full", "forbidden", "power", "broken"])
def test_whatever_fails_a_whole_checkpoint_is_there_and_the_next_save_succeeds(last, tmp_path, monkeypatch, error):
    calls, _ = fails_at(monkeypatch, MOST, error, shutil.copytree(last.parent, tmp_path / "count") / "last.ckpt")
    assert 8 <= calls < MOST
    raised = 0
    for n in range(1, calls + 1):
        path = shutil.copytree(last.parent, tmp_path / f"{n}") / "last.ckpt"
        _, complaint = fails_at(monkeypatch, n, error, path)
        raised += complaint is not None
        assert value(path) in ((1, 2) if complaint else (2,)), n
        assert value(previous_of(path)) in (0, 1), n
        if isinstance(complaint, CheckpointError):
            assert str(path) in str(complaint)
            assert "\n" not in str(complaint)
            assert not [left for left in path.parent.iterdir() if left.suffix != ".ckpt"], n
        assert len(list(path.parent.glob("*.ckpt*"))) == 2, "what is left matches no checkpoint's name"
        SafeCheckpointIO().save_checkpoint(OLDEST, path)
        assert value(path) == 0
        assert sorted(left.name for left in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"], n
    assert raised >= (2 if getattr(error, "errno", 0) == errno.ENOSPC else 6)  # the previous one has yielded


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EROFS, "writable"),
        (errno.EACCES, "writable"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_failed_save_names_the_file_the_cause_and_the_cure(last, monkeypatch, code, cure):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(CheckpointError, match=cure) as raised:
        SafeCheckpointIO().save_checkpoint(NEW, last)
    assert str(raised.value).startswith(f"cannot save {str(last)!r}: {os.strerror(code)}; ")
    assert str(raised.value).endswith("; the previous file is unchanged")


def test_bytes_that_did_not_arrive_are_noticed(last, monkeypatch):
    read = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: read(path)[:-1])
    with pytest.raises(CheckpointError, match="differs from the data"):
        SafeCheckpointIO().save_checkpoint(NEW, last)
    assert value(last) == 1


def test_the_bytes_are_on_the_disk_before_they_have_the_name_and_the_name_before_the_save_returns(last, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(str(new)), replace(old, new)))
    SafeCheckpointIO().save_checkpoint(NEW, last)
    folder = last.parent
    assert Path(done[0]).name.startswith(f".last_ckpt.{os.getpid()}-")
    assert done[1:] == [str(previous_of(last)), str(last), str(folder)]


@pytest.mark.parametrize("free", [10**9, 0])
def test_the_previous_checkpoint_yields_where_there_is_room_for_two_files_only(last, monkeypatch, free):
    previous, sync = previous_of(last), os.fsync

    def full(handle):
        if previous.exists() and os.readlink(f"/proc/self/fd/{handle}").endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        if free:
            SafeCheckpointIO().save_checkpoint(NEW, last)
        else:  # its removal would not help
            previous.write_bytes(b"x")
            with pytest.raises(CheckpointError, match="free space there"):
                SafeCheckpointIO().save_checkpoint(NEW, last)
    assert value(last) == (2 if free else 1)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_nothing_is_removed_after_a_save_that_failed(last, monkeypatch, capsys):
    """A `ModelCheckpoint` that keeps the best one removes the old after it has saved the new."""
    plugin = SafeCheckpointIO(warn=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        plugin.save_checkpoint(NEW, last.with_name("step=2.ckpt"))
    plugin.remove_checkpoint(last)
    assert value(last) == 1
    assert capsys.readouterr().err.count("\n") == 1
    plugin.save_checkpoint(NEW, last.with_name("step=2.ckpt"))
    plugin.remove_checkpoint(last)
    assert not last.exists()


@pytest.mark.parametrize(
    "plugin", [SafeCheckpointIO(), CheckedCheckpointIO()], ids=lambda plugin: type(plugin).__name__
)
def test_a_folder_is_never_removed(plugin, tmp_path):
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt/thesis.txt").touch()
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "x.ckpt")
    for path in ("x.ckpt", "link.ckpt"):
        plugin.remove_checkpoint(tmp_path / path)
    assert (tmp_path / "x.ckpt/thesis.txt").is_file()


def test_a_torn_checkpoint_is_refused_at_any_length_and_the_one_before_named(last):
    whole = last.read_bytes()
    for percent in range(100):
        last.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(UserError) as raised:
            SafeCheckpointIO().load_checkpoint(last)
        assert str(raised.value).startswith(f"ckpt_path: cannot read {str(last)!r}: ")
        assert str(raised.value).endswith(f"; the previous checkpoint is complete: --ckpt_path {previous_of(last)}")


def test_a_flipped_bit_is_noticed(last):
    """torch itself compares no checksums."""
    damaged = bytearray(last.read_bytes())
    damaged[damaged.index(torch.ones(8).numpy().tobytes()) + 100] ^= 1
    last.write_bytes(damaged)
    torch.load(last, weights_only=True)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(last)


def test_a_torn_one_before_is_not_recommended(last):
    for path in (last, previous_of(last)):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as raised:
        read_checkpoint(last)
    assert "whole" not in str(raised.value)


def test_no_code_is_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"pg_lightning": Path("/")}, path)
    with pytest.raises(UserError, match="cannot read"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)


# In a run.

ROLLOUT = 64


@pytest.fixture
def full_from(monkeypatch):
    """A disk without room for checkpoints between the n-th and the m-th save."""

    def make(first, end):
        saves = iter(range(1, 1000))

        def full(path, data):
            if first <= next(saves) < end:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_checkpoint(path, data)

        monkeypatch.setattr(checkpoints, "write_checkpoint", full)

    return make


def test_training_goes_on_and_the_next_save_makes_up_for_it(cli, tiny, tmp_path, full_from):
    """Evaluations at 256, 448, 640 and 704 env steps; on a plateau only the first is the best."""
    full_from(2, 4)
    flat = ("--data.env_id", "odd_envs:Flat-v0", "--data.eval_episodes", 1)
    finished = cli(tmp_path, "fit", "--config", tiny, *flat)
    assert finished.returncode == 0
    assert finished.stderr.count("warning: cannot save 'runs/tiny/version_0/checkpoints/last.ckpt'") == 2
    assert finished.stderr.count("\n") == 2
    folder = tmp_path / "runs/tiny/version_0/checkpoints"
    assert load(folder / "last.ckpt")["pg_lightning"]["env_steps"] == 704
    assert load(folder / "last.previous.ckpt")["pg_lightning"]["env_steps"] == 640
    assert load(folder / "best.ckpt")["pg_lightning"]["env_steps"] == 256


def test_a_save_that_fails_at_the_last_evaluation_is_tried_once_more(cli, tiny, tmp_path, full_from):
    full_from(5, 6)
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.env_id", "odd_envs:Flat-v0", "--data.eval_episodes", 1)
    assert (finished.returncode, finished.stderr.count("warning: ")) == (0, 1)
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    assert load(last)["pg_lightning"]["env_steps"] == 704
    assert load(previous_of(last))["pg_lightning"]["env_steps"] == 640


def test_a_best_that_could_not_be_saved_is_not_the_best(cli, tiny, tmp_path, full_from):
    """All evaluations are alike: the second is better than none."""
    full_from(1, 2)
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.env_id", "odd_envs:Flat-v0", "--data.eval_episodes", 1)
    assert finished.returncode == 0
    best = tmp_path / "runs/tiny/version_0/checkpoints/best.ckpt"
    assert load(best)["pg_lightning"]["env_steps"] == 448


@pytest.mark.parametrize("first", [1, 4])
def test_if_the_last_save_fails_so_does_the_program(cli, tiny, tmp_path, full_from, first):
    full_from(first, 1000)
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.env_id", "odd_envs:Flat-v0", "--data.eval_episodes", 1)
    assert finished.returncode == 2
    name = "best" if first == 1 else "last"
    assert f"error: training has ended, but {name}.ckpt could not be saved\n" in finished.stderr
    assert "Traceback" not in finished.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert [row["step"] for row in read_metrics(run) if "val/return_mean" in row] == [256, 448, 640, 704]
    if first == 4:  # the first save was the best, the next two the last
        assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 448


def test_checkpoints_of_the_users_own_are_kept_as_long_as_none_takes_their_place(cli, tiny, tmp_path, full_from):
    full_from(3, 1000)
    own = [
        "--trainer.callbacks=ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=8",
        "--trainer.callbacks.filename={step}",
    ]
    cli(tmp_path, "fit", "--config", tiny, *own, "--data.eval_every_steps", 10_000, "--data.eval_episodes", 1)
    names = {path.name for path in (tmp_path / "runs/tiny/version_0/checkpoints").iterdir()}
    assert names == {"step=16.ckpt"}


@pytest.mark.parametrize(
    ("every", "eval_every", "saved"),
    [
        (100, 10_000, [128, 256, 320, 448, 512, 640, 704]),
        (64, 10_000, list(range(64, 705, 64))),
        (1, 10_000, list(range(64, 705, 64))),
        (300, 200, [256, 320, 448, 640, 704]),
        (10_000, 10_000, [704]),
    ],
)
def test_saves_come_at_the_first_boundary_past_every_multiple(
    cli, tiny, tmp_path, monkeypatch, every, eval_every, saved
):
    written = []

    def note(path, data, previous):
        if path.name == "last.ckpt":
            written.append(torch.load(io.BytesIO(data), weights_only=True)["pg_lightning"]["env_steps"])
        write_file(path, data, previous)

    monkeypatch.setattr(checkpoints, "write_file", note)
    intervals = ("--data.save_every_steps", every, "--data.eval_every_steps", eval_every)
    assert cli(tmp_path, "fit", "--config", tiny, *intervals, "--data.eval_episodes", 1).returncode == 0
    assert written == saved


def test_without_evaluations_the_end_is_saved(train, tmp_path):
    run = train(tmp_path, "--trainer.limit_val_batches", 0, "--data.save_every_steps", 500)
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 704
    assert load(run / "checkpoints/last.previous.ckpt")["pg_lightning"]["env_steps"] == 512


def test_the_save_interval_must_be_positive(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.save_every_steps", 0)
    assert finished.stderr == "error: data.save_every_steps: must be at least 1, got 0\n"


def test_a_run_goes_on_from_the_checkpoint_of_an_interval(cli, train, tmp_path):
    first = train(tmp_path, "--data.save_every_steps", 500, "--data.eval_every_steps", 10_000)
    (first / "checkpoints/last.ckpt").write_bytes(b"torn")
    refused = cli(tmp_path, "fit", "--ckpt_path", first / "checkpoints/last.ckpt")
    assert refused.returncode == 2
    previous = refused.stderr.split("--ckpt_path ")[1].strip()
    assert load(previous)["pg_lightning"]["env_steps"] == 512
    second = train(tmp_path, "--ckpt_path", previous)
    assert load(second / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 704


def test_a_limit_on_the_size_of_files_is_a_disk_that_is_full(tiny, tmp_path):
    """For real: a write of the system fails in its midst."""
    limit = 8_000  # bytes; a checkpoint has 12,000, config.yaml and metrics.csv less
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    (tmp_path / "script.py").write_text(f"{script}from pg_lightning.cli import main\nmain()\n")
    finished = warm.run(["script.py", "fit", "--config", tiny, "--data.total_steps", 64], tmp_path)
    assert finished.returncode == 2
    assert "warning: cannot save 'runs/tiny/version_0/checkpoints/last.ckpt': File too large; it" in finished.stderr
    assert "error: training has ended, but best.ckpt could not be saved" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert list((tmp_path / "runs/tiny/version_0/checkpoints").iterdir()) == []
