"""Players that make no mistake, to measure others by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from pg_lightning.games.small import TicTacToe

LINES = [sum(1 << cell for cell in line) for line in TicTacToe.LINES.tolist()]
FULL = (1 << 9) - 1


class TicTacToeMinimax:
    """Plays tic-tac-toe perfectly: any of the best moves, each with the same probability.

    Args:
        num_games: not used, since it has no state.
    """

    name = "minimax"

    def __init__(self, num_games: int = 1) -> None:
        pass

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """See `Opponent`."""

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """See `Opponent`."""
        stones = obs.reshape(-1, 9, 2).astype(int) * (1 << np.arange(9))[:, None]
        chosen = [best_moves(own, others) for own, others in stones.sum(1).tolist()]
        numbers = torch.rand(len(chosen), generator=generator).tolist()
        return np.array([best[int(number * len(best))] for best, number in zip(chosen, numbers, strict=True)])

    def close(self) -> None:
        """See `Opponent`."""


@cache
def value(own: int, others: int) -> int:
    """The result of perfect play for the player to move: 1, 0 or −1. Stones are sets of bits."""
    if any(others & line == line for line in LINES):
        return -1
    if own | others == FULL:
        return 0
    return max(-value(others, own | 1 << cell) for cell in _free(own, others))


@cache
def best_moves(own: int, others: int) -> list[int]:
    """The moves after which perfect play has the result `value`."""
    return [cell for cell in _free(own, others) if -value(others, own | 1 << cell) == value(own, others)]


def _free(own: int, others: int) -> list[int]:
    return [cell for cell in range(9) if not (own | others) >> cell & 1]
