"""Learning curves of runs, read from their `metrics.csv` and `config.yaml`."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml  # type: ignore[import-untyped]

from pg_lightning.errors import UserError

XAxis = Literal["env_steps", "seconds"]
SPEED = "time/steps_per_second"
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
    rows = rows_of(folder / "metrics.csv")
    points = points_of(rows, metric)
    if not points:
        known = ", ".join(key for key in (rows[0] if rows else {}) if "/" in key)
        raise UserError(f"metric: {str(folder)!r} has no {metric!r}; it has {known or 'nothing'}")
    config_file = folder / "config.yaml"
    config = yaml.safe_load(config_file.read_text()) if config_file.is_file() else {}
    steps, values = np.array(points).T
    if x == "seconds":
        if not points_of(rows, SPEED):
            raise UserError(f"x: {str(folder)!r} has no {SPEED!r} to compute seconds from; use env_steps")
        steps = np.interp(steps, *seconds_of(rows))
    return Curve(folder, config, steps, values)


def rows_of(metrics_csv: Path) -> list[dict[str, str]]:
    """The lines of a `metrics.csv`, by column."""
    with metrics_csv.open(newline="") as file:
        return list(csv.DictReader(file))


def points_of(rows: list[dict[str, str]], metric: str) -> list[tuple[float, float]]:
    """Env steps and value of every row of a `metrics.csv` that has the metric."""
    return [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric)]


def seconds_of(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Env steps `[M]`, and the cumulative seconds `[M]` of collection and learning."""
    steps, speeds = np.array([(0.0, 1.0), *points_of(rows, SPEED)]).T
    return steps, np.cumsum(np.diff(steps, prepend=0.0) / speeds)


def group_of(curve: Curve, by: str) -> str:
    """The group of a run: the value of a config key, prefixed with the key's last name if the value alone is unclear.

    Raises:
        UserError: if the run's config lacks the key.
    """
    if by == "run":
        return f"{curve.folder.parent.name}/{curve.folder.name}"
    model = curve.config.get("model", {})
    if by == "algorithm":
        return str(model.get("class_path", "unknown")).rpartition(".")[2]
    value: Any = curve.config
    for name in by.split("."):
        inside = value.get("init_args", {}) if isinstance(value, dict) and name not in value else value
        if not isinstance(inside, dict) or name not in inside:
            raise UserError(f"by: the config of {str(curve.folder)!r} has no key {by!r}")
        value = inside[name]
    return f"{by.rpartition('.')[2]} {value}"


def environments(groups: dict[str, list[Curve]]) -> str:
    """The names of the environments of the runs."""
    return ", ".join(sorted({c.config.get("data", {}).get("env_id", "") for curves in groups.values() for c in curves}))


def in_order(group: tuple[str, Any]) -> list[tuple[float, str]]:
    """A sort key in reading order: `lr 0.003` before `lr 0.01`."""
    return [(float(word) if NUMBER.fullmatch(word) else -1.0, word) for word in group[0].split()]
