"""A task that ships with the package: close what is open, in a language of balanced brackets.

A prompt is the beginning of a balanced word and a bar, as `([]{(|`; a completion closes it, here `)})`. Every prompt
has one shortest right completion, and any other that makes the word balanced is right too.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

PAIRS = {"(": ")", "[": "]", "{": "}"}
BAR = "|"
CHARACTERS = "".join(PAIRS) + "".join(PAIRS.values()) + BAR
MAX_LENGTH = 8  # of a prompt, without the bar
MAX_OPEN = 5


def prompts(seed: int, count: int, held_out: bool = False) -> list[str]:
    """Prompts with 2 to 5 open brackets among 2 to 8 characters.

    Args:
        seed: of the draws.
        count: number of prompts; short ones occur more than once.
        held_out: whether they are of the fifth of all prompts that `corpus` and other calls without it leave out.
    """
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        word, still_open = "", ""
        for _ in range(rng.randint(2, MAX_LENGTH)):
            if still_open and (len(still_open) == MAX_OPEN or rng.random() < 0.3):
                word, still_open = word + PAIRS[still_open[-1]], still_open[:-1]
            else:
                bracket = rng.choice("".join(PAIRS))
                word, still_open = word + bracket, still_open + bracket
        if len(still_open) >= 2 and (zlib.crc32(word.encode()) % 5 == 0) == held_out:
            drawn.append(word + BAR)
    return drawn


def answer(prompt: str) -> str:
    """The shortest right completion."""
    still_open: list[str] = []
    for bracket in prompt.removesuffix(BAR):
        if bracket in PAIRS:
            still_open.append(bracket)
        else:
            still_open.pop()
    return "".join(PAIRS[bracket] for bracket in reversed(still_open))


def corpus(seed: int, count: int, right: float = 0.35) -> list[tuple[str, str]]:
    """Prompts and completions; a share `right` closes the brackets, the others have closing brackets at random.

    A model that learns the text solves the task about as often as the text does.
    """
    rng = random.Random(f"corpus {seed}")
    pairs = []
    for prompt in prompts(seed, count):
        completion = answer(prompt)
        if rng.random() >= right:
            completion = "".join(rng.choice("".join(PAIRS.values())) for _ in completion)
        pairs.append((prompt, completion))
    return pairs


def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 if prompt and completion are a balanced word; else half the share of open brackets closed before an error."""
    return [_reward(answer(prompt), completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _reward(expected: str, completion: str) -> float:
    waiting, closed = list(reversed(expected)), 0
    for character in completion:
        if character in PAIRS:
            waiting.append(PAIRS[character])
        elif waiting and waiting[-1] == character:
            waiting.pop()
            closed = max(closed, len(expected) - len(waiting))
        else:
            return 0.5 * closed / len(expected)
    return 0.5 * closed / len(expected) if waiting else 1.0
