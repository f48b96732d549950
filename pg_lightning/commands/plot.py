"""`python -m pg_lightning plot RUN [RUN ...]`: learning curves of many runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.analysis.curves import Curve, XAxis, find_runs, group_of, in_order, read_curve
from pg_lightning.analysis.intervals import Estimate
from pg_lightning.analysis.plots import draw


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of `plot` on the command line."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders with runs anywhere below")
    parser.add_function_arguments(plot, skip={"runs"})


def plot(
    runs: Sequence[Path],
    metric: str = "val/return_mean",
    x: XAxis = "env_steps",
    by: str = "algorithm",
    estimate: Estimate = "iqm",
    output: Path = Path("curves.png"),
) -> list[Path]:
    """Draws the learning curves of runs; each group is one line with a band.

    The band is the 95 % bootstrap interval over the runs of the group, which should only differ in their
    seeds. A group of one run has no band.

    Args:
        runs: run folders, or folders with runs in their subfolders.
        metric: a column of `metrics.csv`.
        x: `env_steps`, or `seconds` of collection and learning, without evaluations.
        by: the grouping: `algorithm`, `run`, or a key of the config, such as `model.lr`.
        estimate: `iqm`, the mean of the middle half of the runs (Agarwal et al. 2021, §4.3), or `mean`.
        output: path of the figure, or an existing folder for `curves`; both a PNG and an SVG are written.

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
