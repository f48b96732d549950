"""Seeds: one for each source of randomness, shared with no other."""

from __future__ import annotations

import numpy as np


def env_seed(seed: int, *key: int) -> int:
    """A 31-bit seed that no other key of this run, and no key of another run, shares but by chance.

    Args:
        seed: of the run.
        key: what the seed is for, for example (stream, rank, env index).
    """
    return int(np.random.SeedSequence(entropy=seed, spawn_key=key).generate_state(1)[0] >> 1)
