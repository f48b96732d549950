"""Plots of learning curves, and the common style of all plots."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pg_lightning.analysis.curves import Curve, XAxis, environments, points_of, rows_of
from pg_lightning.analysis.intervals import Estimate, summary
from pg_lightning.errors import UserError
from pg_lightning.run.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = {"env_steps": "env steps", "seconds": "seconds of training"}
LEGENDS: dict[Estimate, str] = {"iqm": "IQM (runs), 95 % over runs", "mean": "mean (runs), 95 % over runs"}
PIXELS = 1200  # width of a plot
COLORS = ("#1f4e9c", "#c8553d", "#2e7d5b", "#8a5aa8", "#b8860b", "#4a4a4a", "#3a9ab5", "#b5477f")


def draw(
    groups: dict[str, list[Curve]],
    metric: str,
    x: XAxis,
    estimate: Estimate,
    output: Path,
    levels: dict[str, float] | None = None,
) -> list[Path]:
    """One line and one band per group, and a dashed line for a baseline that does not learn, as PNG and as SVG."""
    figure, axes = new_figure(environments(groups), UNITS[x], metric)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#777777", linestyle="--", linewidth=1, label=literal(name))
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
    """One line and one band per group; groups without curves are skipped."""
    for i, (name, curves) in enumerate(groups.items()):
        if not curves:
            continue
        color = COLORS[i % len(COLORS)]
        grid, middle, low, high = summary(curves, estimate)
        axes.plot(grid, middle, color=color, linewidth=2, label=f"{literal(name)} ({len(curves)})")
        axes.fill_between(grid, low, high, color=color, alpha=0.18, linewidth=0)


def draw_learning_curve(metrics_csv: Path, png: Path, title: str) -> None:
    """Plots `rollout/return_mean` and `val/return_mean` of a `metrics.csv` against env steps.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = rows_of(metrics_csv, ("rollout/return_mean", "val/return_mean"))
    figure, axes = new_figure(title, "env steps", "return")
    curves = {
        "rollout/return_mean": ("training episodes", {"color": "#9db4d3", "linewidth": 1.5}),
        "val/return_mean": ("evaluation", {"color": "#1f4e9c", "linewidth": 2, "marker": "o", "markersize": 4}),
    }
    for key, (label, style) in curves.items():
        if points := points_of(rows, key):
            axes.plot(*zip(*points, strict=True), label=label, **style)  # type: ignore[arg-type]
    axes.legend(frameon=False)
    write_file(png, rendered(figure, ".png", 150))


def literal(text: str) -> str:
    """A text as it stands; between two dollars Matplotlib would read a formula."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


def save(figure: Figure, output: Path) -> list[Path]:
    """Saves a plot as PNG and as SVG; into a folder under the name `curves`.

    Raises:
        UserError: if they cannot be written.
    """
    output = output / "curves.png" if output.is_dir() else output
    files = [output.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            write_file(file, rendered(figure, file.suffix, PIXELS / figure.get_figwidth()))
    except OSError as error:
        raise UserError(f"output: cannot write {str(output)!r}: {error.strerror}; give another path") from error
    return files


def rendered(figure: Figure, suffix: str, dpi: float) -> bytes:
    """A plot as the bytes of a file with this suffix."""
    content = io.BytesIO()
    figure.savefig(content, format=suffix.removeprefix("."), dpi=dpi)
    return content.getvalue()


def new_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty plot in the common style; needs no display."""
    figure = blank(8, 4.8)
    axes = figure.add_subplot()
    style(axes, title, xlabel, ylabel)
    return figure, axes


def blank(width: float, height: float) -> Figure:
    """An empty figure with this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Applies the common style of all plots."""
    axes.set(xlabel=literal(xlabel), ylabel=literal(ylabel), title=literal(title))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
