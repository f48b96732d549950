"""Shared functions of the benchmarks: versions, threads, intervals, and the error for an unknown name."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np

PACKAGES = ("torch", "lightning", "gymnasium", "numpy", "stable-baselines3", "rsl-rl-lib")


def versions() -> dict[str, str]:
    from pg_lightning import __version__

    found = {"pg_lightning": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, int]:
    """PyTorch's threads within an operation and between operations, and the cores available to this process."""
    import torch

    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return {"torch threads": torch.get_num_threads(), "inter-op": torch.get_num_interop_threads(), "cores": cores}


def listed(items: dict[str, str] | dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items.items())


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], samples: np.ndarray, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile 95 % interval of a statistic over the first axis of `samples`.

    Args:
        statistic: maps resamples `[R, n, ...]` to `[R]`.
        samples: `[n, ...]`; values along the other axes are resampled together.
        resamples: R.
    """
    picks = np.random.default_rng(0).integers(len(samples), size=(resamples, len(samples)))
    low, high = np.quantile(statistic(samples[picks]), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def median_interval(samples: np.ndarray) -> tuple[float, float]:
    return bootstrap(lambda x: np.median(x, axis=1), samples)


def with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def refuse_unknown(
    parser: argparse.ArgumentParser, option: str, names: Collection[str], known: Collection[str]
) -> None:
    """Ends the program with status 2 and one line, unless all names are known."""
    if unknown := [name for name in names if name not in known]:
        parser.exit(2, f"error: {option}: no {', '.join(map(repr, unknown))}; there are {', '.join(known)}\n")


def positive(text: str) -> int:
    number = int(text.replace("_", "").replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
