"""Tasks of reasoning-gym: procedural prompts whose answers are verified by the task itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol

from pg_lightning.envs.failures import deed_of
from pg_lightning.errors import UserError, one_line

PREFIX = "reasoning_gym:"
SEEDS = 2000
STRIDE = 2**20  # between seeds as the task knows them: item i is drawn from seed + i

Item = Mapping[str, object]


class Task(Protocol):
    """What is used of reasoning-gym's `ProceduralDataset`."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int) -> Item:
        """An item with `question`, `answer` and `metadata`."""
        ...

    def score_answer(self, answer: str | None, entry: Item) -> float:
        """The score of an answer, in [0, 1]."""
        ...


def task_prompts(name: str, task: str, arguments: Mapping[str, object]) -> list[dict[str, object]]:
    """The prompts of a task, with columns for the reward `reasoning_gym`.

    Args:
        name: the key in the config, for the error message.
        task: its name in reasoning-gym.
        arguments: of the task's configuration; `size` (500 by default) is the number of prompts, and `seed` (0 by
            default, at most 2,000) draws them. In reasoning-gym item i of seed s is mostly item i − 1 of seed s + 1.
            Here seed s is its seed 2²⁰·s, so that prompts of two seeds are drawn independently.

    Returns:
        mappings with `prompt`, `answer` (the one that the task gives; others may be right too), `metadata`, `question`,
        and `task`, from which the task can be made again.

    Raises:
        UserError: if reasoning-gym is not installed, has no such task, or the task refuses its arguments.
    """
    spec: dict[str, object] = {"class_path": PREFIX + task, "init_args": dict(arguments)}
    made = make_task(name, task, arguments)
    prompts: list[dict[str, object]] = []
    try:
        for i in range(len(made)):
            item = made[i]
            question, answer = str(item["question"]), item["answer"]
            columns = {"question": question, "answer": answer, "metadata": item.get("metadata", {}), "task": spec}
            prompts.append({"prompt": question, **columns})
    except Exception as error:
        raise UserError(f"{name}: reasoning_gym's {task} {deed_of(error)}") from error
    return prompts


def make_task(name: str, task: str, arguments: Mapping[str, object]) -> Task:
    """A task by its name; arguments as in `task_prompts`.

    Raises:
        UserError: as `task_prompts`.
    """
    create, known = _library(name)
    if task not in known:
        near = get_close_matches(task.partition("?")[0], known, n=3)
        cure = f"did you mean {' or '.join(near)}?" if near else f"there are {len(known)}, such as basic_arithmetic"
        how = f" (arguments belong in init_args, beside class_path: {PREFIX}TASK)" if "?" in task else ""
        raise UserError(f"{name}: reasoning_gym has no task {task!r}{how}; {cure}")
    options = [option.name for option in fields(known[task][1])]
    if unknown := [key for key in arguments if key not in options]:
        raise UserError(f"{name}.init_args: {task} has no option {unknown[0]!r}; it has {', '.join(options)}")
    size, seed = arguments.get("size", 500), arguments.get("seed", 0)
    for key, value, low, high in (("size", size, 1, STRIDE), ("seed", seed, 0, SEEDS)):
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name}.init_args.{key}: must be an integer between {low} and {high:,}, got {value!r}")
    try:
        return create(task, **{**arguments, "size": size, "seed": int(seed) * STRIDE})  # type: ignore[call-overload]
    except Exception as error:
        raise UserError(
            f"{name}.init_args: {task} refuses its arguments: {one_line(error) or deed_of(error)}"
        ) from error


def _library(name: str) -> tuple[Callable[..., Task], Mapping[str, tuple[type, type]]]:
    """reasoning-gym's function that makes a task, and its table of tasks."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        missing = getattr(error, "name", None) or "reasoning_gym"
        raise UserError(f'{name}: {missing} is not installed; pip install "pg_lightning[reasoning-gym]"') from error
    return create_dataset, DATASETS


@lru_cache(maxsize=16)
def _scorer(spec: str) -> Task:
    """The task that a column `task` describes, as JSON."""
    described = json.loads(spec)
    return make_task("data.prompts", described["class_path"].removeprefix(PREFIX), described["init_args"])


def score(
    completions: Sequence[str],
    question: Sequence[str],
    answer: Sequence[object],
    metadata: Sequence[object],
    task: Sequence[Mapping[str, object]],
) -> list[float]:
    """The scores by which the tasks verify answers, in [0, 1].

    The answer is the text in the last `<answer>…</answer>` of a completion; without one, all of it without surrounding
    space. An answer on which a task's own code raises is malformed and scores 0. Tasks whose answer is an expression
    let SymPy evaluate it: what the policy wrote is run by Python's `eval`.
    """
    scores = []
    for i, completion in enumerate(completions):
        entry = {"question": question[i], "answer": answer[i], "metadata": metadata[i]}
        scores.append(_score(_scorer(json.dumps(task[i], sort_keys=True)), _answer(completion), entry))
    return scores


def _score(task: Task, given: str, entry: Item) -> float:
    try:
        return float(task.score_answer(given, entry))
    except Exception:  # of a parser that met no answer of its form
        return 0.0


def _answer(completion: str) -> str:
    head, tag, _ = completion.rpartition("</answer>")
    return (head.rpartition("<answer>")[2] if tag and "<answer>" in head else completion).strip()
