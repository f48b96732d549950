"""Compiled gradient steps: one call for forward and backward, or one for whole steps, with clip and optimizer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn, optim
from torch.func import functional_call, grad

from pg_lightning.errors import UserError, one_line
from pg_lightning.learning.formulas import FORMULAS, Formula, Group, Moments, is_plain, options_of
from pg_lightning.learning.gradient import FlatGradient
from pg_lightning.learning.optimizers import make_moments
from pg_lightning.policies.torsos import first_order_tanh
from pg_lightning.rollout import Batch
from pg_lightning.torch_private import CompilerOptions, fused_multiply_add, has_step_hooks

Stats = dict[str, Tensor]
Loss = Callable[[Batch], tuple[Tensor, Stats]]
Key = tuple[Loss, tuple[bool, ...], int]
Arguments = tuple[Tensor, Tensor, list[Moments], list[Tensor], Tensor, Batch]
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


def without_guards() -> AbstractContextManager[object]:
    """Within this context, compiled code does not check its assumptions; they must hold since the last call with the
    same shapes, and there must have been one."""
    return torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)


class CompiledStep:
    """Differentiates a loss with respect to the flat vector of all parameters, in one compiled call.

    The loss is a pure function of the vector, so that one graph contains forward and backward pass, and, with `step`,
    the clip and the optimizer; autograd does not use the parameters. The first gradient of a loss is compared with
    autograd's: a loss that is not pure is refused.

    Args:
        module: contains the parameters.
        gradient: of these parameters. `network_is_ours` then says whether all modules are this package's or torch's.
    """

    def __init__(self, module: nn.Module, gradient: FlatGradient) -> None:
        self.gradient = gradient
        self._module = module
        self.network_is_ours = all(map(is_ours, map(type, list(module.modules())[1:])))
        self._max_norm = gradient.values.new_zeros(1)
        self._differentiate: dict[Key, Callable[..., tuple[Tensor, Stats]]] = {}
        self._step: dict[Key, Callable[..., Stats]] = {}
        self._refused: set[Loss] = set()
        self._checked: set[tuple[object, ...]] = set()
        self._optimizers: Sequence[optim.Optimizer] = ()
        self._groups: list[tuple[Formula, Group, Group]] = []
        self._moments: list[Moments] = []
        self._rates: list[Tensor] = []

    def can_step(self, optimizers: Sequence[optim.Optimizer]) -> bool:
        """Whether `step` supports these optimizers and no hook is registered on them; if so, creates their moments."""
        own = [id(vector) for (vector,) in self.gradient.groups.values()]
        groups = [group for x in optimizers for group in x.param_groups]
        is_known = all(type(x) in FORMULAS and not has_step_hooks(x) for x in optimizers) and all(map(is_plain, groups))
        if not is_known or [id(vector) for group in groups for vector in group["params"]] != own:
            return False
        for x in optimizers:
            make_moments(x)
        self._optimizers = optimizers
        self._groups = [(FORMULAS[type(x)], group, options_of(group)) for x in optimizers for group in x.param_groups]
        states = [x.state[vector] for x in optimizers for group in x.param_groups for vector in group["params"]]
        self._moments = [{name: m for name, m in state.items() if isinstance(m, Tensor)} for state in states]
        # A learning rate that changes must not cause a recompilation: it is a tensor. Of one dimension, because tensors
        # without are traced as numbers first, which doubles the time of compilation.
        self._rates = [self.gradient.values.new_zeros(1) for _ in groups]
        return True

    def begin(self) -> None:
        """Starts an update."""
        self._checked.clear()

    def is_current(self) -> bool:
        """Whether the optimizers still have the options that `step` was compiled with, and no hooks."""
        return all(options_of(group) == options for _, group, options in self._groups) and not any(
            map(has_step_hooks, self._optimizers)
        )

    def differentiate(self, loss: Loss, batch: Batch) -> tuple[Tensor, Stats] | None:
        """The gradient `[P]` of a loss, and its statistics; None if the loss is refused."""
        if loss in self._refused:
            return None
        key = loss, self._trained(), 1
        if key in self._differentiate:
            return self._differentiate[key](self.gradient.values, batch)
        function = compiled(self._gradient_of(loss), self.gradient.values.device)
        expected = self._by_autograd(loss, batch)
        found = self._tried(loss, lambda: function(self.gradient.values, batch))
        if found is None or not self._agrees(loss, found[0], expected):
            return None
        self._differentiate[key] = function
        return found

    def step(self, loss: Loss, batch: Batch, max_grad_norm: float, num_steps: int = 1) -> Stats | None:
        """Gradient steps on consecutive parts of a batch.

        Args:
            loss: of each part.
            batch: B rows of a policy without memory, or any batch for one step.
            max_grad_norm: bound on the norm of the gradient.
            num_steps: divides B.

        Returns:
            The statistics, averaged over the steps, with `train/grad_norm` before the clip; None if the loss is
            refused, with no effect.
        """
        if loss in self._refused:
            return None
        for rate, (_, group, _) in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        self._max_norm.fill_(max_grad_norm)
        gradient = self.gradient
        if gradient.parameters[0].grad is None:
            gradient.collect()  # the gradient of a parameter is a view of the output of the compiled step
        arguments = gradient.values, gradient.grads, self._moments, self._rates, self._max_norm, batch
        key = loss, self._trained(), num_steps
        if key in self._step:
            with self._guards(key, batch):
                return self._step[key](*arguments)
        function = compiled(self._step_of(loss, num_steps), gradient.values.device)
        if not self._is_right(function, loss, arguments, num_steps):
            return None
        self._step[key] = function
        return function(*arguments)

    def _is_right(self, function: Callable[..., Stats], loss: Loss, arguments: Arguments, num_steps: int) -> bool:
        """Whether compiled steps have the gradient of autograd. With a learning rate of 0, weights do not change."""
        values, grads, moments, rates, max_norm, batch = arguments
        kept = [(x, x.clone()) for x in (values, *(m for of_group in moments for m in of_group.values()))]
        last = batch if num_steps == 1 else batch[-(len(batch) // num_steps) :]
        expected = _clipped(self._by_autograd(loss, last), max_norm)[0]
        no_rates = [torch.zeros_like(rate) for rate in rates]
        with torch.random.fork_rng([values.device] if values.is_cuda else []):
            stats = self._tried(loss, lambda: function(values, grads, moments, no_rates, max_norm, batch))
        for x, before in kept:
            x.copy_(before)
        return stats is not None and self._agrees(loss, grads, expected)

    def _guards(self, key: Key, batch: Batch) -> AbstractContextManager[object]:
        """What compiled code assumes is checked once per update, and again for another batch size or if a number of the
        module has changed; in every step if the loss is not ours, because it may read anything."""
        if not self._is_ours(key[0]):
            return nullcontext()
        call = key, len(batch), *(x for x in vars(self._module).values() if isinstance(x, (float, int, str)))
        if call in self._checked:
            return without_guards()
        self._checked.add(call)
        return nullcontext()

    def _is_ours(self, loss: Loss) -> bool:
        """Whether loss and network are this package's, so that it is known what they read and differentiate."""
        return self.network_is_ours and is_ours(loss)

    def _trained(self) -> tuple[bool, ...]:
        """Which parameters are trained: a step is compiled anew if some are frozen."""
        return tuple(parameter.requires_grad for parameter in self.gradient.parameters)

    def _by_autograd(self, loss: Loss, batch: Batch) -> Tensor:
        """The gradient `[P]` of the loss by the parameters, with no trace in buffers and random numbers."""
        buffers, random = [(x, x.clone()) for x in self._module.buffers()], torch.get_rng_state()
        trained = [parameter for parameter in self.gradient.parameters if parameter.requires_grad]
        found = torch.autograd.grad(loss(batch)[0], trained, materialize_grads=True)
        by_id = dict(zip(map(id, trained), found, strict=True))
        for x, before in buffers:
            x.copy_(before)
        torch.set_rng_state(random)
        return torch.cat([by_id.get(id(p), torch.zeros_like(p)).flatten() for p in self.gradient.parameters])

    def _tried(self, loss: Loss, call: Callable[[], Result]) -> Result | None:
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

    def _agrees(self, loss: Loss, found: Tensor, expected: Tensor) -> bool:
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

    def _gradient_of(self, loss: Loss) -> Callable[[Tensor, Batch], tuple[Tensor, Stats]]:
        holder = _LossModule(self._module, loss, first_order_tanh if self._is_ours(loss) else nullcontext)
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

    def _step_of(self, loss: Loss, num_steps: int) -> Callable[..., Stats]:
        gradient_of = self._gradient_of(loss)
        formulas = [(formula, options) for formula, _, options in self._groups]
        numels = [vector.numel() for (vector,) in self.gradient.groups.values()]

        def step(
            values: Tensor,
            grads: Tensor,
            moments: list[Moments],
            rates: list[Tensor],
            max_norm: Tensor,
            batch: Batch,
        ) -> Stats:
            taken, size = [], len(batch) // num_steps
            for i in range(num_steps):
                part = batch if num_steps == 1 else batch[i * size : (i + 1) * size]
                gradient, stats = gradient_of(values, part)
                gradient, norm = _clipped(gradient, max_norm)
                groups = zip(formulas, values.split(numels), gradient.split(numels), moments, rates, strict=True)
                for (formula, options), weights, of_group, moments_of_group, rate in groups:
                    formula(weights, of_group, moments_of_group, rate, options)
                taken.append({**stats, "train/grad_norm": norm})
            grads.copy_(gradient)
            return taken[0] if num_steps == 1 else {x: torch.stack([s[x] for s in taken]).mean() for x in taken[0]}

        return step


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


def _clipped(gradient: Tensor, max_norm: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient `[P]` scaled down to the norm that is allowed, and its norm before."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm
