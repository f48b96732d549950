"""Rewards of completions: the weighted sum of functions that the user gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError
from pg_lightning.text.calls import arguments_for, parameters, reported, takes_any
from pg_lightning.text.functions import SHORT
from pg_lightning.text.prompts import Prompt, shortened

Function = Callable[..., object]
KEYS = {"class_path", "init_args", "name", "weight"}
OURS = ("prompts", "completions")
FORMS = f"give {', '.join(SHORT)}, or the class path module.name of a function"


class Rewards:
    """One reward per completion: the weighted sum of functions.

    A function is called as `function(prompts=[…], completions=[…], **columns)`, with lists of the N texts and of the
    columns of their prompts, only those that its signature names unless it has `**kwargs`, and returns N numbers. A
    class is constructed first, with `init_args`; those of a function are given at each call. A text metric of
    torchmetrics is computed for each completion alone, against the column `answer`.

    Args:
        reward: a short name of `functions.SHORT`, a class path, or `{class_path, init_args, name, weight}`; or a list
            of them. A name is the last part of the class path unless it is given, a weight is 1.

    Attributes:
        names: of the functions, in their order.

    Raises:
        UserError: if there is no such function, it has no such parameter, its construction raises, two have one name,
            or a weight is not finite.
    """

    def __init__(self, reward: ClassPath | Sequence[ClassPath]) -> None:
        entries = list(reward) if isinstance(reward, (list, tuple)) else [reward]
        if not entries:
            raise UserError(f"data.reward: {FORMS}")
        self._parts = [_Part(entry) for entry in entries]
        self.names = [part.name for part in self._parts]
        if twice := next((name for name in self.names if self.names.count(name) > 1), ""):
            raise UserError(
                f"data.reward: two functions have the name {twice!r}; give one a name of its own, {{class_path, name}}"
            )

    def require_columns(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that lack a column, before anything is generated for them.

        Raises:
            UserError: naming the function and the column.
        """
        for part in self._parts:
            part.columns(prompts[:1])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rewards of N completions.

        Args:
            prompts: the prompt of each completion, `[N]`.
            completions: `[N]` without the prompts.

        Returns:
            the weighted sums, `[N]` float32, and by name what each function returned, `[N]` float32 without its
            weight; all on the CPU.

        Raises:
            UserError: in one line that names the function, and the prompt if it is about one: if a function lacks a
                column, raises, or does not return one finite number for each completion.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts of {len(completions)} completions")
        parts = {part.name: part(prompts, completions) for part in self._parts}
        total = torch.zeros(len(completions), dtype=torch.float32)
        for part in self._parts:
            total += part.weight * parts[part.name]
        if not total.isfinite().all():
            where = int((~total.isfinite()).nonzero()[0])
            raise UserError(f"data.reward: the weighted sum is {total[where]:g}{_about(prompts, completions, where)}")
        return total, parts


