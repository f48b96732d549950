"""Reading what a run leaves behind, on disk and on the terminal."""

import csv
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.csv`, each with the metrics that it has."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def without_speed(run: Path) -> list[dict[str, float]]:
    """Those lines without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "time/steps_per_second"} for row in read_metrics(run)]


def complaint(finished: "CompletedProcess[str]") -> str:
    """What a command has said of a mistake, in one line and nothing else."""
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr.removeprefix("error: ").rstrip("\n")


def load(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint, as someone who does not trust it would load it."""
    return torch.load(checkpoint, weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    """Byte for byte, buffers included."""
    ours, theirs = load(one)["state_dict"], load(other)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
