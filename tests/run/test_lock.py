"""Two processes never write into one run folder, and a process that has died never keeps another one out."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest
from run_files import complaint, read_metrics
from warm import WarmProcess

from pg_lightning.errors import UserError
from pg_lightning.run import MetricsFile
from pg_lightning.run.lock import FolderLock

FORK = multiprocessing.get_context("fork")


def take(folder):
    return FolderLock(folder, "fit", "trainer.default_root_dir")


def taken(folder):
    """Whether another process is refused."""

    def attempt():
        try:
            take(folder)
        except UserError:
            os._exit(1)
        os._exit(0)

    process = FORK.Process(target=attempt)
    process.start()
    process.join(20)
    return bool(process.exitcode)


def taken_by_another(folder):
    """A process that holds the folder until it is killed."""
    ready = FORK.Event()

    def hold():
        lock = take(folder)
        ready.set()
        time.sleep(60)
        lock.release()

    process = FORK.Process(target=hold, daemon=True)
    process.start()
    assert ready.wait(20)
    return process


def test_another_process_is_refused_in_one_line_that_names_the_first(tmp_path):
    first = take(tmp_path)
    assert taken(tmp_path)
    with pytest.raises(
        UserError, match=rf"^trainer.default_root_dir: another fit is running .* \(process {os.getpid()} on"
    ):
        take(tmp_path)
    assert taken(tmp_path)  # the attempt has not ended the lock
    first.release()
    assert not taken(tmp_path)
    take(tmp_path).release()


def test_a_process_that_was_killed_holds_nothing_even_while_its_children_live(tmp_path):
    ready, child = FORK.Event(), FORK.Value("i", 0)

    def hold():
        take(tmp_path)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        child.value = pid
        ready.set()
        time.sleep(60)

    process = FORK.Process(target=hold)
    process.start()
    assert ready.wait(20)
    assert taken(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    os.kill(child.value, 0)  # an environment's process, say, which has inherited all file handles
    assert not taken(tmp_path)
    os.kill(child.value, signal.SIGKILL)


def test_of_racing_processes_exactly_one_gets_it(tmp_path):
    def race(folder, barrier, wins):
        barrier.wait(20)
        try:
            take(folder)
        except UserError:
            return
        with wins.get_lock():
            wins.value += 1
        time.sleep(0.1)

    for i in range(10):
        folder = tmp_path / str(i)
        folder.mkdir()
        barrier, wins = FORK.Barrier(4), FORK.Value("i", 0)
        racers = [FORK.Process(target=race, args=(folder, barrier, wins)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(20)
        assert wins.value == 1


def test_the_lock_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        take(tmp_path)
    assert victim.read_text() == "content"
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match="not a regular file"):
        take(tmp_path)


def test_a_text_of_a_stranger_is_not_repeated(tmp_path):
    other = taken_by_another(tmp_path)
    (tmp_path / ".lock").write_text("process 1 on \x1b[31mstranger")
    with pytest.raises(UserError, match=r"running in '[^']*'; wait"):
        take(tmp_path)
    other.kill()
    other.join()
    second = take(tmp_path)
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_removed_while_it_was_awaited_is_taken_anew(tmp_path, monkeypatch):
    """Between `open` and the lock, the process before has ended and has removed the file, and another has made one."""
    first, lockf, third = take(tmp_path), fcntl.lockf, []

    def late(descriptor, flags):
        monkeypatch.undo()
        first.release()
        third.append(taken_by_another(tmp_path))
        lockf(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", late)
    monkeypatch.setattr("pg_lightning.run.lock._held", set())
    with pytest.raises(UserError, match="another fit"):
        take(tmp_path)
    third[0].kill()


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    take(tmp_path).release()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has no locks (No locks available): do not start a second fit in it" in said


def test_other_ranks_than_0_take_no_lock(tmp_path, monkeypatch):
    """Rank 0 has it, in another process, or on another host."""
    first = MetricsFile(str(tmp_path), "x")
    assert first.version == 0
    for variables in ({"NODE_RANK": "1"}, {"GROUP_RANK": "1"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            MetricsFile(str(tmp_path), "x", "version_0").claim()
    with pytest.raises(UserError, match="another fit"):
        MetricsFile(str(tmp_path), "x", "version_0").claim()
    first.release()
    assert not (tmp_path / "x").exists()


def test_a_continued_run_keeps_a_second_one_out_and_a_killed_one_does_not(tiny, train, tmp_path):
    run = train(tmp_path)
    again = ["-m", "pg_lightning", "fit", "--config", tiny, "--ckpt_path", "last", "--data.total_steps", 20000]
    for attempt in range(2):
        errors = [tmp_path / f"errors_{attempt}_{i}" for i in range(2)]
        racers = [WarmProcess(again, tmp_path, errors=file) for file in errors]
        while all(racer.poll() is None for racer in racers):
            time.sleep(0.02)
        ended = next(i for i, racer in enumerate(racers) if racer.poll() is not None)
        assert racers[ended].returncode == 2, attempt
        said = errors[ended].read_text()
        assert "error: trainer.default_root_dir: another fit is running in 'runs/tiny/version_0'" in said
        assert said.count("error:") == said.count("\n", said.index("error:")) == 1
        os.kill(racers[1 - ended].pid, signal.SIGKILL)
        assert racers[1 - ended].wait(20) == -signal.SIGKILL
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == sorted(steps)
    finished = WarmProcess([*again[:-1], 1000], tmp_path)
    assert finished.wait(60) == 0


def test_a_study_keeps_a_second_one_out(cli, tmp_path):
    (tmp_path / "s.yaml").write_text("config: ppo_cartpole\nvary: {model.lr: [1.0e-3]}\n")
    (tmp_path / "studies/s").mkdir(parents=True)
    first = take(tmp_path / "studies/s")
    assert complaint(cli(tmp_path, "study", "s.yaml")).startswith("output: another study is running in 'studies/s'")
    first.release()
