"""Compiled gradient steps: forward, backward, clip and optimizer in one call, or in a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn, optim

from pg_lightning.learning.compiled import CompiledGradient, Loss, Stats, compiled
from pg_lightning.learning.direct import Direct
from pg_lightning.learning.formulas import FORMULAS, Formula, Group, Moments, is_plain, options_of
from pg_lightning.learning.gradient import FlatGradient
from pg_lightning.learning.optimizers import make_moments
from pg_lightning.rollout import Batch
from pg_lightning.torch_private import has_step_hooks

NORM = "train/grad_norm"
MAX_ENTRIES = 16  # of different shapes, for which calls are kept
# A step on more rows is taken in parts of a size in this range, per thread: activations stay in the cache of a core.
MANY_ROWS = 4096
PART_ROWS = range(256, 1025)


class State(NamedTuple):
    """What a gradient step changes, and its numbers, as tensors: a number that changes would cause a recompilation.

    Attributes:
        values: `[P]`, all parameters.
        grads: `[P]`, the clipped gradient after a step.
        moments: of the optimizer, for each group of parameters.
        rates: `[1]`, the learning rate of each group. Tensors without dimensions are traced as numbers first, which
            doubles the time of compilation.
        max_norm: `[1]`.
    """

    values: Tensor
    grads: Tensor
    moments: list[Moments]
    rates: list[Tensor]
    max_norm: Tensor


class Steps(Protocol):
    """Gradient steps on some rows."""

    def __call__(self, state: State, batch: Batch, rows: Tensor | None, is_checked: bool) -> list[Stats]:
        """Steps on consecutive parts of the rows `[R]` of a batch, by default all.

        Args:
            state: is changed.
            batch: contains the rows.
            rows: indices.
            is_checked: whether the last call was checked and only differed in the values of `batch` and `rows`.

        Returns:
            The statistics of equal parts of the rows, with `train/grad_norm` before the clip.
        """
        ...


class CompiledStep:
    """Takes gradient steps with one loss and optimizers that are known as formulas.

    Args:
        module: contains the parameters.
        gradient: of these parameters.

    Attributes:
        gradient: see above.
        of_loss: the compiled gradient.
        network_is_ours: see `CompiledGradient`.
    """

    def __init__(self, module: nn.Module, gradient: FlatGradient) -> None:
        self.gradient = gradient
        self.of_loss = CompiledGradient(module, gradient)
        self.network_is_ours = self.of_loss.network_is_ours
        self._functions: dict[tuple[object, ...], Callable[..., Stats]] = {}
        self._steps: dict[tuple[object, ...], Steps] = {}
        self._checked: dict[tuple[object, ...], Sequence[object]] = {}
        self._trained = self.of_loss.trained()
        self._optimizers: Sequence[optim.Optimizer] = ()
        self._groups: list[tuple[Formula, Group, Group]] = []
        self._state = State(gradient.values, gradient.grads, [], [], gradient.values.new_zeros(1))

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
        self._state = self._state._replace(
            moments=[{name: m for name, m in state.items() if isinstance(m, Tensor)} for state in states],
            rates=[self.gradient.values.new_zeros(1) for _ in groups],
        )
        return True

    def begin(self) -> None:
        """Starts an update, during which the same parameters are trained."""
        self._checked.clear()
        self._trained = self.of_loss.trained()
        if len(self._steps) > MAX_ENTRIES:
            self._steps.clear()

    def is_current(self) -> bool:
        """Whether the optimizers still have the options that `step` was compiled with, and no hooks."""
        return all(options_of(group) == options for _, group, options in self._groups) and not any(
            map(has_step_hooks, self._optimizers)
        )

    def step(
        self, loss: Loss, batch: Batch, max_grad_norm: float, num_steps: int = 1, rows: Tensor | None = None
    ) -> list[Stats] | None:
        """Gradient steps on consecutive parts of some rows.

        Args:
            loss: of each part.
            batch: of a policy without memory, or any batch for one step on all its rows.
            max_grad_norm: bound on the norm of the gradient.
            num_steps: divides the number of rows.
            rows: `[R]` indices of rows of the batch; all by default.

        Returns:
            The statistics of equal parts of the rows, with `train/grad_norm` before the clip; None if the loss is
            refused, with no effect.
        """
        if self.of_loss.refuses(loss):
            return None
        for rate, (_, group, _) in zip(self._state.rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        self._state.max_norm.fill_(max_grad_norm)
        if self.gradient.parameters[0].grad is None:
            self.gradient.collect()  # the gradient of a parameter is a view of the output of the compiled step
        num_parts = 1 if rows is None or num_steps > 1 else self._num_parts(loss, len(rows))
        key = loss, self._trained, num_steps, num_parts, rows is None
        shapes = len(batch), None if rows is None else len(rows), *batch.columns()
        if (key, shapes) not in self._steps:
            is_new = key not in self._functions
            steps = self._made(key, loss, num_steps, num_parts)
            if is_new and not self._is_right(steps, loss, batch, num_steps, rows):
                return None
            self._steps[key, shapes] = steps
        return self._steps[key, shapes](self._state, batch, rows, self._is_checked(loss, key, shapes))

    def _num_parts(self, loss: Loss, rows: int) -> int:
        """Into how many parts the rows of a step are split: a mean over rows is a mean over equal parts of them."""
        device = self.gradient.values.device
        if rows <= MANY_ROWS or device.type != "cpu" or not self.of_loss.is_ours(loss):
            return 1
        threads = torch.get_num_threads()
        sizes = range(PART_ROWS.start * threads, PART_ROWS.stop * threads)
        return rows // max((size for size in sizes if rows % size == 0), default=rows)

    def _made(self, key: tuple[object, ...], loss: Loss, num_steps: int, num_parts: int) -> Steps:
        device = self.gradient.values.device
        if num_parts > 1:
            if key not in self._functions:
                self._functions[key] = compiled(self._addition_of(loss), device)
            if (num_parts,) not in self._functions:
                self._functions[num_parts,] = compiled(self._descent_of(num_parts), device)
            add, descend = (Direct(self._functions[x], device) for x in (key, (num_parts,)))
            return _InParts(add, descend, num_parts, torch.zeros_like(self.gradient.values))
        if key not in self._functions:
            self._functions[key] = compiled(self._step_of(loss, num_steps), device)
        return _AtOnce(Direct(self._functions[key], device), num_steps)

    def _is_right(self, steps: Steps, loss: Loss, batch: Batch, num_steps: int, rows: Tensor | None) -> bool:
        """Whether compiled steps have the gradient of autograd. With a learning rate of 0, weights do not change."""
        state = self._state
        kept = [(x, x.clone()) for x in (state.values, *(m for of_group in state.moments for m in of_group.values()))]
        last = _parts(batch, num_steps, rows)[-1]
        expected = _clipped(self.of_loss.by_autograd(loss, last), state.max_norm)[0]
        at_rest = state._replace(rates=[torch.zeros_like(rate) for rate in state.rates])
        with torch.random.fork_rng([state.values.device] if state.values.is_cuda else []):
            stats = self.of_loss.tried(loss, lambda: steps(at_rest, batch, rows, is_checked=False))
        for x, before in kept:
            x.copy_(before)
        return stats is not None and self.of_loss.agrees(loss, state.grads, expected)

    def _is_checked(self, loss: Loss, *call: object) -> bool:
        """What compiled code assumes is checked once per update, and again for another batch size or if an attribute of
        the module has been set; in every step if the loss is not ours, because it may read anything."""
        if not self.of_loss.is_ours(loss):
            return False
        module = self.of_loss.module
        read = [*vars(module).values(), *module.buffers(recurse=False)]
        before = self._checked.get(call, ())
        self._checked[call] = read
        return len(before) == len(read) and all(map(is_, before, read))

    def _step_of(self, loss: Loss, num_steps: int) -> Callable[..., Stats]:
        gradient_of, descend = self.of_loss.gradient_of(loss), self._descent()

        def step(state: State, batch: Batch, rows: Tensor | None) -> Stats:
            taken = []
            for part in _parts(batch, num_steps, rows):
                gradient, stats = gradient_of(state.values, part)
                gradient, norm = descend(state, gradient)
                taken.append({**stats, NORM: norm})
            state.grads.copy_(gradient)
            return taken[0] if num_steps == 1 else {x: torch.stack([s[x] for s in taken]).mean() for x in taken[0]}

        return step

    def _addition_of(self, loss: Loss) -> Callable[..., Stats]:
        gradient_of = self.of_loss.gradient_of(loss)

        def add(values: Tensor, total: Tensor, batch: Batch, rows: Tensor) -> Stats:
            gradient, stats = gradient_of(values, batch[rows])
            total.add_(gradient)
            return stats

        return add

    def _descent_of(self, num_parts: int) -> Callable[..., Stats]:
        descend = self._descent()

        def step(state: State, total: Tensor) -> Stats:
            gradient, norm = descend(state, total / num_parts)
            state.grads.copy_(gradient)
            total.zero_()
            return {NORM: norm}

        return step

    def _descent(self) -> Callable[[State, Tensor], tuple[Tensor, Tensor]]:
        """Clip and optimizers as a function of state and gradient `[P]`: the clipped gradient, and the norm before."""
        formulas = [(formula, options) for formula, _, options in self._groups]
        numels = [vector.numel() for (vector,) in self.gradient.groups.values()]

        def descend(state: State, gradient: Tensor) -> tuple[Tensor, Tensor]:
            gradient, norm = _clipped(gradient, state.max_norm)
            weights, gradients = state.values.split(numels), gradient.split(numels)
            groups = zip(formulas, weights, gradients, state.moments, state.rates, strict=True)
            for (formula, options), own, of_group, moments, rate in groups:
                formula(own, of_group, moments, rate, options)
            return gradient, norm

        return descend


class _AtOnce:
    """All steps in one call; a `Steps`."""

    def __init__(self, function: Direct, num_steps: int) -> None:
        self._function, self._num_steps = function, num_steps

    def __call__(self, state: State, batch: Batch, rows: Tensor | None, is_checked: bool) -> list[Stats]:
        changing = [*batch.columns().values(), *([] if rows is None else [rows])]
        call = self._function.again if is_checked else self._function.checked
        return [call(changing, state, batch, rows)] * self._num_steps


class _InParts:
    """A step whose gradient is the mean over several calls; a `Steps`."""

    def __init__(self, add: Direct, descend: Direct, num_parts: int, total: Tensor) -> None:
        self._add, self._descend, self._num_parts, self._total = add, descend, num_parts, total

    def __call__(self, state: State, batch: Batch, rows: Tensor | None, is_checked: bool) -> list[Stats]:
        assert rows is not None
        stats, columns, total = [], batch.columns().values(), self._total
        for i, part in enumerate(rows.chunk(self._num_parts)):
            call = self._add.again if is_checked or i else self._add.checked
            stats.append(call([*columns, part], state.values, total, batch, part))
        norm = (self._descend.again if is_checked else self._descend.checked)([], state, total)
        return [{**of_part, **norm} for of_part in stats]


def _parts(batch: Batch, num_parts: int, rows: Tensor | None) -> list[Batch]:
    """Equal consecutive parts of some rows."""
    if rows is not None:
        return [batch[part] for part in rows.chunk(num_parts)]
    size = len(batch) // num_parts
    return [batch] if num_parts == 1 else [batch[i * size : (i + 1) * size] for i in range(num_parts)]


def _clipped(gradient: Tensor, max_norm: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient `[P]` scaled down to the norm that is allowed, and its norm before."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm
