"""Sizes that a checkpoint file declares are compared with the file before torch believes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from pg_lightning.checkpoint import archive
from pg_lightning.checkpoint.values import Damage

REASONS = {
    "a flipped bit": "it has another checksum",
    "compressed": "is compressed",
    "compressed zeros": "is compressed",
    "a storage that is shorter than declared": "has 8192 bytes, data.pkl declares 16384",
    "a storage that is longer than declared": "has 32768 bytes, data.pkl declares 16384",
    "a storage that is not there": "has no bytes, data.pkl declares 16384",
    "a tensor that goes beyond its storage": "has 20000 elements, a tensor needs 54321",
    "overlapping entries": "bytes, the file has",
    "an entry twice": "is in the file twice",
    "pickle: a bytearray of 100 GB": "reserves memory",
    "pickle: an index of 2**31": "has a memo index of 2147483647",
    "pickle: lists in lists": "has more than 5000000 operations",
    "depth": "is nested more than",
    "a loop": "is nested more than",
    "many references to one list": "repeats its parts so often",
    "stride 0": "describes tensors of 4000000",
    "overlapping strides": "whose elements are not all stored",
}


@pytest.mark.parametrize("name", REASONS)
def test_what_a_file_declares_is_compared_with_it_before_torch_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another check, or torch of this version, may refuse the file too; but each check must do so by itself."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(64, 64)}}, buffer)
    (case,) = (case for case in checkpoints.files() if case.name == name)
    file = tmp_path / "x.ckpt"
    file.write_bytes(case.make(buffer.getvalue(), tmp_path))

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("torch has read it")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(Damage, match=REASONS[name]):
        archive.read(file)
