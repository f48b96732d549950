"""The global random generators of this process: Python's, NumPy's and torch's.

This package draws only the order of minibatches from them, but environments, wrappers and policies may draw anything. A
forked or launched process starts with a copy of another's generators; here every process of a run gets its own. Their
seeds depend on the seed of the run and on the key of the process: its rank, and the number of each fork that led to it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pg_lightning.torch_private import seed_keeping_initial

NumpyState = tuple[str, np.ndarray, int, int, float]  # name, keys, position, and a second normal number
States = tuple[tuple[object, ...], NumpyState, torch.Tensor]  # of the three generators
GLOBALS = 7  # the stream of these seeds, after the streams of the datamodule


class _Process:
    """This process.

    Attributes:
        key: see above.
        forks: number of processes forked under this key.
        order: draws the order of minibatches, on ranks other than 0.
    """

    key: tuple[int, ...] = (0,)
    forks = 0
    order: torch.Generator | None = None


def key_of_fork() -> tuple[int, ...]:
    """The key of the process that is forked next."""
    _Process.forks += 1
    return (*_Process.key, _Process.forks)


def name_process(*key: int) -> None:
    """Gives this process a key, from which those of its forks follow; its generators stay as they are."""
    _Process.key, _Process.forks = key, 0


def enter_process(*key: int, torch_too: bool = True) -> None:
    """Gives this process a key, and generators of its own. `torch.initial_seed()` remains the seed of the run.

    Args:
        key: of the process.
        torch_too: also torch's generator.
    """
    name_process(*key)
    seed_generators(torch.initial_seed(), *key, torch_too=torch_too)


def enter_rank(rank: int) -> None:
    """Gives a launched process its own generators, once; rank 0 keeps those that it has.

    The order of minibatches is drawn from the generator that the process was launched with: see `order_generator`.
    """
    if rank and _Process.order is None:
        _Process.order = torch.Generator()
        _Process.order.set_state(torch.get_rng_state())
        enter_process(rank)


def order_generator() -> torch.Generator | None:
    """The generator of the order of minibatches; None for torch's global one."""
    return _Process.order


def seed_generators(seed: int, *key: int, torch_too: bool = True) -> None:
    """Seeds Python's, NumPy's and torch's global generator, each with its own number.

    Args:
        seed: of the run, or of an episode.
        key: of the process.
        torch_too: also torch's generator.
    """
    words = np.random.SeedSequence(seed, spawn_key=(GLOBALS, *key)).generate_state(3)
    ours, numpys, torchs = words.tolist()
    random.seed(ours)
    np.random.seed(numpys)  # noqa: NPY002 - environments may draw from it
    if torch_too:
        seed_keeping_initial(torchs)


class OwnStream:
    """A stream of its own for a part of the work of this process: the global generators follow it while it is active.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        outer = global_states()
        seed_generators(seed)
        self._states = global_states()
        set_global_states(outer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context, Python's, NumPy's and torch's global generators continue this stream."""
        outer = global_states()
        set_global_states(self._states)
        try:
            yield
        finally:
            self._states = global_states()
            set_global_states(outer)


def global_states() -> States:
    """The states of Python's, NumPy's and torch's global generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # type: ignore[return-value]  # noqa: NPY002


def set_global_states(states: States) -> None:
    """Restores the result of `global_states`."""
    ours, numpys, torchs = states
    random.setstate(ours)
    np.random.set_state(numpys)  # noqa: NPY002
    torch.set_rng_state(torchs)
