"""Settings sampled by Optuna, at random or based on earlier results."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pg_lightning.commands.results import Result, Run, result_of
from pg_lightning.commands.runs import Runs
from pg_lightning.errors import UserError
from pg_lightning.run.reading import opened

Sampler = Literal["grid", "random", "tpe"]
SQLITE = "sqlite:///"
MAGIC = b"SQLite format 3\0"  # the file begins with it, unless it is empty
Values = dict[str, Any]  # of the keys that a study varies


def search(
    vary: dict[str, Any],
    sampler: Sampler,
    trials: int,
    storage: str,
    name: str,
    pool: Runs,
    workers: int,
    runs_of: Callable[[Values], list[Run]],
) -> tuple[list[Values], list[Result]]:
    """Settings sampled by Optuna, the best first, and the results of their runs.

    A trial is all seeds of a setting; its value is the mean of their final results. An interrupted trial is
    resumed: at once by the same machine, or, if that is dead, after two minutes by any machine that shares the storage.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f'sampler: {sampler} needs Optuna; pip install "pg_lightning[study]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    found = open_search(storage, name)
    seed = len(found.trials)  # a new one each time; a resumed search would otherwise sample the same settings again
    if sampler == "random":
        found.sampler = optuna.samplers.RandomSampler(seed)
    else:
        found.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def objective(trial: optuna.Trial) -> float:
        values = {key: suggest(trial, key, choices) for key, choices in vary.items()}
        try:
            results = [pool.one(run) for run in runs_of(values)]
        except UserError:
            found.enqueue_trial(trial.params)
            raise
        done = [result for result in results if result is not None]
        if len(done) < len(results):
            raise optuna.TrialPruned
        trial.set_user_attr("results", [asdict(result) for result in done])  # for the other machines
        return float(np.mean([result.final for result in done]))

    def completed() -> list[optuna.trial.FrozenTrial]:
        return found.get_trials(states=(optuna.trial.TrialState.COMPLETE,))

    enough = optuna.study.MaxTrialsCallback(trials, states=(optuna.trial.TrialState.COMPLETE,))
    if (left := trials - len(completed())) > 0:
        optimize = partial(found.optimize, objective, n_trials=left, n_jobs=workers, callbacks=[enough])
        pool.pool.submit(optimize).result()  # not in this thread, which handles the signals
    ranked = sorted(completed(), key=lambda trial: -(trial.value or 0.0))
    where = f"storage: trial %d of {name!r}"
    try:
        settings = [{key: chosen(trial.params[key], vary[key]) for key in vary} for trial in ranked]
        rows = [(trial.number, row) for trial in ranked for row in trial.user_attrs["results"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"storage: it holds another study of the name {name!r}; give another name or storage"
        ) from error
    results = [result_of(row, where % number) for number, row in rows]
    return settings, list({(result.name, result.seed): result for result in results}.values())


def open_search(storage: str, name: str) -> Any:
    """Optuna's study of that name; created if it does not exist.

    Raises:
        UserError: if the storage cannot be used.
    """
    import optuna

    if storage.startswith(SQLITE):
        _require_database(Path(storage.removeprefix(SQLITE)))
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
    for attempt in range(3):
        try:
            kept = optuna.storages.RDBStorage(storage, heartbeat_interval=60, heartbeat_stale_trial_callback=retry)
            return optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
        except Exception as error:
            if attempt == 2:
                raise UserError(
                    f"storage: Optuna cannot use {storage!r}: {next(iter(str(error).splitlines()), '')}"
                ) from error
            time.sleep(1)  # another machine may be creating the tables


def _require_database(path: Path) -> None:
    """Refuses a file that is no SQLite database; SQLite would wait for a FIFO forever."""
    if path.exists():
        with opened(path, "storage", sys.maxsize) as file:
            if file.read(len(MAGIC)) not in (MAGIC, b""):
                raise UserError(f"storage: {str(path)!r} is not an SQLite database")


def suggest(trial: Any, key: str, choices: Any) -> Any:
    """A value of a key, one of a list or a number of a range.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(choices, list):
        try:
            return chosen(trial.suggest_categorical(key, list(map(json.dumps, choices))), choices)
        except ValueError as error:
            raise UserError(
                f"vary.{key}: the storage has this study with other values; give it another name"
            ) from error
    try:
        low, high = choices["low"], choices["high"]
        draw_number = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
        options = {name: value for name, value in choices.items() if name not in ("low", "high")}
        return chosen(draw_number(key, low, high, **options), choices)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"vary.{key}: give a list, or low, high and perhaps log or step; got {choices!r}") from error


def chosen(parameter: Any, choices: Any) -> Any:
    """The value of an Optuna parameter: Optuna takes no lists, and its numbers are rounded to readable digits."""
    if isinstance(choices, list):
        return json.loads(parameter)
    return float(f"{parameter:.3g}") if isinstance(parameter, float) else parameter
