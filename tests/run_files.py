"""Reading what a run leaves behind."""

import csv
from pathlib import Path
from typing import Any

import torch


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.csv`, each with the metrics that it has."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def load(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint, as someone who does not trust it would load it."""
    return torch.load(checkpoint, weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    """Byte for byte, buffers included."""
    ours, theirs = load(one)["state_dict"], load(other)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
