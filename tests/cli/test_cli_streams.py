"""What a terminal and a pipe do to a command: a reader that goes away, a window that is closed, an early Ctrl-C."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from pg_lightning.cli.streams import outlive_readers

FIT = [sys.executable, "-m", "pg_lightning", "fit"]


def test_a_reader_that_has_gone_does_not_turn_a_good_training_into_a_failure(tiny, tmp_path):
    reader, writer = os.pipe()
    process = subprocess.Popen([*FIT, "--config", tiny], cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert process.wait(60) == 0
    assert (tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt").is_file()


def test_a_closed_terminal_ends_the_run_with_a_checkpoint(tiny, tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [*FIT, "--config", str(tiny), "--data.total_steps", "1000000"])
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    while not last.exists():
        os.read(terminal, 10_000)
    before = last.stat().st_mtime_ns
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert last.stat().st_mtime_ns > before


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
sys.argv = ["pg-lightning", "--help"]
from pg_lightning.__main__ import main
print("imports", flush=True)
main()
"""


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_ctrl_c_during_the_imports_is_quiet(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"imports\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_streams_of_others_are_left_alone(capsys):
    before = sys.stdout
    outlive_readers()
    assert sys.stdout is before
