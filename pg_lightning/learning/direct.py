"""Calls of compiled functions without torch's checks and wrappers, which take as long as a small graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from pg_lightning.torch_private import Graph, GraphCall, graph_calls

Tensors = Sequence[Tensor]
Results = dict[str, Tensor]


def without_guards() -> AbstractContextManager[object]:
    """Within this context, compiled code does not check its assumptions; they must hold since the last call with the
    same shapes, and there must have been one."""
    return torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)


class Direct:
    """A compiled function that returns a dictionary of tensors, for calls on the same shapes between two checks.

    `checked` is the usual call. `again` relies on what it has checked: it calls the compiled graph, with other tensors
    in the place of the changing ones. How these are passed to the graph is learned from two usual calls; if these
    differ in anything else, or if a result is not an output of the graph, `again` only omits the checks.

    Args:
        function: the compiled function, which needs no gradient.
        device: of its tensors; if it is not a CPU, `again` only omits the checks.
    """

    def __init__(self, function: Callable[..., Results], device: torch.device) -> None:
        self._function = function
        self._can_skip = device.type == "cpu"
        self._is_certain = False
        self._entry: _Entry | None = None

    def checked(self, changing: Tensors, *arguments: object) -> Results:
        """The results for some arguments, of which `changing` are the tensors that are others in each call."""
        if not self._can_skip:
            return self._function(*arguments)
        with graph_calls() as calls:
            results = self._function(*arguments)
        before, self._entry = self._entry, _entry_of(calls, changing, results)
        self._is_certain &= before is not None and self._entry is not None and before.has_layout_of(self._entry)
        return results

    def again(self, changing: Tensors, *arguments: object) -> Results:
        """The results for arguments that differ from those of the last call in the values of `changing` only."""
        entry = self._entry
        if not self._can_skip or entry is None or torch.is_autocast_enabled("cpu"):
            with without_guards():
                return self._function(*arguments)
        if self._is_certain:
            with torch.no_grad():
                return entry(changing)
        results = self.checked(changing, *arguments)
        self._is_certain = self._can_skip = self._entry is not None and entry.equals(self._entry)
        return results


class _Entry(NamedTuple):
    """How to call a graph.

    Attributes:
        graph: maps a list of inputs, which it empties, to its outputs.
        constants: its inputs, None in place of the changing ones.
        inputs: for each input, the position of the changing tensor, or None.
        outputs: of each result by name, its position among the outputs, followed by the changing tensors.
    """

    graph: Graph
    constants: list[object]
    inputs: list[int | None]
    outputs: dict[str, int]

    def __call__(self, changing: Tensors) -> Results:
        constants = self.constants
        inputs = [constants[i] if n is None else changing[n] for i, n in enumerate(self.inputs)]
        found = [*self.graph(inputs), *changing]
        return {name: found[n] for name, n in self.outputs.items()}

    def has_layout_of(self, other: _Entry) -> bool:
        return self.graph is other.graph and self.inputs == other.inputs and self.outputs == other.outputs

    def equals(self, other: _Entry) -> bool:
        """Whether the entries of two calls only differ in the changing tensors."""
        return self.has_layout_of(other) and all(x is y for x, y in zip(self.constants, other.constants, strict=True))


def _entry_of(calls: list[GraphCall], changing: Tensors, results: Results) -> _Entry | None:
    """None unless there was one call of a graph, and every result is one of its outputs or a changing tensor."""
    position = {id(x): n for n, x in enumerate(changing)}
    if len(calls) != 1 or len(position) < len(changing):
        return None
    graph, inputs, outputs = calls[0]
    found = {id(x): n for n, x in enumerate([*outputs, *changing])}
    if not all(id(x) in found for x in results.values()):
        return None
    positions = [position.get(id(x)) for x in inputs]
    constants = [x if n is None else None for x, n in zip(inputs, positions, strict=True)]
    return _Entry(graph, constants, positions, {name: found[id(x)] for name, x in results.items()})
