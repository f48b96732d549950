"""Optimizers as formulas, for a compiled gradient step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, optim

Moments = dict[str, Tensor]
Group = Mapping[str, Any]


class Formula(Protocol):
    """One step of an optimizer as a formula that changes weights `[P]` and moments in place."""

    def __call__(self, weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
        """`group` has the options of the optimizer."""
        ...


def options_of(group: Group) -> Group:
    """The options of a group of an optimizer that a formula reads; the learning rate is an argument."""
    options = {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
    return options | {"log_betas": [math.log(beta) if beta else -math.inf for beta in group.get("betas", ())]}


def is_plain(group: Mapping[str, object]) -> bool:
    """Whether the group only uses options that the formulas support."""
    return not any(group.get(name) for name in ("amsgrad", "centered", "differentiable", "maximize", "momentum")) and (
        not group.get("weight_decay") or bool(group.get("decoupled_weight_decay"))
    )


def _adam(weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
    """Adam (Kingma & Ba 2015), and with decoupled weight decay AdamW (Loshchilov & Hutter 2019)."""
    beta1, beta2 = group["betas"]
    # 1 - β^t as -expm1(t log β): in float32 the difference has four digits when t is small.
    step = moments["step"].add_(1).to(weights.dtype)
    corrections = [-torch.expm1(step * log) for log in group["log_betas"]]
    mean = moments["exp_avg"].lerp_(gradient, 1 - beta1)
    square = moments["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (square.sqrt() / corrections[1].sqrt()).add_(group["eps"])
    if group["weight_decay"]:
        weights.mul_(1 - lr * group["weight_decay"])
    weights.sub_(lr / corrections[0] * mean / scale)


def _rmsprop(weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, group: Group) -> None:
    """RMSprop (Hinton 2012), with ε outside the root as `torch.optim` has it."""
    moments["step"].add_(1)
    square = moments["square_avg"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
    weights.sub_(lr * gradient / square.sqrt().add_(group["eps"]))


FORMULAS: dict[type[optim.Optimizer], Formula] = {optim.Adam: _adam, optim.AdamW: _adam, optim.RMSprop: _rmsprop}
