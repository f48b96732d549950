"""`python -m pg_lightning study configs/studies/X.yaml`: what a setting does, over the same seeds."""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pg_lightning.callbacks.evaluation import confidence_interval
from pg_lightning.commands.runs import (
    Result,
    Run,
    Runs,
    claimed,
    curves_of,
    make_run,
    raise_if_failed,
    read_config,
    write_csv,
)
from pg_lightning.errors import UserError, require
from pg_lightning.plot import (
    COLORS,
    LEGENDS,
    UNITS,
    Curve,
    blank,
    draw_curves,
    environments,
    save,
    style,
)

Sampler = Literal["grid", "random", "tpe"]
Values = dict[str, Any]  # of the keys that a study varies
SHOWN = len(COLORS)  # settings in the figures and in the verdict, the best ones if a search has tried more


def study(
    name: str,
    config: Path,
    vary: dict[str, Any],
    overrides: dict[str, Any] | None = None,
    seeds: list[int] = [1, 2, 3, 4, 5],  # noqa: B006 - read by the command line, never written
    sampler: Sampler = "grid",
    trials: int = 20,
    storage: str | None = None,
    metric: str = "val/return_mean",
    workers: int | None = None,
    output: Path = Path("studies"),
) -> None:
    """Trains a config with other values of one key or more, every setting with the same seeds.

    An interrupted study goes on where it stopped.

    Args:
        name: of the study; what it finds goes into a folder of that name.
        config: what is varied.
        vary: keys of the config, such as `model.lr`, and the values that each takes; of several keys all combinations
            are run. For a search a key may have `{low, high, log, step}` instead of a list.
        overrides: keys of the config that differ from it in all runs.
        seeds: of the runs of each setting.
        sampler: `grid` runs all settings; `random` and `tpe` draw them, and `tpe` learns from the results (Optuna;
            Bergstra et al. 2011).
        trials: how many settings `random` and `tpe` try, over all machines that share the storage.
        storage: of Optuna, such as `postgresql://host/db`, for several machines with one study; by default a SQLite
            file in the study's folder.
        metric: what is to be high.
        workers: runs at a time, one thread each; by default as many as there are cores.
        output: where the study's folder is made.

    Raises:
        UserError: if an argument is of no use, or runs have failed.
    """
    if not vary:
        raise UserError("vary: names no key; give one and its values, such as {model.lr: [1.0e-3, 3.0e-3]}")
    if not seeds or len({*seeds}) < len(seeds):
        raise UserError("seeds: give at least one, and none twice")
    require("trials", trials, 1)
    workers = (os.cpu_count() or 1) if workers is None else workers
    require("workers", workers, 1)
    folder, content = output / name, read_config(config)

    def runs_of(values: Values) -> list[Run]:
        settings = {**(overrides or {}), **values}
        return [make_run(folder / "runs", label_of(values), seed, config, content, settings) for seed in seeds]

    settings = grid(vary) if sampler == "grid" else []
    with claimed(folder), Runs(metric, workers, len(seeds) * (len(settings) or trials)) as pool:
        if sampler == "grid":
            results = pool.all([runs_of(values) for values in settings])
        else:
            storage = storage or f"sqlite:///{folder / 'optuna.db'}"
            settings, results = search(vary, sampler, trials, storage, name, pool, workers, runs_of)
        failed = pool.failed
    if results:
        report({label_of(values): values for values in settings}, runs_of, results, metric, folder)
    raise_if_failed(failed)


def grid(vary: dict[str, Any]) -> list[Values]:
    """All combinations of the values of all keys.

    Raises:
        UserError: if a key has no list of values.
    """
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"vary.{key}: give a list of values, or a sampler other than grid; got {values!r}")
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def label_of(values: Values) -> str:
    """`lr 0.001, gamma 0.99`: the last names of the keys, and the values."""
    last = [key.rpartition(".")[2] for key in values]
    names = last if len({*last}) == len(last) else list(values)
    return ", ".join(f"{name} {value}" for name, value in zip(names, values.values(), strict=True))


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
    """Settings that Optuna draws, the best first, and the results of their runs.

    A trial is all seeds of a setting; its value is the mean of their final results. A trial that is interrupted is
    taken up again: at once by the same machine, and if that is dead, after two minutes by any that shares the storage.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f'sampler: {sampler} needs Optuna; pip install "pg_lightning[study]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    found = open_search(storage, name)
    seed = len(found.trials)  # another each time: one that goes on would only draw again what it has drawn before
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
        pool.pool.submit(optimize).result()  # not in this thread, which hears the signals
    ranked = sorted(completed(), key=lambda trial: -(trial.value or 0.0))
    settings = [{key: chosen(trial.params[key], vary[key]) for key in vary} for trial in ranked]
    results = [Result(**row) for trial in ranked for row in trial.user_attrs["results"]]
    return settings, list({(result.name, result.seed): result for result in results}.values())


def open_search(storage: str, name: str) -> Any:
    """Optuna's study of that name, a new one if there is none yet.

    Raises:
        UserError: if the storage cannot be used.
    """
    import optuna

    retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
    for attempt in range(3):
        try:
            kept = optuna.storages.RDBStorage(storage, heartbeat_interval=60, heartbeat_stale_trial_callback=retry)
            return optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
        except Exception as error:
            if attempt == 2:
                raise UserError(f"storage: Optuna cannot use {storage!r}: {str(error).splitlines()[0]}") from error
            time.sleep(1)  # another machine may be making the tables


def suggest(trial: Any, key: str, choices: Any) -> Any:
    """A value of a key, one of a list or a number of a range.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(choices, list):
        return chosen(trial.suggest_categorical(key, list(map(json.dumps, choices))), choices)
    try:
        low, high = choices["low"], choices["high"]
        draw_number = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
        options = {name: value for name, value in choices.items() if name not in ("low", "high")}
        return chosen(draw_number(key, low, high, **options), choices)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"vary.{key}: give a list, or low, high and perhaps log or step; got {choices!r}") from error


