"""Calls of a compiled graph without torch's wrappers give the results of usual calls, or are usual calls."""

from collections.abc import Callable

import pytest
import torch
from compilations import compiled_graphs
from torch import Tensor

from pg_lightning.learning.compiled import compiled
from pg_lightning.learning.direct import Direct

CPU = torch.device("cpu")


class Held:
    """A tensor that a function reads without being passed it."""

    def __init__(self) -> None:
        self.tensor = torch.full((4,), 2.0)


def counted(function: Callable[..., dict[str, Tensor]]) -> tuple[Direct, list[int]]:
    """The function compiled, and a list that grows with each of its usual calls."""
    torch.compiler.reset()
    usual: list[int] = []
    inner = compiled(function, CPU)

    def call(*arguments: object) -> dict[str, Tensor]:
        usual.append(1)
        return inner(*arguments)

    return Direct(call, CPU), usual


def played(direct: Direct, num_calls: int, *others: object) -> list[dict[str, Tensor]]:
    results = []
    for i in range(num_calls):
        x = torch.arange(4.0) + i
        results.append((direct.again if i else direct.checked)([x], x, *others))
    return results


@torch.no_grad()
def test_after_two_usual_calls_the_graph_is_called() -> None:
    held, total = Held(), torch.zeros(4)

    def step(x: Tensor, total: Tensor) -> dict[str, Tensor]:
        total.add_(x)
        return {"product": x * held.tensor, "same": x, "sum": x.sum()}

    direct, usual = counted(step)
    before = compiled_graphs()
    results = played(direct, 5, total)
    assert len(usual) == 2
    assert compiled_graphs() == before + 1
    for i, result in enumerate(results):
        x = torch.arange(4.0) + i
        assert list(result) == ["product", "same", "sum"]
        torch.testing.assert_close(result["product"], 2 * x)
        torch.testing.assert_close(result["same"], x)
        torch.testing.assert_close(result["sum"], x.sum())
    torch.testing.assert_close(total, 5 * torch.arange(4.0) + 10)


@torch.no_grad()
def test_a_check_finds_what_has_changed_since() -> None:
    held = Held()
    direct, usual = counted(lambda x: {"product": x * held.tensor})
    played(direct, 3)
    held.tensor = torch.full((4,), 3.0)
    for i, result in enumerate(played(direct, 3)):
        torch.testing.assert_close(result["product"], 3 * (torch.arange(4.0) + i))
    assert len(usual) == 3


@torch.no_grad()
@pytest.mark.parametrize("what", ["a hidden tensor changes", "a result is a view of an input", "another device"])
def test_where_the_graph_is_not_all_the_usual_call_is_made(what: str) -> None:
    held = Held()
    direct, usual = counted(lambda x: {"y": x[1:] if "view" in what else x * held.tensor})
    if "device" in what:
        direct = Direct(lambda x: usual.append(1) or {"y": x * held.tensor}, torch.device("meta"))
    for i in range(6):
        if "hidden" in what:
            held.tensor = torch.full((4,), float(i))
        x = torch.arange(4.0) + i
        result = (direct.again if i else direct.checked)([x], x)
        torch.testing.assert_close(result["y"], x[1:] if "view" in what else x * held.tensor)
    assert len(usual) == 6


@torch.no_grad()
def test_under_autocast_the_usual_call_is_made() -> None:
    held = Held()
    direct, usual = counted(lambda x: {"y": x * held.tensor})
    played(direct, 3)
    with torch.autocast("cpu", torch.bfloat16):
        played(direct, 3)
    assert len(usual) == 5
