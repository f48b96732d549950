"""Seeds: a separate one for each source of randomness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Seeds = Sequence[int | None] | int | None  # one for each environment, or one for all


def env_seed(seed: int, *key: int) -> int:
    """A 31-bit seed that differs, except by chance, from the seeds of all other keys of this run and of other runs.

    Args:
        seed: of the run.
        key: the purpose of the seed, for example (stream, rank, env index).
    """
    return int(np.random.SeedSequence(entropy=seed, spawn_key=key).generate_state(1)[0] >> 1)


def one_seed(seeds: Seeds) -> int | None:
    """The seed of environments that share a random stream: the one for all, or the first of several."""
    return seeds if isinstance(seeds, int) or seeds is None else seeds[0]
