"""Plots of learning curves, and the common style of all plots."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pg_lightning.analysis.curves import Curve, XAxis, environments, points_of, rows_of
from pg_lightning.analysis.intervals import Estimate, summary
from pg_lightning.errors import UserError
from pg_lightning.run.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

UNITS = {"env_steps": "env steps", "seconds": "seconds of training"}
ESTIMATES: dict[Estimate, str] = {"iqm": "IQM", "mean": "mean"}
PIXELS = 1200  # width of a plot
# Okabe and Ito's palette for colour-blind readers, with a dark grey for its yellow, which is too light on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000", "#56b4e9", "#6e6e6e")
BEHIND = "#c4c4c4"  # the other groups in the panel of one
MAX_LINES = 4  # in one panel


def draw(
    groups: dict[str, list[Curve]],
    metric: str,
    x: XAxis,
    estimate: Estimate,
    output: Path,
    levels: dict[str, float] | None = None,
) -> list[Path]:
    """The learning curves of all groups as PNG and as SVG, see `draw_groups`."""
    rows, columns = grid_of(len(groups))
    figure = blank(8, 4.8) if rows == columns == 1 else blank(2.9 * columns, 1 + 2.1 * rows)
    draw_groups(figure, groups, metric, x, estimate, levels or {})
    return save(figure, output)


def grid_of(count: int) -> tuple[int, int]:
    """Rows and columns of panels for a number of groups: one panel for a few, otherwise one each."""
    if count <= MAX_LINES:
        return 1, 1
    columns = min(4, math.ceil(math.sqrt(count)))
    return math.ceil(count / columns), columns


def draw_groups(
    figure: FigureBase,
    groups: dict[str, list[Curve]],
    metric: str,
    x: XAxis,
    estimate: Estimate,
    levels: dict[str, float],
) -> None:
    """One line and one band per group: in one panel, or, for more than `MAX_LINES`, in a panel each.

    In the panel of a group the others are grey lines behind. Groups without curves are skipped.

    Args:
        figure: empty, or a part of a figure.
        groups: curves of runs that only differ in their seeds, by name.
        metric: the label of the y-axis.
        x: the unit of the x-axis.
        estimate: over the runs of a group.
        levels: dashed lines for baselines that do not learn, by name.
    """
    rows, columns = grid_of(len(groups))
    panels: list[Axes] = [*figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()]
    names = _labels(groups)
    for panel in panels:
        style(panel, "", "", "")
        for level in levels.values():
            panel.axhline(level, color="#777777", linestyle="--", linewidth=1)
    for i, (name, curves) in enumerate(groups.items()):
        if not curves:
            continue
        color = COLORS[i % len(COLORS)]
        own = panels[0 if len(panels) == 1 else i]
        grid, middle, low, high = summary(curves, estimate)
        own.plot(grid, middle, color=color, linewidth=1.8, label=names[name], zorder=3)
        own.fill_between(grid, low, high, color=color, alpha=0.16, linewidth=0)
        for other in panels[: len(groups)]:
            if other is not own:
                other.plot(grid, middle, color=BEHIND, linewidth=0.9, zorder=1)
    ends = [max(curve.x[-1] for curve in curves) for curves in groups.values() if curves]
    if x == "seconds" and ends and max(ends) > 5 * min(ends):
        panels[0].set_xscale("log")
        panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    title, ylabel = literal(environments(groups)), literal(metric)
    dashed = "".join(f"; dashed: {literal(name)}" for name in levels)
    if len(panels) > 1:
        figure.suptitle(f"{title}\n{caption(groups, estimate)}; grey: the others{dashed}", fontsize="medium")
        figure.supxlabel(UNITS[x], fontsize="medium")
        figure.supylabel(ylabel, fontsize="medium")
        _finish_panels(panels, columns, [*names.values()], x)
    else:
        panels[0].set(title=title, xlabel=UNITS[x], ylabel=ylabel)
        if not ends:
            return
        ncols = max(1, min(4, 70 // (8 + max(map(len, names.values())))))
        figure.legend(loc="outside lower center", ncols=ncols, frameon=False, title=caption(groups, estimate) + dashed)


def _finish_panels(panels: Sequence[Axes], columns: int, names: Sequence[str], x: XAxis) -> None:
    """Names the panels, removes those without a group, and keeps the numbers of the x-axis few and at the bottom."""
    for i, panel in enumerate(panels):
        if i >= len(names):
            panel.remove()
            continue
        panel.set_title(textwrap.fill(names[i], 26), color=COLORS[i % len(COLORS)], fontsize="medium")
        panel.tick_params(labelbottom=i + columns >= len(names))
        if x == "env_steps":
            panel.locator_params("x", nbins=3)


def caption(groups: dict[str, list[Curve]], estimate: Estimate) -> str:
    """What lines and bands show: `IQM over 5 seeds, 95 % interval`."""
    counts = {len(curves) for curves in groups.values() if curves}
    if counts == {1}:
        return "one seed each"
    seeds = f"{counts.pop()} seeds" if len(counts) == 1 else "seeds (their number)"
    return f"{ESTIMATES[estimate]} over {seeds}, 95 % interval"


def _labels(groups: dict[str, list[Curve]]) -> dict[str, str]:
    """The names of groups in a figure, with the numbers of their runs if these differ."""
    differ = len({len(curves) for curves in groups.values() if curves}) > 1
    return {name: literal(name) + (f" ({len(curves)})" if differ else "") for name, curves in groups.items()}


def draw_learning_curve(metrics_csv: Path, png: Path, title: str) -> None:
    """Plots `rollout/return_mean` and `val/return_mean` of a `metrics.csv` against env steps.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = rows_of(metrics_csv, ("rollout/return_mean", "val/return_mean"))
    figure, axes = new_figure(title, "env steps", "return")
    curves = {
        "rollout/return_mean": ("training episodes", {"color": COLORS[6], "linewidth": 1.5}),
        "val/return_mean": ("evaluation", {"color": COLORS[0], "linewidth": 2, "marker": "o", "markersize": 4}),
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
