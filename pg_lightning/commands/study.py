"""`python -m pg_lightning study configs/studies/X.yaml`: the effect of a setting, over the same seeds."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.commands.results import Run
from pg_lightning.commands.runs import Runs, claimed, make_run, raise_if_failed
from pg_lightning.commands.search import Sampler, Values, search
from pg_lightning.commands.verdict import report
from pg_lightning.errors import UserError, require
from pg_lightning.run.reading import read_config


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of `study` on the command line."""
    parser.add_function_arguments(study)


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
    """Trains a config with different values of one or more keys, every setting with the same seeds.

    An interrupted study continues where it stopped.

    Args:
        name: name of the study; its results go into a folder of that name.
        config: the config to vary.
        vary: keys of the config, such as `model.lr`, and their values; for several keys all combinations
            are run. For a search a key may have `{low, high, log, step}` instead of a list.
        overrides: keys of the config to change in all runs.
        seeds: seeds of the runs of each setting.
        sampler: `grid` runs all settings; `random` and `tpe` sample them, and `tpe` uses the earlier results (Optuna;
            Bergstra et al. 2011).
        trials: number of settings for `random` and `tpe`, over all machines that share the storage.
        storage: Optuna's storage, such as `postgresql://host/db`, for several machines with one study; by default a
            SQLite file in the study's folder.
        metric: the metric to maximise.
        workers: runs at a time, one thread each; by default the number of cores.
        output: where the study's folder is created.

    Raises:
        UserError: if an argument is invalid, or runs have failed.
    """
    if not vary:
        raise UserError("vary: names no key; give one and its values, such as {model.lr: [1.0e-3, 3.0e-3]}")
    if not seeds or len({*seeds}) < len(seeds):
        raise UserError("seeds: give at least one seed, and no seed twice")
    require("trials", trials, 1)
    workers = (os.cpu_count() or 1) if workers is None else workers
    require("workers", workers, 1)
    folder, content = output / name, read_config(config, "config")

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
