"""The result of a study: its table, its figure, and the best setting in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from pg_lightning.analysis.curves import Curve
from pg_lightning.analysis.intervals import confidence_interval
from pg_lightning.analysis.plots import COLORS, blank, draw_groups, save, style
from pg_lightning.commands.results import Result, Run, curves_of
from pg_lightning.commands.search import Values
from pg_lightning.run.files import write_csv, write_file

MAX_SETTINGS_SHOWN = len(COLORS)  # number of settings in the figures and in the verdict; of a search, the best ones


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
    if len(shown) > MAX_SETTINGS_SHOWN:
        shown = sorted(shown, key=lambda name: -mean_of(results, name, "final"))[:MAX_SETTINGS_SHOWN]
    curves = {name: curves_of(runs_of(settings[name]), metric, "env_steps") for name in shown}
    draw_study(curves, settings, results, metric, folder / "study.png")
    text = verdict(shown, results, metric)
    write_file(folder / "verdict.txt", text + "\n")
    print(f"\n{text}\n")
    for file in ("results.csv", "study.png", "verdict.txt"):
        print(folder / file)


def mean_of(results: Sequence[Result], name: str, what: Literal["final", "mean"]) -> float:
    """The mean over the seeds of a setting."""
    return float(np.mean([getattr(result, what) for result in results if result.name == name]))


def verdict(names: Sequence[str], results: Sequence[Result], metric: str) -> str:
    """The best setting and its lead, at the end and on average over the learning curves.

    Differences are between runs with the same seed; the interval is Student's t of their mean, for each comparison
    separately.
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
        return f"{other}: fewer than two seeds in common, too few to compare"
    if not any(differences):
        return f"{other} is its equal with every seed"
    mean, (low, high) = np.mean(differences), confidence_interval(np.array(differences))
    amount = f"by {mean:.1f} [{low:.1f}, {high:.1f}]"
    return f"it beats {other} {amount}" if low > 0 else f"no significant difference from {other}: ahead {amount}"


def draw_study(
    curves: dict[str, list[Curve]], settings: dict[str, Values], results: Sequence[Result], metric: str, output: Path
) -> None:
    """The learning curves of the runs on this machine (some settings may have none), and the final
    result of every run, with runs of one seed joined by a line.
    """
    figure = blank(13, 5.4)
    left, beside = figure.subfigures(1, 2, squeeze=False)[0]
    draw_groups(left, curves, metric, "env_steps", "iqm", {})
    right = beside.subplots()
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
