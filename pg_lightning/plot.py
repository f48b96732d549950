"""Learning curves of many runs in one picture: `python -m pg_lightning plot RUN [RUN ...]`."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml  # type: ignore[import-untyped]

from pg_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis = Literal["env_steps", "seconds"]
Estimate = Literal["mean", "iqm"]
SPEED = "time/steps_per_second"
UNITS = {"env_steps": "env steps", "seconds": "seconds of training"}
LEGENDS: dict[Estimate, str] = {"iqm": "IQM (runs), 95 % over runs", "mean": "mean (runs), 95 % over runs"}
NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?")
PIXELS = 1200  # across a picture
COLORS = ("#1f4e9c", "#c8553d", "#2e7d5b", "#8a5aa8", "#b8860b", "#4a4a4a", "#3a9ab5", "#b5477f")


@dataclass
class Curve:
    """One metric of one run: `values` `[M]` at `x` `[M]`, which grows."""

    folder: Path
    config: dict[str, Any]
    x: np.ndarray
    values: np.ndarray


def plot(
    runs: Sequence[Path],
    metric: str = "val/return_mean",
    x: XAxis = "env_steps",
    by: str = "algorithm",
    estimate: Estimate = "iqm",
    output: Path = Path("curves.png"),
) -> list[Path]:
    """Draws the learning curves of runs, those of a group as one line with a band.

    The band is the 95 % bootstrap interval of the estimate over the runs of the group, which should differ in their
    seeds only. A group of one run has none.

    Args:
        runs: run folders, or folders with runs anywhere below.
        metric: a column of `metrics.csv`.
        x: `env_steps`, or `seconds` of playing and learning, evaluations left out.
        by: what makes a group: `algorithm`, `run`, or a key of the config, such as `model.lr`.
        estimate: `iqm`, the mean of the middle half of the runs (Agarwal et al. 2021, §4.3), or `mean`.
        output: where the picture goes; an SVG is put beside a PNG, and the other way round.

    Returns:
        The files.

    Raises:
        UserError: if there is no run, or a run lacks the metric or the key.
    """
    curves = [read_curve(folder, metric, x) for folder in find_runs(runs)]
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(group_of(curve, by), []).append(curve)
    return draw(dict(sorted(groups.items(), key=in_order)), metric, x, estimate, output)


def in_order(group: tuple[str, Any]) -> list[tuple[float, str]]:
    """Sorts names as they are read: `lr 0.003` before `lr 0.01`."""
    return [(float(word) if NUMBER.fullmatch(word) else -1.0, word) for word in group[0].split()]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The folders with a `metrics.csv`, at or below these paths.

    Raises:
        UserError: if there is none at or below one of them.
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
        UserError: if it was never logged, or there is no speed to tell seconds from.
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
            raise UserError(f"x: {str(folder)!r} has no {SPEED!r} to tell seconds from; use env_steps")
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
    """Env steps `[M]`, and the seconds `[M]` that playing and learning had taken by then."""
    steps, speeds = np.array([(0.0, 1.0), *points_of(rows, SPEED)]).T
    return steps, np.cumsum(np.diff(steps, prepend=0.0) / speeds)


def group_of(curve: Curve, by: str) -> str:
    """The group that a run belongs to: the value of a key, with its last name where that does not speak for itself.

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


def summary(curves: list[Curve], estimate: Estimate) -> tuple[np.ndarray, ...]:
    """x `[M]`, the estimate over runs `[M]`, and its 95 % bootstrap interval, `[M]` each.

    Runs are read off between their own points by straight lines, from where the last of them begins to where the first
    of them ends.
    """
    from scipy import stats

    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.stack([np.interp(grid, curve.x, curve.values) for curve in curves])

    def of_runs(sample: np.ndarray, axis: int = 0) -> Any:
        return stats.trim_mean(sample, 0.25, axis) if estimate == "iqm" else sample.mean(axis)

    middle = of_runs(values)
    if len(curves) == 1 or not len(grid):
        return grid, middle, middle, middle
    # Percentiles, as BCa divides by the spread of the runs, which is none where all are at the most.
    drawn = stats.bootstrap((values,), of_runs, axis=0, n_resamples=2000, method="percentile", rng=0)
    return grid, middle, drawn.confidence_interval.low, drawn.confidence_interval.high


def draw(
    groups: dict[str, list[Curve]],
    metric: str,
    x: XAxis,
    estimate: Estimate,
    output: Path,
    levels: dict[str, float] | None = None,
) -> list[Path]:
    """One line and one band a group, and a dashed line for what does not learn, as PNG and as SVG."""
    figure, axes = new_figure(environments(groups), UNITS[x], metric)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#777777", linestyle="--", linewidth=1, label=name)
    draw_curves(axes, groups, estimate)
    ends = [max(curve.x[-1] for curve in curves) for curves in groups.values()]
    if x == "seconds" and max(ends) > 5 * min(ends):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if len(groups) > 5:
        figure.legend(loc="outside right upper", frameon=False, title=LEGENDS[estimate])
    else:
        axes.legend(frameon=False, title=LEGENDS[estimate])
    return save(figure, output)


def draw_curves(axes: Axes, groups: dict[str, list[Curve]], estimate: Estimate) -> None:
    """One line and one band a group, none of one without curves."""
    for i, (name, curves) in enumerate(groups.items()):
        if not curves:
            continue
        color = COLORS[i % len(COLORS)]
        grid, middle, low, high = summary(curves, estimate)
        axes.plot(grid, middle, color=color, linewidth=2, label=f"{name} ({len(curves)})")
        axes.fill_between(grid, low, high, color=color, alpha=0.18, linewidth=0)


def environments(groups: dict[str, list[Curve]]) -> str:
    """The names of the environments that the runs are of."""
    return ", ".join(sorted({c.config.get("data", {}).get("env_id", "") for curves in groups.values() for c in curves}))


def save(figure: Figure, output: Path) -> list[Path]:
    """A picture as PNG and as SVG.

    Raises:
        UserError: if they cannot be written.
    """
    files = [output.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            figure.savefig(file, dpi=PIXELS / figure.get_figwidth())
    except OSError as error:
        raise UserError(f"output: cannot write {str(output)!r}: {error.strerror}; give another path") from error
    return files


def new_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty picture in the style of all pictures here; needs no screen."""
    figure = blank(8, 4.8)
    axes = figure.add_subplot()
    style(axes, title, xlabel, ylabel)
    return figure, axes


def blank(width: float, height: float) -> Figure:
    """A sheet of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """What all pictures here have in common."""
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