def chosen(parameter: Any, choices: Any) -> Any:
    """What Optuna's parameter stands for: it takes no lists, and gives numbers more digits than anybody reads."""
    if isinstance(choices, list):
        return json.loads(parameter)
    return float(f"{parameter:.3g}") if isinstance(parameter, float) else parameter


def report(
    settings: dict[str, Values],
    runs_of: Callable[[Values], list[Run]],
    results: list[Result],
    metric: str,
    folder: Path,
) -> None:
    """Writes `results.csv`, `study.png` and `verdict.txt`, and prints the verdict."""
    rows = [{**settings[result.name], **asdict(result)} for result in results]
    write_csv(folder / "results.csv", rows)
    shown = [name for name in settings if any(result.name == name for result in results)]
    if len(shown) > SHOWN:
        shown = sorted(shown, key=lambda name: -mean_of(results, name, "final"))[:SHOWN]
    curves = {name: curves_of(runs_of(settings[name]), metric, "env_steps") for name in shown}
    draw_study(curves, settings, results, metric, folder / "study.png")
    text = verdict(shown, results, metric)
    (folder / "verdict.txt").write_text(text + "\n")
    print(f"\n{text}\n")
    for file in ("results.csv", "study.png", "verdict.txt"):
        print(folder / file)


def mean_of(results: Sequence[Result], name: str, what: Literal["final", "mean"]) -> float:
    """The mean over the seeds of a setting."""
    return float(np.mean([getattr(result, what) for result in results if result.name == name]))


def verdict(names: Sequence[str], results: Sequence[Result], metric: str) -> str:
    """Which setting is best, and by how much, in the end and over the whole of the learning curves.

    Differences are those of pairs of runs with one seed; the interval is Student's t of their mean, for each comparison
    by itself.
    """
    steps = min(result.env_steps for result in results)
    what: Literal["final", "mean"]
    lines = []
    for what, when in (("final", f"at {steps:,} env steps"), ("mean", "on average over all evaluations")):
        ranked = sorted(
            (name for name in names if any(result.name == name for result in results)),
            key=lambda name: -mean_of(results, name, what),
        )
        lines.append(f"{metric} {when}: {ranked[0]} is best, with {mean_of(results, ranked[0], what):.1f}.")
        values = {(result.name, result.seed): getattr(result, what) for result in results}
        for other in ranked[1:]:
            seeds = [seed for name, seed in values if name == other and (ranked[0], seed) in values]
            lines.append(f"  {_compared(ranked[0], other, [values[ranked[0], s] - values[other, s] for s in seeds])}")
    count = len({result.seed for result in results})
    return "\n".join([*lines, f"Seeds: {count}; 95 % intervals of the mean of paired differences, Student's t."])


def _compared(best: str, other: str, differences: list[float]) -> str:
    if len(differences) < 2:
        return f"{other}: fewer than two seeds in common, so there is no telling"
    if not any(differences):
        return f"{other} is its equal with every seed"
    mean, (low, high) = np.mean(differences), confidence_interval(np.array(differences))
    amount = f"by {mean:.1f} [{low:.1f}, {high:.1f}]"
    return f"it beats {other} {amount}" if low > 0 else f"it is not to be told from {other}: ahead {amount}"


def draw_study(
    curves: dict[str, list[Curve]], settings: dict[str, Values], results: Sequence[Result], metric: str, output: Path
) -> None:
    """The learning curves of the runs that are on this machine, none of some settings perhaps; beside them the final
    result of every run, with runs of one seed joined by a line.
    """
    figure = blank(12, 5.4)
    left, right = figure.subplots(1, 2)
    style(left, environments(curves), UNITS["env_steps"], metric)
    draw_curves(left, curves, "iqm")
    if any(curves.values()):
        ncols = min(4, max(1, 130 // (10 + max(map(len, curves)))))
        figure.legend(loc="outside lower center", ncols=ncols, frameon=False, title=LEGENDS["iqm"])
    style(right, "each seed, and the mean with its 95 % interval", "", f"{metric}, final")
    places = {name: i for i, name in enumerate(curves)}
    for seed in sorted({result.seed for result in results}):
        points = sorted((places[r.name], r.final) for r in results if r.seed == seed and r.name in places)
        right.plot(*zip(*points, strict=True), color="#999999", linewidth=0.8, marker="o", markersize=3, alpha=0.6)
    for (name, place), color in zip(places.items(), COLORS, strict=False):
        finals = np.array([result.final for result in results if result.name == name])
        low, high = confidence_interval(finals)
        around = [[finals.mean() - low], [high - finals.mean()]]
        right.errorbar(place, finals.mean(), around, color=color, marker="D", markersize=7, capsize=5)
    keys = list(next(iter(settings.values())))
    right.set_xlabel(", ".join(keys))
    right.set_xticks(range(len(places)), ["\n".join(map(str, settings[name].values())) for name in places])
    save(figure, output)
