"""The time of an env step of `fit` against the number of environments, the length of rollouts and the layer width.

    python benchmarks/sizes.py --png sizes.png --json sizes.json             # takes about eight minutes

PPO on CartPole with the hyperparameters of `ppo_cartpole` in `workloads.py`, with one size changed at a time. Each
size is timed for one second of work, in turns; points are medians, bars reach from the minimum to the maximum.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import listed, machine, positive, versions
from throughput import run_fit
from workloads import WORKLOADS, Stopwatch, Workload

from pg_lightning.data import RolloutDataModule

BASE = WORKLOADS["ppo_cartpole"]
NUM_ENVS, NUM_STEPS, WIDTHS = (1, 4, 16, 64, 256, 1024), (16, 32, 64, 128, 256, 512, 1024), (16, 32, 64, 128, 256, 512)
MIN_STEPS, WARM_UP_ROLLOUTS = 8192, 2
LABELS = {"num_envs": "environments N, rollouts of 128 steps", "num_steps": "steps T, 8 environments", "width": "units"}


def sizes() -> dict[tuple[str, str, int], tuple[Workload, dict[str, Any], dict[str, Any]]]:
    """Panel, curve and size, mapped to the workload and the changed arguments of data and model."""
    made = {}
    for backend in ("sync", "vector"):
        for n in NUM_ENVS:
            made["num_envs", backend, n] = replace(BASE, num_envs=n), {"backend": backend}, {}
        for t in NUM_STEPS:
            made["num_steps", backend, t] = replace(BASE, num_steps=t), {"backend": backend}, {}
    for width in WIDTHS:
        made["width", "sync", width] = BASE, {}, {"hidden_sizes": [width, width]}
    return made


def microseconds(workload: Workload, data: dict[str, Any], model: dict[str, Any], seed: int) -> float:
    """Microseconds per env step of `fit`, over at least two rollouts."""
    warm_up = WARM_UP_ROLLOUTS * workload.rows
    stopwatch = Stopwatch(warm_up, warm_up + max(MIN_STEPS, 2 * workload.rows))
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run_fit(workload, stopwatch, seed, Path(folder), partial(RolloutDataModule, **data), **model)
    return 1e6 / stopwatch.steps_per_second


def draw(costs: dict[tuple[str, str, int], list[float]], png: Path) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (panel, label) in zip(figure.subplots(1, 3, sharey=True), LABELS.items(), strict=True):
        for backend, colour in (("sync", "#1f4e9c"), ("vector", "#d1802b")):
            points = sorted((size, times) for (p, b, size), times in costs.items() if (p, b) == (panel, backend))
            if points:
                x, middle = [size for size, _ in points], np.array([np.median(times) for _, times in points])
                low, high = (np.array([reach(times) for _, times in points]) for reach in (min, max))
                axes.errorbar(x, middle, [middle - low, high - middle], color=colour, marker="o", ms=4, label=backend)
        axes.set(xscale="log", yscale="log", xlabel=label, xticks=x, xticklabels=x)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("µs per env step of fit")
    figure.axes[0].legend(frameon=False, title="data.backend")
    figure.axes[2].set_xlabel("units in each of the two hidden layers")
    figure.savefig(png, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=3, help="repeats of every size (default: 3)")
    parser.add_argument("--png", type=Path, required=True, help="where to draw")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{listed(versions())}\n{listed(machine())}; {arguments.repeats} repeats\n", flush=True)
    costs: dict[tuple[str, str, int], list[float]] = {}
    for seed in range(arguments.repeats):
        for size, settings in sizes().items():
            costs.setdefault(size, []).append(microseconds(*settings, seed))
    print("| | | size | µs per env step |\n|---|---|--:|--:|")
    for (panel, backend, size), times in costs.items():
        print(f"| {panel} | {backend} | {size} | {np.median(times):.1f} |")
    draw(costs, arguments.png)
    if arguments.json:
        rows = [{"size_of": p, "backend": b, "size": n, "us": times} for (p, b, n), times in costs.items()]
        report = {"versions": versions(), "machine": machine(), "costs": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
