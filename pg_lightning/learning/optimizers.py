"""Optimizers and learning rates, by short name or class path: the one place that sets a learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError, one_line

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": partial(optim.Adam, eps=1e-5, fused=True),
    "rmsprop": partial(optim.RMSprop, alpha=0.99, eps=1e-5, foreach=False),  # one vector per group
}
SCHEDULES = ("constant", "linear", "plateau")
# Elementwise optimizers: they take the same step on a vector as on its parts.
ELEMENTWISE = (
    optim.Adam,
    optim.AdamW,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.SGD,
)
Scheduler = lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizers, learning rates and schedule of the config.

    Attributes:
        actor: short name or class path of the actor's optimizer, and of the critic's unless `critic` is set.
        critic: of the critic's optimizer, if it differs.
        lr: learning rate of the actor.
        critic_lr: learning rate of the critic.
        schedule: `constant`, `linear`, `plateau`, or the class path of a scheduler.
    """

    actor: ClassPath
    critic: ClassPath | None
    lr: float
    critic_lr: float
    schedule: ClassPath

    @property
    def is_elementwise(self) -> bool:
        """Whether every optimizer takes the same step on a flat vector as on its parts."""
        made = [_resolved(field, spec)[0] for field, spec in self._specs]
        classes = [make.func if isinstance(make, partial) else make for make in made]
        return all(known in ELEMENTWISE for known in classes)

    @property
    def is_one(self) -> bool:
        """Whether one optimizer steps actor and critic."""
        return len(self._specs) == 1

    @property
    def name(self) -> str:
        """The name in a checkpoint, because the state of one optimizer is incompatible with another."""
        return " and ".join(_name(spec) for _, spec in self._specs)

    @property
    def schedule_name(self) -> str:
        """The schedule with its arguments, in words."""
        return self.schedule if isinstance(self.schedule, str) else one_line(self.schedule)

    @property
    def _specs(self) -> list[tuple[str, ClassPath]]:
        other = [] if self.critic in (None, self.actor) else [("model.critic_optimizer", self.critic)]
        return [("model.optimizer", self.actor), *other]

    def check(self) -> None:
        """Refuses an invalid optimizer or schedule, before anything is created.

        Raises:
            UserError: naming the field.
        """
        for field, spec in self._specs:
            make, arguments = _resolved(field, spec)
            _checked(field, make, arguments, [nn.Parameter(torch.zeros(1))], self.lr)
        if self.schedule not in SCHEDULES:
            make, _ = _resolved("model.lr_schedule", self.schedule)
            if make is lr_scheduler.ReduceLROnPlateau:
                raise UserError("model.lr_schedule: use plateau, which waits for val/return_mean to rise")
            if not (isinstance(make, type) and issubclass(make, lr_scheduler.LRScheduler)):
                raise UserError(f"model.lr_schedule: {_name(self.schedule)} is no torch.optim.lr_scheduler.LRScheduler")

    def rate(self, group: str) -> float:
        """The base learning rate of `actor` or `critic`."""
        return self.critic_lr if group == "critic" else self.lr

    def make(self, groups: Mapping[str, list[nn.Parameter]]) -> list[optim.Optimizer]:
        """One optimizer with a group for each of `actor` and `critic`, or two optimizers if they differ."""
        named = [{"name": name, "params": group, "lr": self.rate(name)} for name, group in groups.items()]
        if self.is_one:
            return [_made(*self._specs[0], named)]
        specs = dict(zip(("actor", "critic"), self._specs, strict=True))
        return [_made(*specs[name], [group]) for name, group in zip(groups, named, strict=True)]


