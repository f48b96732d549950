"""`python -m pg_lightning compare configs/studies/compare_X.yaml`: algorithms at one budget with equal evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.analysis.curves import XAxis
from pg_lightning.analysis.intervals import confidence_interval
from pg_lightning.analysis.plots import draw
from pg_lightning.commands.references import CHANCE, REFERENCES, reference_of
from pg_lightning.commands.results import Result, Run, curves_of
from pg_lightning.commands.runs import Runs, claimed, folder_name, make_run, raise_if_failed
from pg_lightning.commands.verdict import mean_of, verdict
from pg_lightning.errors import UserError, require
from pg_lightning.run.files import write_csv, write_file
from pg_lightning.run.reading import read_config

METRIC = "val/return_mean"
RANDOM = REFERENCES[CHANCE].label


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of `compare` on the command line."""
    parser.add_function_arguments(compare)


def compare(
    name: str,
    methods: list[Path],
    references: dict[str, dict[str, Any]] | None = None,
    overrides: dict[str, Any] | None = None,
    seeds: list[int] = [1, 2, 3, 4, 5],  # noqa: B006 - read by the command line, never written
    workers: int = 1,
    output: Path = Path("studies"),
) -> None:
    """Trains algorithms and other methods for the same number of env steps with equal evaluations.

    An interrupted comparison continues where it stopped.

    Args:
        name: name of the comparison; its results go into a folder of that name.
        methods: configs, all of one environment.
        references: methods beside the algorithms, and their arguments: `dqn` and `sac` of Stable-Baselines3, and
            searches in the weights of the policy, `hill_climbing`, `simulated_annealing` and `cma_es`. A policy with
            random actions is always among them.
        overrides: keys of the configs to change in all runs: the budget, and the evaluations.
        seeds: seeds of the runs of each method.
        workers: runs at a time; more than one distorts the figure over wall time.
        output: where the comparison's folder is created.

    Raises:
        UserError: if an argument is invalid, or runs have failed.
    """
    require("workers", workers, 1)
    if not methods or not seeds:
        raise UserError(f"{'seeds' if methods else 'methods'}: give at least one")
    folder, configs = output / name, {path.stem: read_config(path, "methods") for path in methods}
    data = _data(configs, overrides or {})
    paths = {path.stem: path for path in methods}
    beside = {
        reference_of(key).label: (key, arguments) for key, arguments in {**(references or {}), CHANCE: {}}.items()
    }

    def runs_of(label: str) -> list[Run]:
        if label in paths:
            make, config, settings = make_run, configs[label], overrides or {}
            return [make(folder / "runs", label, seed, paths[label], config, settings) for seed in seeds]
        return [_reference_run(folder / "runs", label, seed, data, *beside[label]) for seed in seeds]

    labels = [*paths, *beside]
    with claimed(folder), Runs(METRIC, workers, len(labels) * len(seeds)) as pool:
        runs = {label: runs_of(label) for label in labels}
        results, failed = pool.all([*runs.values()]), pool.failed
    if results:
        report(runs, results, folder)
    raise_if_failed(failed)


def report(runs: dict[str, list[Run]], results: list[Result], folder: Path) -> None:
    """Writes `results.csv`, `table.md`, `curves_env_steps.png`, `curves_seconds.png`, and prints table and verdict."""
    write_csv(folder / "results.csv", [asdict(result) for result in results])
    labels = [label for label in runs if any(result.name == label for result in results)]
    chance = {RANDOM: mean_of(results, RANDOM, "final")} if RANDOM in labels else {}
    axes: tuple[XAxis, ...] = ("env_steps", "seconds")
    for x in axes:
        curves = {label: curves_of(runs[label], METRIC, x) for label in labels if label != RANDOM}
        draw(curves, METRIC, x, "iqm", folder / f"curves_{x}.png", chance)
    text = f"{table(labels, results)}\n\n{verdict(labels, results, METRIC)}\n"
    write_file(folder / "table.md", text)
    print(f"\n{text}")
    for file in ("results.csv", "table.md", "curves_env_steps.png", "curves_seconds.png"):
        print(folder / file)


def table(labels: Sequence[str], results: Sequence[Result]) -> str:
    """Markdown, one row per method, the best first: means over seeds with Student's t intervals of 95 %."""
    steps = min(result.env_steps for result in results)
    lines = [
        f"| method | return at {steps:,} env steps [95 %] | mean over all evaluations [95 %] | seconds of training |",
        "|---|---|---|--:|",
    ]
    rows = []
    for label in labels:
        group = [result for result in results if result.name == label]
        finals, means = (np.array([getattr(result, what) for result in group]) for what in ("final", "mean"))
        seconds = "–" if label == RANDOM else f"{np.median([result.seconds for result in group]):.0f}"
        rows.append((finals.mean(), f"| {label} | {_interval(finals)} | {_interval(means)} | {seconds} |"))
    return "\n".join([*lines, *(line for _, line in sorted(rows, reverse=True))])


def _interval(values: np.ndarray) -> str:
    low, high = confidence_interval(values)
    return f"{values.mean():.1f}" if low == high else f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


def _data(configs: dict[str, dict[str, Any]], overrides: dict[str, Any]) -> dict[str, Any]:
    """The common environment, budget and evaluation settings of all methods.

    Raises:
        UserError: if they differ.
    """
    same = (
        "env_id",
        "env_kwargs",
        "wrappers",
        "total_steps",
        "eval_every_steps",
        "eval_episodes",
        "eval_deterministic",
    )
    given = {key.removeprefix("data."): value for key, value in overrides.items() if key.startswith("data.")}
    for name, config in configs.items():
        if not isinstance(config.get("data", {}), dict):
            raise UserError(f"methods: data in {name} is not a mapping of keys")
    data = {name: {**config.get("data", {}), **given} for name, config in configs.items()}
    first, *others = data
    for key in same:
        for other in others:
            if data[first].get(key) != data[other].get(key):
                raise UserError(
                    f"overrides: data.{key} is {data[first].get(key)!r} in {first} and {data[other].get(key)!r} in "
                    f"{other}; give one for all"
                )
    return {key: data[first][key] for key in same if key in data[first]}


def _reference_run(root: Path, label: str, seed: int, data: dict[str, Any], key: str, arguments: dict[str, Any]) -> Run:
    folder = root / folder_name(label) / f"seed_{seed}"
    given = ["--data", json.dumps(data), "--arguments", json.dumps(arguments), "--folder", str(folder)]
    command = ["reference", "--method", key, "--seed", str(seed), *given]
    return Run(label, seed, command, {"data": data, "arguments": arguments}, folder)
