"""Estimates over runs and episodes, with their 95 % intervals."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pg_lightning.analysis.curves import Curve

MAX_POINTS = 2000  # of a curve in a figure of 1200 pixels
Estimate = Literal["mean", "iqm"]


def confidence_interval(returns: np.ndarray, level: float = 0.95) -> list[float]:
    """Student's t interval of the mean of independent episodes; a point if all are equal or there is only one."""
    from scipy import stats

    mean = float(returns.mean())
    if len(returns) < 2 or np.ptp(returns) == 0:
        return [mean, mean]
    low, high = stats.t.interval(level, len(returns) - 1, loc=mean, scale=stats.sem(returns))
    return [float(low), float(high)]


def summary(curves: list[Curve], estimate: Estimate) -> tuple[np.ndarray, ...]:
    """x `[M]`, the estimate over runs `[M]`, and its 95 % bootstrap interval, `[M]` each.

    Runs are interpolated linearly between their own points, from the latest first point to the earliest last point of
    the runs, at no more than `MAX_POINTS` points.
    """
    from scipy import stats

    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > MAX_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_POINTS).astype(int)]
    values = np.stack([np.interp(grid, curve.x, curve.values) for curve in curves])

    def of_runs(sample: np.ndarray, axis: int = 0) -> Any:
        return stats.trim_mean(sample, 0.25, axis) if estimate == "iqm" else sample.mean(axis)

    middle = of_runs(values)
    if len(curves) == 1 or not len(grid):
        return grid, middle, middle, middle
    # Percentiles, because BCa divides by the spread of the runs, which is 0 if all are at the maximum.
    batch = None if values.size < 10_000 else max(1, 10**7 // values.size)  # 80 MB
    drawn = stats.bootstrap((values,), of_runs, axis=0, n_resamples=2000, batch=batch, method="percentile", rng=0)
    return grid, middle, drawn.confidence_interval.low, drawn.confidence_interval.high
