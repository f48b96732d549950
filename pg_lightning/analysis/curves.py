"""Learning curves of runs, read from their `metrics.csv` and `config.yaml`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pg_lightning.errors import UserError, one_line
from pg_lightning.run.reading import opened, read_config

XAxis = Literal["env_steps", "seconds"]
SPEED = "time/steps_per_second"
MAX_BYTES = 256 * 1024**2  # of a `metrics.csv`
MAX_STEPS = 1e15
MAX_VALUE = 1e30  # larger values are shown as gaps, like NaN: a figure cannot show them beside others
MAX_NAME = 100  # characters of a name in a figure
NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?")


@dataclass
class Curve:
    """One metric of one run: `values` `[M]` at increasing `x` `[M]`."""

    folder: Path
    config: dict[str, Any]
    x: np.ndarray
    values: np.ndarray


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The folders with a `metrics.csv`, at or below these paths.

    Raises:
        UserError: if one of the paths contains none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(file.parent for file in path.rglob("metrics.csv"))
        if not below:
            raise UserError(f"runs: no metrics.csv in {str(path)!r} or below; give folders of runs")
        found |= dict.fromkeys(below)
    return list(found)


def read_curve(folder: Path, metric: str, x: XAxis) -> Curve:
    """A metric of a run.

    Raises:
        UserError: if it was never logged, or the speed is missing, from which seconds are computed.
    """
    file = folder / "metrics.csv"
    rows = rows_of(file, (metric, SPEED))
    points = points_of(rows, metric)
    if not points:
        known = ", ".join(key for key in columns_of(file) if "/" in key)
        raise UserError(f"metric: {str(folder)!r} has no {metric!r}; it has {known[:1000] or 'nothing'}")
    config_file = folder / "config.yaml"
    config = read_config(config_file, "runs") if config_file.is_file() else {}
    steps, values = np.array(points).T
    if np.any(np.diff(steps) < 0):
        raise UserError(f"runs: the env steps in {str(file)!r} go back")
    values = np.where(np.abs(values) <= MAX_VALUE, values, np.nan)
    if x == "seconds":
        if not points_of(rows, SPEED):
            raise UserError(f"x: {str(folder)!r} has no {SPEED!r} to compute seconds from; use env_steps")
        steps = np.interp(steps, *seconds_of(rows))
    return Curve(folder, config, steps, values)


def columns_of(metrics_csv: Path) -> list[str]:
    """The columns of a `metrics.csv`.

    Raises:
        UserError: if it cannot be read.
    """
    with _reader(metrics_csv) as reader:
        return next(reader, [])


def rows_of(metrics_csv: Path, columns: Collection[str] | None = None) -> list[dict[str, str]]:
    """The lines of a `metrics.csv`, by column: the step and these columns, or all columns.

    Raises:
        UserError: if it is no table with a column `step`, or cannot be read.
    """
    with _reader(metrics_csv) as reader:
        names = next(reader, [])
        kept = [(i, name) for i, name in enumerate(names) if columns is None or name in columns or name == "step"]
        if names and "step" not in names:
            raise UserError(f"runs: {str(metrics_csv)!r} is no metrics.csv: it has no column 'step'")
        return [{name: row[i] for i, name in kept if i < len(row)} for row in reader]


@contextmanager
def _reader(metrics_csv: Path) -> Iterator[Iterator[list[str]]]:
    with opened(metrics_csv, "runs", MAX_BYTES) as file:
        try:
            yield csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"runs: {str(metrics_csv)!r} is no table in UTF-8") from error


def points_of(rows: list[dict[str, str]], metric: str) -> list[tuple[float, float]]:
    """Env steps and value of every row of a `metrics.csv` that has the metric.

    Raises:
        UserError: if one is not a number, or the steps are none.
    """
    try:
        points = [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric)]
    except (KeyError, ValueError) as error:
        raise UserError(f"metric: a row of metrics.csv has no number as 'step' or as {metric!r}") from error
    if not all(0 <= step <= MAX_STEPS for step, _ in points):
        raise UserError(f"metric: a row of metrics.csv has no env steps, but {metric!r}")
    return points


def seconds_of(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Env steps `[M]`, and the cumulative seconds `[M]` of collection and learning.

    Raises:
        UserError: if a speed is not positive.
    """
    steps, speeds = np.array([(0.0, 1.0), *points_of(rows, SPEED)]).T
    if not np.all(speeds > 0):
        raise UserError(f"metric: a row of metrics.csv has a {SPEED!r} that is not positive")
    return steps, np.cumsum(np.diff(steps, prepend=0.0) / speeds)


def group_of(curve: Curve, by: str) -> str:
    """The group of a run: the value of a config key, prefixed with the key's last name if the value alone is unclear.

    Raises:
        UserError: if the run's config lacks the key.
    """
    if by == "run":
        return f"{curve.folder.parent.name}/{curve.folder.name}"
    if by == "algorithm":
        return _name(_part(curve.config, "model").get("class_path", "unknown")).rpartition(".")[2]
    value: Any = curve.config
    for name in by.split("."):
        inside = value.get("init_args", {}) if isinstance(value, dict) and name not in value else value
        if not isinstance(inside, dict) or name not in inside:
            raise UserError(f"by: the config of {str(curve.folder)!r} has no key {by!r}")
        value = inside[name]
    return f"{by.rpartition('.')[2]} {_name(value)}"


def environments(groups: dict[str, list[Curve]]) -> str:
    """The names of the environments of the runs."""
    found = {_name(_part(curve.config, "data").get("env_id", "")) for curves in groups.values() for curve in curves}
    return ", ".join(sorted(found))


def _part(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _name(value: object) -> str:
    """A value of a config as a name in a figure: one short line."""
    return one_line(value)[:MAX_NAME]


def in_order(group: tuple[str, Any]) -> list[tuple[float, str]]:
    """A sort key in reading order: `lr 0.003` before `lr 0.01`."""
    return [(float(word) if NUMBER.fullmatch(word) else -1.0, word) for word in group[0].split()]
