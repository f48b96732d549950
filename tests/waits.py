"""Operations on tensors that would wait for a GPU, found on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pg_lightning.data import RolloutCollector

WAITS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "is_nonzero", "equal", "_unique2")


class Waits(TorchDispatchMode):
    """Counts operations that wait for a device.

    Args:
        env: a simulator, whose own operations are not counted.
        copies: count tensors of numbers from the host too, which wait for the copy.
    """

    def __init__(self, env: Any = None, copies: bool = False) -> None:
        super().__init__()
        self.names = (*WAITS, "lift_fresh") if copies else WAITS
        self.found: list[str] = []
        self.is_paused = False
        if env is None:
            return
        step = env.step

        def paused_step(actions: Tensor) -> Any:
            self.is_paused = True
            result = step(actions)
            self.is_paused = False
            return result

        env.step = paused_step

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if not self.is_paused and (name in self.names or by_mask):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def assert_no_step_waits(env: Any, actor: Any, waits: Waits) -> None:
    """A long rollout waits as often as a short one, at its end."""
    counts = []
    for num_steps in (10, 40):
        collector = RolloutCollector(env, num_steps, 3, action_seed=5)
        collector.collect(actor)  # the first call makes the generator
        waits.found.clear()
        with waits:
            collector.collect(actor)
        counts.append(len(waits.found))
    assert counts[0] == counts[1] < 10, waits.found
