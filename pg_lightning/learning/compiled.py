"""Compiled functions, and the compiled gradient of a loss: one call for forward and backward pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.func import functional_call, grad

from pg_lightning.errors import UserError, one_line
from pg_lightning.learning.gradient import FlatGradient
from pg_lightning.policies.torsos import first_order_tanh
from pg_lightning.rollout import Batch
from pg_lightning.torch_private import CompilerOptions, fused_multiply_add

Stats = dict[str, Tensor]
Loss = Callable[[Batch], tuple[Tensor, Stats]]
Function = TypeVar("Function", bound=Callable[..., object])
Result = TypeVar("Result")


def cpu_options() -> CompilerOptions:
    """Calls between kernels in C++ instead of Python: a fifth of the time of small networks. Tested on Linux."""
    return {"cpp_wrapper": sys.platform == "linux"} | fused_multiply_add()


OPTIONS: dict[str, Callable[[], CompilerOptions]] = {"cpu": cpu_options}


def compiled(function: Function, device: torch.device, whole: bool = True) -> Function:
    """The function compiled for tensors on a device, as one graph or else with an error; not so if not `whole`.

    Each call of this has a cache of its own, which torch keeps per code object.
    """

    def call(*arguments: object) -> object:
        return function(*arguments)

    own = FunctionType(call.__code__.replace(), call.__globals__, function.__name__, closure=call.__closure__)
    return cast(Function, torch.compile(own, fullgraph=whole, options=OPTIONS.get(device.type, dict)()))


class CompiledGradient:
    """Differentiates a loss with respect to the flat vector of all parameters, in one compiled call.

    The loss is a pure function of the vector, so that one graph contains forward and backward pass; autograd does not
    use the parameters. The first gradient of a loss is compared with autograd's: a loss that is not pure is refused.

    Args:
        module: contains the parameters.
        gradient: of these parameters.

    Attributes:
        module: see above, as `gradient`.
        network_is_ours: whether all modules are this package's or torch's.
    """

    def __init__(self, module: nn.Module, gradient: FlatGradient) -> None:
        self.module, self.gradient = module, gradient
        self.network_is_ours = all(map(is_ours, map(type, list(module.modules())[1:])))
        self._functions: dict[tuple[Loss, tuple[bool, ...]], Callable[..., tuple[Tensor, Stats]]] = {}
        self._refused: set[Loss] = set()

    def differentiate(self, loss: Loss, batch: Batch) -> tuple[Tensor, Stats] | None:
        """The gradient `[P]` of a loss, and its statistics; None if the loss is refused."""
        if loss in self._refused:
            return None
        key = loss, self.trained()
        if key in self._functions:
            return self._functions[key](self.gradient.values, batch)
        function = compiled(self.gradient_of(loss), self.gradient.values.device)
        expected = self.by_autograd(loss, batch)
        found = self.tried(loss, lambda: function(self.gradient.values, batch))
        if found is None or not self.agrees(loss, found[0], expected):
            return None
        self._functions[key] = function
        return found

    def refuses(self, loss: Loss) -> bool:
        """Whether the loss cannot be compiled with its gradient."""
        return loss in self._refused

    def is_ours(self, loss: Loss) -> bool:
        """Whether loss and network are this package's, so that it is known what they read and differentiate."""
        return self.network_is_ours and is_ours(loss)

    def trained(self) -> tuple[bool, ...]:
        """Which parameters are trained: a step is compiled anew if some are frozen."""
        return tuple(parameter.requires_grad for parameter in self.gradient.parameters)

    def by_autograd(self, loss: Loss, batch: Batch) -> Tensor:
        """The gradient `[P]` of the loss by the parameters, with no trace in buffers and random numbers."""
        buffers, random = [(x, x.clone()) for x in self.module.buffers()], torch.get_rng_state()
        trained = [parameter for parameter in self.gradient.parameters if parameter.requires_grad]
        found = torch.autograd.grad(loss(batch)[0], trained, materialize_grads=True)
        by_id = dict(zip(map(id, trained), found, strict=True))
        for x, before in buffers:
            x.copy_(before)
        torch.set_rng_state(random)
        return torch.cat([by_id.get(id(p), torch.zeros_like(p)).flatten() for p in self.gradient.parameters])

    def tried(self, loss: Loss, call: Callable[[], Result]) -> Result | None:
        """The result of a first call, which compiles; None if it fails, and then the loss is refused."""
        started = time.perf_counter()
        try:
            result = call()
            rank_zero_info(f"model.compile: compiled the gradient step in {time.perf_counter() - started:.0f} s")
            return result
        except UserError:
            raise
        except Exception as error:
            self._refuse(loss, f"its gradient cannot be one graph ({one_line(error)[:120]})")
        return None

    def agrees(self, loss: Loss, found: Tensor, expected: Tensor) -> bool:
        """Whether a compiled gradient is that of autograd; if not, the loss is refused."""
        tolerance = 0.05 if found.dtype in (torch.float16, torch.bfloat16) else 1e-3
        error = torch.linalg.vector_norm(found - expected)
        agrees = not expected.isfinite().all() or bool(error <= tolerance * torch.linalg.vector_norm(expected) + 1e-12)
        if not agrees:
            self._refuse(
                loss, "its compiled gradient is not that of autograd; is it a pure function of the parameters?"
            )
        return agrees

    def _refuse(self, loss: Loss, reason: str) -> None:
        self._refused.add(loss)
        rank_zero_info(f"model.compile: only the loss is compiled, not the whole gradient step: {reason}")

    def gradient_of(self, loss: Loss) -> Callable[[Tensor, Batch], tuple[Tensor, Stats]]:
        """The gradient `[P]` of a loss and its statistics, as a function of all parameters `[P]` and a batch."""
        holder = _LossModule(self.module, loss, first_order_tanh if self.is_ours(loss) else nullcontext)
        index = {id(parameter): i for i, parameter in enumerate(self.gradient.parameters)}
        # All names of a parameter: tied parameters have several. A shared module has one.
        places = [
            (f"{path}.{name}", index[id(parameter)])
            for path, owner in holder.named_modules()
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in index and parameter.requires_grad
        ]
        unflatten = self.gradient.unflatten

        def of_vector(values: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
            parts = unflatten(values)
            parameters = {name: parts[i] for name, i in places}
            return functional_call(holder, parameters, (batch,), tie_weights=False)

        return grad(of_vector, has_aux=True)


class _LossModule(nn.Module):
    """A loss as the forward pass of a module, so that `functional_call` can replace the parameters."""

    def __init__(self, module: nn.Module, loss: Loss, context: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss
        self.context = context

    def forward(self, batch: Batch) -> tuple[Tensor, Stats]:
        with self.context():
            return self.loss(batch)


def is_ours(part: object) -> bool:
    """Whether a class or a function is this package's, or torch's."""
    return str(getattr(part, "__module__", "")).startswith(("pg_lightning.", "torch."))
