"""One training of a study or a comparison, and its result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from pg_lightning.analysis.curves import Curve, XAxis, find_runs, points_of, read_curve, rows_of, seconds_of
from pg_lightning.errors import UserError
from pg_lightning.run.reading import read_json

RESULT = "result.json"  # in the folder of a finished run


@dataclass(frozen=True)
class Run:
    """One training, with one seed.

    Attributes:
        name: of its setting.
        seed: of the run; runs of several settings with one seed are a pair.
        command: arguments of `python -m pg_lightning`; resumes an interrupted run in the folder.
        settings: everything that it depends on, in plain types.
        folder: its own.
    """

    name: str
    seed: int
    command: list[str]
    settings: dict[str, Any]
    folder: Path


@dataclass
class Result:
    """The result of a run for one metric.

    Attributes:
        name: as in `Run`.
        seed: as in `Run`.
        env_steps: at the last evaluation.
        final: the metric at the last evaluation.
        mean: the mean of the metric over the evaluations: the height of the learning curve.
        seconds: of collection and learning, without evaluations.
    """

    name: str
    seed: int
    env_steps: int
    final: float
    mean: float
    seconds: float


def read_result(run: Run, metric: str) -> Result:
    """The result in a run's `metrics.csv`.

    Raises:
        UserError: if the metric was never logged.
    """
    files = sorted(run.folder.rglob("metrics.csv"))
    rows = rows_of(files[-1]) if files else []
    points = points_of(rows, metric)
    if not points:
        raise UserError(f"metric: {str(run.folder)!r} has logged no {metric!r}")
    steps, values = np.array(points).T
    seconds = float(np.interp(steps[-1], *seconds_of(rows)))
    return Result(run.name, run.seed, int(steps[-1]), float(values[-1]), float(values.mean()), seconds)


def known(run: Run) -> Result | None:
    """The result of a finished run; None if it is not finished."""
    file = run.folder / RESULT
    return result_of(read_json(file, "output"), f"output: {str(file)!r}") if file.exists() else None


def result_of(content: object, where: str) -> Result:
    """A result from plain types, as `result.json` or the storage of a search holds it.

    Args:
        content: the fields of a `Result`.
        where: begins the error message.

    Raises:
        UserError: if it is none.
    """
    if isinstance(content, dict) and {name: type(value) for name, value in content.items()} == get_type_hints(Result):
        return Result(**content)
    raise UserError(f"{where} is not the result of a run; remove it, and the run is repeated")


def curves_of(runs: Sequence[Run], metric: str, x: XAxis) -> list[Curve]:
    """The learning curves of the finished runs."""
    return [read_curve(find_runs([run.folder])[-1], metric, x) for run in runs if (run.folder / RESULT).is_file()]


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, of its last 10 kB."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
