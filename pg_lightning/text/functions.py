"""Reward functions that have a short name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pg_lightning.text import brackets, reasoning

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def exact_match(completions: Sequence[str], answer: Sequence[object], ignore_case: bool = False) -> list[float]:
    """1 where the completion is the `answer` of its prompt, but for surrounding space; else 0."""
    return [
        float(_plain(text, ignore_case) == _plain(right, ignore_case)) for text, right in _pairs(completions, answer)
    ]


def contains(completions: Sequence[str], answer: Sequence[object], ignore_case: bool = False) -> list[float]:
    """1 where the `answer` of the prompt is somewhere in the completion; else 0. A policy can learn to name many."""
    return [
        float(_plain(right, ignore_case) in _plain(text, ignore_case)) for text, right in _pairs(completions, answer)
    ]


def last_number(completions: Sequence[str], answer: Sequence[object]) -> list[float]:
    """1 where the last number in the completion equals the last one in the `answer` of the prompt; else 0."""
    return [float(None is not _number(text) == _number(str(right))) for text, right in _pairs(completions, answer)]


def _pairs(completions: Sequence[str], answer: Sequence[object]) -> list[tuple[str, object]]:
    return list(zip(completions, answer, strict=True))


def _plain(text: object, ignore_case: bool) -> str:
    return str(text).strip().casefold() if ignore_case else str(text).strip()


def _number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


SHORT: Mapping[str, Callable[..., object]] = {
    "exact_match": exact_match,
    "contains": contains,
    "last_number": last_number,
    "reasoning_gym": reasoning.score,
    "brackets": brackets.reward,
}
