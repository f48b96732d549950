"""Sources of prompts and reward functions of the tests of text, good and bad."""

import numpy as np
import torch

PROMPTS = ["one", {"prompt": "two"}]
NUMBER = 7


def some(count=3, say="p"):
    return [{"prompt": f"{say}{i}", "answer": str(i)} for i in range(count)]


def endless():
    while True:
        yield "again"


def breaks():
    yield "first"
    raise KeyError("second")


def fails():
    raise RuntimeError("no\nsource")


class Source:
    def __init__(self, count: int = 2):
        self.count = count

    def __iter__(self):
        return iter([f"from {i}" for i in range(self.count)])


def length(completions):
    return [len(text) for text in completions]


def everything(**columns):
    """Says what it was given."""
    SEEN.clear()
    SEEN.update(columns)
    return [1.0] * len(columns["completions"])


SEEN: dict = {}


def scaled(completions, answer, factor=1.0):
    return [factor * len(text) for text in completions]


def by_numpy(completions):
    return np.arange(len(completions))


def by_tensor(completions):
    return torch.arange(len(completions), dtype=torch.float64, requires_grad=True)


def by_flags(completions):
    return [text.startswith("g") for text in completions]


class Above:
    def __init__(self, least: int) -> None:
        if least < 0:
            raise ValueError("least < 0")
        self.least = least

    def __call__(self, prompts, completions):
        return [float(len(text) >= self.least) for text in completions]


class NotCallable:
    pass


def divides(completions):
    return [1 / len(text) for text in completions]


def only_together(completions):
    if len(completions) > 1:
        raise OSError("too many")
    return [0.0]


def exits(completions):
    raise SystemExit(3)


def nan_for_long(completions):
    return [float("nan") if len(text) > 3 else 0.0 for text in completions]


def huge(completions):
    return [1e300] * len(completions)


def too_few(completions):
    return [0.0] * (len(completions) - 1)


def one_number(completions):
    return 1.0


def column_vector(completions):
    return np.zeros((len(completions), 1))


def none_for_some(completions):
    return [None if len(text) > 3 else 1.0 for text in completions]


def texts(completions):
    return ["1.0"] * len(completions)


def nothing(completions):
    pass


async def later(completions):
    return [0.0] * len(completions)
