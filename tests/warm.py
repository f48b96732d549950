"""Python processes that begin with everything imported: forks of a server that has paid for the imports once.

What a test starts here is a process as the shell would start it: it has a session, an environment, a folder and
streams of its own, hears Ctrl-C, and ends as an interpreter ends. Only the four seconds of imports are not in it. What
a test says of those, or of the shell, needs `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from atexit import _run_exitfuncs as run_exit_functions
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pg_lightning.cli", "pytest", "matplotlib.pyplot", "scipy.stats", "tensorboard"])
TESTS = Path(__file__).parent
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
}


def start_server() -> None:
    """Starts what processes are forked from, unless it runs: it is a child of this process to the end."""
    with mock.patch.dict(os.environ, VARIABLES):
        forkserver.ensure_running()


class WarmProcess:
    """The part of `subprocess.Popen` that tests use.

    Args:
        arguments: as after `python`: `-m` and a module, or a script, and what goes to it.
        folder: that it works in.
        environment: more variables.
        log: what it prints, to both streams unless there is another file for the errors.
        errors: that file.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        environment: Mapping[str, str] = {},
        log: Path | None = None,
        errors: Path | None = None,
    ) -> None:
        log = log or folder / "log.txt"
        self.args = [str(x) for x in arguments]
        variables = {**os.environ, **VARIABLES, **environment}
        start_server()
        self._process = FORKS.Process(target=_work, args=(self.args, folder, variables, log, errors or log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[object], folder: Path, environment: Mapping[str, str] = {}, timeout: float = 170
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text; what it leaves when the time is over is killed."""
    streams = [folder.parent / f"{folder.name}.{time.monotonic_ns()}.{name}" for name in ("out", "err")]
    process = WarmProcess(arguments, folder, environment, *streams)
    try:
        code = process.wait(timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, code, *(stream.read_text() for stream in streams))


def _work(arguments: list[str], folder: Path, environment: dict[str, str], log: Path, errors: Path) -> None:
    os.setsid()
    for name, mode in ((log, 1), (errors, 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, mode)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it may have been looked up before
    signal.signal(signal.SIGINT, signal.default_int_handler)
    is_module = arguments[0] == "-m"
    sys.argv = arguments[1:] if is_module else arguments
    first = folder if is_module else Path(arguments[0]).absolute().parent
    sys.path[:0] = [str(first), *environment["PYTHONPATH"].split(os.pathsep)]
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        run_exit_functions()
