"""How often torch has compiled: a counter that it keeps in private and that has no public face."""

from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from pg_lightning.learning import compiled, direct


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return counters["stats"]["unique_graphs"]


def without_inductor(monkeypatch: Any) -> None:
    """Takes the compiler's place: a compiled graph runs operation by operation."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compiled, "OPTIONS", {})
    torch.compiler.reset()


def refuse_usual_calls(monkeypatch: Any) -> None:
    """Fails if a call that has been checked is not made without torch's wrappers."""

    def refuse() -> None:
        raise AssertionError("a usual call")

    monkeypatch.setattr(direct, "without_guards", refuse)
