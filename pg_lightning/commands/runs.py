"""Many training runs in parallel processes, which resume after an interruption."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import runpy
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.progress import Progress

from pg_lightning.commands.results import RESULT, Result, Run, known, last_line, read_result
from pg_lightning.errors import UserError
from pg_lightning.run.files import write_file, write_json
from pg_lightning.run.lock import FolderLock
from pg_lightning.run.reading import read_text
from pg_lightning.run.secrets import without_secrets

# Forks a process that has imported everything, because the imports take longer than many runs.
FORK_SERVER = multiprocessing.get_context("forkserver")
FOLDER_NAME = re.compile(r"[^\w.=+-]+")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Creates a folder, and locks it for this process inside the block.

    Raises:
        UserError: if another process has locked it, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, "study", "output")
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error.strerror}; give another folder") from error
    try:
        yield
    finally:
        lock.release()


def make_run(
    root: Path, name: str, seed: int, config: Path, settings: dict[str, Any], overrides: dict[str, Any]
) -> Run:
    """`fit` of a config with a seed and with some of its keys changed.

    Args:
        root: folder of all runs.
        name: of the setting.
        seed: of the run.
        config: the file.
        settings: the content of the file.
        overrides: dotted keys and their values.
    """
    folder = root / folder_name(name) / f"seed_{seed}"
    options = [part for key, value in overrides.items() for part in (f"--{key}", _as_argument(value))]
    where = ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    command = ["fit", "--config", str(config), *where, "--seed_everything", str(seed), *options]
    return Run(name, seed, [*command, "--ckpt_path", "last"], {"config": settings, "overrides": overrides}, folder)


def folder_name(name: str) -> str:
    """A name that is valid on all file systems."""
    return FOLDER_NAME.sub("-", name).strip("-")


class Runs:
    """Executes runs, each in its own process with one thread; ends all of them when it is stopped.

    Finished runs are not repeated, and interrupted runs resume. Each run keeps `run.json`, its settings, and
    `log.txt`, its output, in its folder.

    Args:
        metric: of the results.
        workers: runs at a time.
        total: number of runs, for the progress bar.
    """

    def __init__(self, metric: str, workers: int, total: int) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        FORK_SERVER.set_forkserver_preload(["pg_lightning.cli"])
        self.metric = metric
        self.pool = ThreadPoolExecutor(workers)
        self.progress = Progress(transient=True)
        self.total = total
        self.failed: list[str] = []
        self._task = self.progress.add_task("runs", total=total)
        self._processes: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def __enter__(self) -> Runs:
        self.progress.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.terminate()  # the runs save a checkpoint
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.progress.stop()

    def all(self, settings: Sequence[Sequence[Run]]) -> list[Result]:
        """The results of all runs of some settings, without failed runs, which are in `failed`.

        Runs one seed of every setting, then the next seed, so that an invalid setting is found early.

        Raises:
            UserError: with the message of a run whose arguments are invalid, because the other runs would fail too.
        """
        runs = [run for pair in zip(*settings, strict=True) for run in pair]
        results: dict[int, Result] = {}
        jobs: dict[Future[Result | None], int] = {self.pool.submit(self.one, run): i for i, run in enumerate(runs)}
        for job in as_completed(jobs):
            result = job.result()
            if result is not None:
                results[jobs[job]] = result
        return [results[i] for i in sorted(results)]

    def one(self, run: Run) -> Result | None:
        """The result of a run, in this thread; None if it failed.

        Raises:
            UserError: if its arguments are invalid, or its folder contains another run, or cannot be written.
        """
        try:
            return self._one(run)
        except OSError as error:
            raise UserError(f"output: cannot write in {str(run.folder)!r}: {error.strerror or error}") from error

    def _one(self, run: Run) -> Result | None:
        self._claim(run)
        result = known(run)
        if result is None:
            status = self.call(run)
            if status == 2:
                last = last_line(run.folder / "log.txt") or "no output"
                raise UserError(f"{run.name}, seed {run.seed}: {last.removeprefix('error: ')}")
            if status:
                self._tell(f"{run.name}, seed {run.seed}: failed with status {status}, see {run.folder / 'log.txt'}")
                self.failed.append(f"{run.name}, seed {run.seed}")
                return None
            result = read_result(run, self.metric)
            write_json(run.folder / RESULT, asdict(result))
        self._tell(f"{run.name}, seed {run.seed}: {result.final:.1f} at {result.env_steps:,} env steps")
        return result

    def _claim(self, run: Run) -> None:
        """Writes the settings of the run, or compares them with those in the folder."""
        record = run.folder / "run.json"
        text = json.dumps(without_secrets({"seed": run.seed, "metric": self.metric, **run.settings}), indent=1) + "\n"
        if not record.exists():
            run.folder.mkdir(parents=True, exist_ok=True)
            write_file(record, text)
        elif read_text(record, "output") != text:
            raise UserError(
                f"output: {str(run.folder)!r} contains a run with other settings; remove it, or give another folder"
            )

    def call(self, run: Run) -> int:
        """The exit status of the run's process.

        Raises:
            UserError: if all runs must end.
        """
        with self._lock:
            if self._is_stopped:
                raise UserError("stopped")
            process = FORK_SERVER.Process(target=_run_in_subprocess, args=(run.command, run.folder / "log.txt"))
            process.start()
            self._processes.add(process)
        process.join()
        with self._lock:
            self._processes.discard(process)
            if self._is_stopped:
                raise UserError("stopped")
        assert process.exitcode is not None
        return process.exitcode

    def _tell(self, line: str) -> None:
        self.progress.advance(self._task)
        done = int(self.progress.tasks[0].completed)
        self.progress.console.print(f"[{done}/{self.total}] {line}", highlight=False, markup=False, soft_wrap=True)


def raise_if_failed(failed: Sequence[str]) -> None:
    """Ends the command with an error after all other output is written.

    Raises:
        UserError: naming the runs.
    """
    if failed:
        raise UserError(f"{len(failed)} runs failed: {'; '.join(failed)}; run the same command to retry them")


def _run_in_subprocess(command: list[str], log: Path) -> None:
    """Runs `python -m pg_lightning` in its own process, with all output in a file."""
    os.setsid()  # Ctrl-C reaches it through `Runs`, and not from the terminal too
    log.unlink(missing_ok=True)  # it may be a link, or a FIFO
    with log.open("x") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv[1:] = command
    runpy.run_module("pg_lightning", run_name="__main__")


def _as_argument(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