class LearningRates:
    """Sets the learning rate of every group of every optimizer, by env steps, updates or evaluations.

    Args:
        settings: base rates and schedule.
        optimizers: the result of `OptimizerSettings.make`.

    Attributes:
        schedulers: to be saved by Lightning in checkpoints.
    """

    def __init__(self, settings: OptimizerSettings, optimizers: list[optim.Optimizer]) -> None:
        self.settings = settings
        self.optimizers = optimizers
        self.schedulers: list[Scheduler] = []
        if settings.schedule == "plateau":
            # With the default threshold, relative to the best, any return near a negative best is an improvement.
            self.schedulers = [
                lr_scheduler.ReduceLROnPlateau(x, mode="max", factor=0.5, patience=4, threshold_mode="abs")
                for x in optimizers
            ]
        elif settings.schedule not in SCHEDULES:
            make, arguments = _resolved("model.lr_schedule", settings.schedule)
            self.schedulers = [_scheduler(make, arguments, x) for x in optimizers]

    def start(self) -> None:
        """Sets the constant rate, which may differ from that of the checkpoint of a resumed run."""
        if self.settings.schedule == "constant":
            self._scale(1.0)

    def before_update(self, remaining: float) -> None:
        """`linear`: proportional to the remaining share of the budget, 1 to 0."""
        if self.settings.schedule == "linear":
            self._scale(remaining)

    def after_update(self) -> None:
        """Steps a scheduler given by class path once per update."""
        for scheduler in self.schedulers:
            if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step()

    def after_evaluation(self, return_mean: float) -> None:
        """Passes `val/return_mean` to `plateau`."""
        for scheduler in self.schedulers:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(return_mean)

    @property
    def current(self) -> float:
        """The rate of the first group: the actor's, if it has one."""
        rate: float = self.optimizers[0].param_groups[0]["lr"]
        return rate

    def _scale(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(group["name"]) * factor


def make_moments(optimizer: optim.Optimizer) -> None:
    """Creates the zero moments of an optimizer before its first step; existing moments are kept.

    Uses a step with zero gradient at rate 0, which changes no weight.
    """
    if optimizer.state:
        return
    kept = [(group["lr"], [parameter.grad for parameter in group["params"]]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, (lr, grads) in zip(optimizer.param_groups, kept, strict=True):
        group["lr"] = lr
        for parameter, grad in zip(group["params"], grads, strict=True):
            parameter.grad = grad
    for state in optimizer.state.values():
        for moment in state.values():
            if isinstance(moment, torch.Tensor):
                moment.zero_()


def _name(spec: ClassPath) -> str:
    return spec if isinstance(spec, str) else str(spec.get("class_path"))


def _resolved(field: str, spec: ClassPath) -> tuple[Any, dict[str, Any]]:
    return resolve(field, spec, OPTIMIZERS if "optimizer" in field else dict.fromkeys(SCHEDULES, _no_scheduler))


def _no_scheduler() -> None:
    """The placeholder for schedules that are functions of env steps, in the list of short names."""


def _made(field: str, spec: ClassPath, groups: list[dict[str, Any]]) -> optim.Optimizer:
    make, arguments = _resolved(field, spec)
    return _checked(field, make, arguments, groups, groups[0]["lr"])


def _checked(field: str, make: Any, arguments: dict[str, Any], groups: list[Any], lr: float) -> optim.Optimizer:
    if "lr" in arguments:
        raise UserError(f"{field}: the learning rate is model.lr and model.critic_lr; leave lr out of init_args")
    if not _makes_optimizers(make):
        raise UserError(f"{field}: {getattr(make, '__name__', make)} is no torch.optim.Optimizer")
    try:
        made: optim.Optimizer = make(groups, lr=lr, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: cannot make {getattr(make, '__name__', make)}: {one_line(error)}") from error
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"{field}: {type(made).__name__} evaluates the loss by itself (a closure); choose another")
    return made


def _makes_optimizers(make: object) -> bool:
    """Whether it is one of ours or a class of optimizers; nothing else is called."""
    return isinstance(make, partial) or (isinstance(make, type) and issubclass(make, optim.Optimizer))


def _scheduler(make: Any, arguments: dict[str, Any], optimizer: optim.Optimizer) -> Scheduler:
    try:
        made: Scheduler = make(optimizer, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.lr_schedule: cannot make {make.__name__}: {one_line(error)}") from error
    return made
