"""Every private name of torch that the package uses. It imports no Lightning: networks are used without a Trainer too.

One test for each name in `tests/test_lightning_private.py` fails when torch moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn, optim
from torch.distributed.constants import default_pg_timeout

CompilerOptions = dict[str, str | int | bool | Callable[..., object]]

# The timeout of a process group without an explicit one; its module is not part of torch's documentation.
DEFAULT_TIMEOUT: timedelta = default_pg_timeout


class ExactBuffers(nn.Module):
    """A module whose buffers move to another device, but never to another dtype.

    `Module.half()` and the Trainer's true half precision convert every floating-point buffer. All conversions go
    through the private `Module._apply`, and only an override can leave a dtype alone.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactBuffers:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self


def standard_gamma(alpha: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Samples of Gamma(alpha, 1), of the shape of `alpha`. `torch.distributions.Gamma` takes no generator."""
    return torch._standard_gamma(alpha, generator)


def default_store() -> distributed.Store:
    """The key-value store of the default process group. Ranks can write to it after a collective has failed.

    Raises:
        ValueError: if no process group is initialised.
    """
    return distributed.distributed_c10d._get_default_store()


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target, in one call."""
    torch._foreach_copy_(targets, sources)


def fused_multiply_add() -> CompilerOptions:
    """The option that lets compiled code for a CPU add a product in one instruction, rounded once."""
    from torch._inductor import config  # takes a second, so only where something is compiled

    name = "cpp.enable_floating_point_contract_flag"  # a bool in older versions of torch
    return {name: True if isinstance(config.cpp.enable_floating_point_contract_flag, bool) else "fast"}


def seed_keeping_initial(seed: int) -> None:
    """Seeds torch's global CPU generator, but `torch.initial_seed()` stays: it is the seed of the run.

    The first eight bytes of a CPU generator's state are its initial seed, which is not part of the documentation.
    """
    state = torch.Generator().manual_seed(seed).get_state()
    state[:8] = torch.get_rng_state()[:8]
    torch.set_rng_state(state)


def has_step_hooks(optimizer: optim.Optimizer) -> bool:
    """Whether a hook is registered before or after the steps of an optimizer."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Whether a hook is registered on the gradient of a parameter, as by `wandb.watch`."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


Graph = Callable[[list[object]], Sequence[Tensor]]
GraphCall = tuple[Graph, list[object], Sequence[Tensor]]


@contextmanager
def graph_calls() -> Iterator[list[GraphCall]]:
    """Within this context, calls of compiled graphs are recorded: the function that torch's wrappers call with a list
    of inputs, which it empties; these inputs; and its outputs."""
    from torch._inductor.output_code import CompiledFxGraph

    calls: list[GraphCall] = []
    call = CompiledFxGraph.__call__

    def recorded(graph: CompiledFxGraph, inputs: list[object]) -> Sequence[Tensor]:
        kept = list(inputs)
        outputs = call(graph, inputs)
        if graph.current_callable is not None:
            calls.append((graph.current_callable, kept, outputs))
        return outputs

    CompiledFxGraph.__call__ = recorded  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        CompiledFxGraph.__call__ = call  # type: ignore[method-assign]