class _Part:
    """A function with its name and its weight."""

    def __init__(self, entry: object) -> None:
        spec = {"class_path": entry} if isinstance(entry, str) else entry
        if not isinstance(spec, Mapping):
            raise UserError(f"data.reward: {shortened(spec)} is no function; {FORMS}")
        if unknown := spec.keys() - KEYS:
            raise UserError(
                f"data.reward: unknown key {sorted(map(str, unknown))[0]!r}; it has class_path, init_args, name, weight"
            )
        path = spec.get("class_path")
        if not isinstance(path, str) or not path:
            raise UserError(f"data.reward: class_path is missing; {FORMS}")
        name, weight, arguments = spec.get("name"), spec.get("weight", 1.0), spec.get("init_args") or {}
        self.name = path.rpartition(".")[2] if name is None else str(name)
        if not self.name or not all(character.isalnum() or character in "_-." for character in self.name):
            raise UserError(
                f"data.reward: name: {self.name!r} is part of a metric's name; use letters, digits, _, - and ."
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise UserError(f"data.reward: weight: must be a finite number, got {weight!r} for {self.name}")
        if not isinstance(arguments, Mapping):
            raise UserError(f"data.reward: init_args: must be a mapping of arguments, got {shortened(arguments)}")
        self.weight = float(weight)
        self._function = _function(path, dict(arguments))
        self._fixed = dict(arguments) if isinstance(self._function, partial) else {}  # not taken from columns
        self._known = parameters(self._function)

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, list[object]]:
        """The columns that the function is given, each a list of N."""
        given: dict[str, list[object]] = {
            name: [prompt.fields.get(name) for prompt in prompts]
            for name in (prompts[0].fields if prompts else ())
            if name not in self._fixed
        }
        if self._known is None or not prompts:
            return given
        needed = [name for name, parameter in self._known.items() if parameter.default is inspect.Parameter.empty]
        needed = [name for name in needed if self._known[name].kind is not inspect.Parameter.VAR_KEYWORD]
        if missing := [name for name in needed if name not in given and name not in OURS]:
            columns = f"their columns are {', '.join(given)}" if given else "they have no columns beside prompt"
            raise UserError(
                f"data.reward: {self.name} needs the column {missing[0]!r}, which the prompts (data.prompts) lack; "
                f"{columns}"
            )
        return given if takes_any(self._known) else {name: given[name] for name in self._known if name in given}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Tensor:
        """`[N]` float32."""
        if not completions:
            return torch.zeros(0)
        try:
            with reported(f"data.reward: {self.name}"):
                result = self._call(prompts, completions)
        except UserError as error:
            raise self._named(error, prompts, completions) from error.__cause__
        values = _numbers(self.name, result, len(completions))
        if not values.isfinite().all():
            where = int((~values.isfinite()).nonzero()[0])
            raise UserError(
                f"data.reward: {self.name} returned {values[where]:g}{_about(prompts, completions, where)}; return a "
                "finite number"
            )
        return values

    def _call(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> object:
        given: dict[str, object] = {**self.columns(prompts)}
        texts = {"prompts": [prompt.text for prompt in prompts], "completions": list(completions)}
        known = self._known
        every = known is None or takes_any(known)
        given.update((name, value) for name, value in texts.items() if every or name in (known or ()))
        return self._function(**given)

    def _named(self, error: UserError, prompts: Sequence[Prompt], completions: Sequence[str]) -> UserError:
        """The error, with the first completion for which the function raises when it is called for that one alone."""
        if error.__cause__ is None:
            return error
        for where, prompt in enumerate(prompts):
            try:
                with reported(""):
                    self._call([prompt], [completions[where]])
            except UserError:
                return UserError(f"{error}{_about(prompts, completions, where)}")
        return UserError(f"{error} for {len(completions)} completions together, and for none of them alone")


def _function(path: str, arguments: dict[str, object]) -> Function:
    """The function, or the instance of the class, at a class path."""
    if "." not in path and path not in SHORT:
        near = "".join(f"; did you mean {name}?" for name in get_close_matches(path, SHORT, n=1))
        raise UserError(f"data.reward: no function {path!r}{near or f'; {FORMS}'}")
    with reported(f"data.reward: {path}"):
        found, _ = resolve("data.reward", path, SHORT)
    if not callable(found):
        raise UserError(f"data.reward: {path} is no function but {type(found).__name__}")
    arguments = arguments_for("data.reward", path, found, arguments)
    if not isinstance(found, type):
        return partial(found, **arguments) if arguments else found
    with reported(f"data.reward: {path}"):
        made = found(**arguments)
    if isinstance(made, Metric):
        return partial(_by_metric, made)
    if not callable(made):
        raise UserError(f"data.reward: {path} has no method __call__, which a reward needs")
    return made


def _by_metric(metric: Metric, completions: Sequence[str], answer: Sequence[object]) -> list[object]:
    """The value of a metric for each completion alone."""
    values = []
    for completion, right in zip(completions, answer, strict=True):
        metric.reset()
        metric.update([completion], [str(right)])
        values.append(metric.compute())
    metric.reset()
    return values


def _numbers(name: str, result: object, count: int) -> Tensor:
    """What a function returned, `[N]` float32."""
    if inspect.iscoroutine(result):
        result.close()  # or Python warns that nobody awaited it
    values = result.tolist() if isinstance(result, (Tensor, np.ndarray)) else result
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Collection):
        raise UserError(
            f"data.reward: {name} returned {_what(values)}; return a number for each of {count} completions"
        )
    numbers = []
    for value in values:
        try:
            numbers.append(float("a string" if isinstance(value, str) else value))
        except (TypeError, ValueError, RuntimeError):
            raise UserError(
                f"data.reward: {name} returned {_what(value)} among its values; return a number for each completion"
            ) from None
    if len(numbers) != count:
        raise UserError(
            f"data.reward: {name} returned {len(numbers)} values for {count} completions; return one for each"
        )
    return torch.tensor(numbers, dtype=torch.float64).float()


def _what(value: object) -> str:
    """A value of the wrong type, in short."""
    return f"{type(value).__name__} {shortened(value, 30)}" if isinstance(value, str) else type(value).__name__


def _about(prompts: Sequence[Prompt], completions: Sequence[str], where: int) -> str:
    """Which completion an error is about."""
    return f" for the prompt {prompts[where].shortened()} and the completion {shortened(completions[where])}"
