"""Compiled gradient steps: one call for forward and backward, or one that also includes clip and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call, grad

from pg_lightning.learning.gradient import FlatGradient
from pg_lightning.learning.optimizers import make_moments
from pg_lightning.rollout import Batch
from pg_lightning.torch_private import has_step_hooks

Stats = dict[str, Tensor]
Loss = Callable[[Batch], tuple[Tensor, Stats]]
Moments = dict[str, Tensor]
Function = TypeVar("Function", bound=Callable[..., object])
Group = Mapping[str, Any]


def compiled(function: Function) -> Function:
    """The function compiled. Calls do not check again that the layers of `torch.nn` in it are what they were."""
    unchecked = torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe
    return cast(Function, torch.compile(function, options={"guard_filter_fn": unchecked}))


class Formula(Protocol):
    """One step of an optimizer as a formula that changes weights `[P]` and moments in place."""

    def __call__(self, weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
        """`group` has the options of the optimizer."""
        ...


class CompiledStep:
    """Differentiates a loss with respect to the flat vector of all parameters, in one compiled call.

    The loss is a pure function of the vector, so that one graph contains forward and backward pass, and, with `step`,
    the clip and the optimizer; autograd does not use the parameters.

    Args:
        module: contains the parameters.
        gradient: of these parameters.
        max_grad_norm: bound on the norm of the whole gradient.
    """

    def __init__(self, module: nn.Module, gradient: FlatGradient, max_grad_norm: float) -> None:
        self.gradient = gradient
        self.max_grad_norm = max_grad_norm
        self._module = module
        self._differentiate: dict[Loss, Callable[..., tuple[Tensor, Stats]]] = {}
        self._step: dict[Loss, Callable[..., Stats]] = {}
        self._groups: list[tuple[Formula, Group, Group]] = []
        self._moments: list[Moments] = []
        self._rates: list[Tensor] = []

    def differentiate(self, loss: Loss, batch: Batch) -> tuple[Tensor, Stats]:
        """The gradient `[P]` of a loss, and its statistics."""
        if loss not in self._differentiate:
            self._differentiate[loss] = compiled(self._gradient_of(loss))
        return self._differentiate[loss](self.gradient.values, batch)

    def can_step(self, optimizers: Sequence[optim.Optimizer]) -> bool:
        """Whether `step` supports these optimizers and no hook is registered on them; if so, creates their moments."""
        own = [id(vector) for (vector,) in self.gradient.groups.values()]
        groups = [group for x in optimizers for group in x.param_groups]
        is_known = all(type(x) in FORMULAS and not has_step_hooks(x) for x in optimizers) and all(
            map(_is_plain, groups)
        )
        if not is_known or [id(vector) for group in groups for vector in group["params"]] != own:
            return False
        for x in optimizers:
            make_moments(x)
        self._groups = [(FORMULAS[type(x)], group, _options(group)) for x in optimizers for group in x.param_groups]
        states = [x.state[vector] for x in optimizers for group in x.param_groups for vector in group["params"]]
        self._moments = [{name: m for name, m in state.items() if isinstance(m, Tensor)} for state in states]
        # A learning rate that changes must not cause a recompilation: it is a tensor.
        self._rates = [self.gradient.values.new_zeros((), dtype=torch.float64) for _ in groups]
        self.gradient.collect()  # from now on the gradient of a parameter is a view of the output of `step`
        return True

    def is_current(self) -> bool:
        """Whether `step` was compiled with the options of now: some schedulers change more than the learning rate."""
        return all(_options(group) == options for _, group, options in self._groups)

    def step(self, loss: Loss, batch: Batch) -> Stats:
        """One gradient step; returns the statistics of the loss and `train/grad_norm`, before the clip."""
        if loss not in self._step:
            self._step[loss] = compiled(self._step_of(loss))
        for rate, (_, group, _) in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        return self._step[loss](self.gradient.values, self.gradient.grads, self._moments, self._rates, batch)

    def _gradient_of(self, loss: Loss) -> Callable[[Tensor, Batch], tuple[Tensor, Stats]]:
        holder = _LossModule(self._module, loss)
        index = {id(parameter): i for i, parameter in enumerate(self.gradient.parameters)}
        # All names of a parameter: tied parameters have several. A shared module has one.
        places = [
            (f"{path}.{name}", index[id(parameter)])
            for path, owner in holder.named_modules()
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in index
        ]
        unflatten = self.gradient.unflatten

        def of_vector(values: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
            parts = unflatten(values)
            parameters = {name: parts[i] for name, i in places}
            return functional_call(holder, parameters, (batch,), tie_weights=False)

        return grad(of_vector, has_aux=True)

    def _step_of(self, loss: Loss) -> Callable[..., Stats]:
        gradient_of = self._gradient_of(loss)
        formulas = [(formula, options) for formula, _, options in self._groups]
        numels = [vector.numel() for (vector,) in self.gradient.groups.values()]
        max_norm = self.max_grad_norm

        def step(values: Tensor, grads: Tensor, moments: list[Moments], rates: list[Tensor], batch: Batch) -> Stats:
            gradient, stats = gradient_of(values, batch)
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)
            grads.copy_(gradient)
            parts = zip(formulas, values.split(numels), gradient.split(numels), moments, rates, strict=True)
            for (formula, options), weights, part, moments_of_group, rate in parts:
                formula(weights, part, moments_of_group, rate, options)
            return {**stats, "train/grad_norm": norm}

        return step


class _LossModule(nn.Module):
    """A loss as the forward pass of a module, so that `functional_call` can replace the parameters."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Stats]:
        return self.loss(batch)


def _options(group: Group) -> Group:
    return {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}


def _is_plain(group: Mapping[str, object]) -> bool:
    """Whether the group only uses options that the formulas support."""
    return not any(group.get(name) for name in ("amsgrad", "centered", "differentiable", "maximize", "momentum")) and (
        not group.get("weight_decay") or bool(group.get("decoupled_weight_decay"))
    )


def _adam(weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
    """Adam (Kingma & Ba 2015), and with decoupled weight decay AdamW (Loshchilov & Hutter 2019)."""
    beta1, beta2 = group["betas"]
    step = moments["step"].add_(1).double()  # in float32 1 - 0.999^t has four digits when t is small
    mean = moments["exp_avg"].lerp_(gradient, 1 - beta1)
    square = moments["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (square.sqrt() / (1 - beta2**step).sqrt()).add_(group["eps"])
    if group["weight_decay"]:
        weights.mul_(1 - lr * group["weight_decay"])
    weights.sub_(lr / (1 - beta1**step) * mean / scale)


def _rmsprop(weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
    """RMSprop (Hinton 2012), with ε outside the root as `torch.optim` has it."""
    moments["step"].add_(1)
    square = moments["square_avg"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
    weights.sub_(lr * gradient / square.sqrt().add_(group["eps"]))


FORMULAS: dict[type[optim.Optimizer], Formula] = {optim.Adam: _adam, optim.AdamW: _adam, optim.RMSprop: _rmsprop}
