"""The precision of observations: float32, and float64 where training computes in it and the numbers need it."""

from __future__ import annotations

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

WHOLE = 2**24  # float32 cannot tell this number and the next whole number apart


def observation_dtype(dtype: np.dtype | None, double: bool) -> np.dtype:
    """The dtype in which observations are kept: bytes as they are, all others as floating point.

    Args:
        dtype: of the observation space.
        double: whether the policy computes in float64.
    """
    if dtype == np.uint8:
        return np.dtype(np.uint8)
    return np.dtype(np.float64 if double and not _fits(dtype) else np.float32)


class Resolution:
    """Reports, once, observations that float32 cannot resolve.

    Args:
        dtype: of the observation space.
        kept: the dtype in which observations are kept.

    Attributes:
        may_suffer: whether later observations must be checked too: their dtype has more digits than the one that is
            kept.
    """

    def __init__(self, dtype: np.dtype | None, kept: np.dtype) -> None:
        self._is_float32 = kept == np.float32
        self.may_suffer = self._is_float32 and not _fits(dtype)

    def check(self, obs: np.ndarray) -> None:
        """Observations `[N, *obs]` as the environment gave them; infinite and NaN entries are reported elsewhere."""
        if not self._is_float32 or not obs.size:
            return
        largest = np.max(np.abs(obs), where=np.isfinite(obs), initial=0)
        if largest > WHOLE:
            self._is_float32 = self.may_suffer = False
            rank_zero_warn(
                f"data.env_id: observations reach {largest:.3g}, and policies compute in float32, which cannot tell "
                f"whole numbers above {WHOLE:,} apart; subtract a constant or scale them in the environment, or give "
                "it a float64 space and set trainer.precision: 64-true"
            )


def _fits(dtype: np.dtype | None) -> bool:
    """Whether float32 resolves all numbers of a dtype."""
    return dtype is not None and np.can_cast(dtype, np.float32)
