"""The output of `diagnose`: a table, its numbers as CSV and JSON, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pg_lightning.analysis.gradient_noise import Estimate
from pg_lightning.analysis.plots import COLORS, new_figure, save
from pg_lightning.errors import UserError
from pg_lightning.run.files import write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = (11, 10, 9, 8, 11, 11, 14, 11)  # of the columns of the table


def write_report(estimates: Sequence[Estimate], report: dict[str, object], folder: Path) -> None:
    """Writes `diagnose.csv`, `.json`, `.png` and `.svg`, prints the table and the names of the files.

    Args:
        estimates: one per estimator.
        report: the settings of the diagnosis, in plain types.
        folder: is created if it is missing.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "diagnose.json", report)
        write_csv(folder / "diagnose.csv", [flat(estimate) for estimate in estimates])
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error.strerror}; give another folder") from error
    files = draw(estimates, report, folder / "diagnose.png")
    print(table(estimates, report), *(folder / "diagnose.csv", folder / "diagnose.json", *files), sep="\n")


def flat(estimate: Estimate) -> dict[str, Any]:
    """The fields as one row of a table; an interval becomes two fields."""
    row: dict[str, Any] = {}
    for key, value in asdict(estimate).items():
        if isinstance(value, list):
            name = key.removesuffix("_interval")
            row |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        else:
            row[key] = value
    return row


def table(estimates: Sequence[Estimate], report: dict[str, Any]) -> str:
    """The estimators, one per line, and an explanation of the numbers."""
    names = ("noise", "SNR", "cosine", "bias", "by chance", "direction", "misdirection", "by chance")
    lines = [f"{'':<17}" + "".join(f"{x:>{width}}" for x, width in zip(names, WIDTHS, strict=True))]
    for x in estimates:
        gradient = (f"{x.noise:,.1f}", f"{x.snr:.3g}", f"{x.cosine:.3f}")
        bias = (x.bias, x.bias_by_chance, x.direction, x.misdirection, x.misdirection_by_chance)
        cells = (*gradient, *(f"{value:.2f}" for value in bias))
        lines.append(f"{x.estimator:<17}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True)))
    lines += [
        "noise: number of episodes at which noise equals signal; SNR, cosine: of batches of "
        f"{report['episodes']} episodes, {report['batches']} batches in all",
        f"bias, direction, misdirection: relative to {report['reference']}; up to `by chance`, not significant",
        f"critic: {report['critic']}; its explained variance on these episodes is {report['explained_variance']:.2f}",
    ]
    if not report["signal_is_seen"]:
        lines.append("The gradient is indistinguishable from noise; bias estimates are unreliable: use more --batches.")
    return "\n".join(lines)


def draw(estimates: Sequence[Estimate], report: dict[str, Any], output: Path) -> list[Path]:
    """Noise and bias, one row per estimator; a hollow circle is a bias that is not significant."""
    figure, noise = new_figure("noise", "episodes at which noise equals signal", "")
    columns = figure.add_gridspec(1, 2)
    noise.set_subplotspec(columns[0])
    bias = figure.add_subplot(columns[1], sharey=noise)
    bias.set(xlabel="share of the gradient", title="bias")
    bias.spines[["top", "right"]].set_visible(False)
    bias.grid(alpha=0.25)
    bias.tick_params(labelleft=False)
    for row, x in enumerate(estimates):
        interval(noise, x.noise, x.noise_interval, row, COLORS[0], COLORS[0])
        shade = COLORS[1] if x.is_misdirected else "white"
        interval(bias, x.misdirection, x.misdirection_interval, row - 0.13, COLORS[1], shade)
        shade = COLORS[5] if x.is_biased else "white"
        interval(bias, x.bias, x.bias_interval, row + 0.13, COLORS[5], shade)
    noise.set_xscale("log")
    noise.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    noise.set_yticks(range(len(estimates)), [x.estimator for x in estimates])
    noise.invert_yaxis()
    widest = 1.15 * max(1.0, *(value for x in estimates for value in (x.bias, x.misdirection)))
    bias.set_xlim(-0.04 * widest, widest)
    for color, label in ((COLORS[1], "of its direction"), (COLORS[5], "in all")):
        bias.plot([], [], "o", color=color, label=label)
    bias.legend(frameon=False, loc="upper right")
    figure.suptitle(f"{report['env_id']} after {report['env_steps']:,} env steps, γ = {report['gamma']:g}")
    return save(figure, output)


def interval(axes: Axes, value: float, ends: Sequence[float], row: float, color: str, shade: str) -> None:
    """A circle and its interval, which need not contain it."""
    axes.plot(ends, [row, row], color=color, linewidth=1.2)
    axes.plot(value, row, "o", color=color, markerfacecolor=shade, markersize=6.5)
