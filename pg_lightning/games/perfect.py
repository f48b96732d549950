"""Perfect play and exact values, to measure policies by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from pg_lightning.games.small import KuhnPoker, TicTacToe

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


class KuhnStrategy(NamedTuple):
    """The probabilities of a bet in Kuhn's poker, each `[3]` for jack, queen and king.

    Attributes:
        first: at the first move of the game.
        after_pass_bet: of the first seat, after its pass and a bet.
        after_pass: of the second seat.
        after_bet: of the second seat.
    """

    first: np.ndarray
    after_pass_bet: np.ndarray
    after_pass: np.ndarray
    after_bet: np.ndarray


def kuhn_situations() -> np.ndarray:
    """`[12, 7]` the observations of the probabilities in a `KuhnStrategy`, in its order."""
    moves = [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    return np.array([[*card, *made] for made in moves for card in np.eye(3, dtype=np.uint8)], np.uint8)


def kuhn_value(first: KuhnStrategy, second: KuhnStrategy) -> float:
    """The mean reward of the first seat, exact."""
    total = 0.0
    for one, other in KuhnPoker.DEALS:
        better = 1.0 if one > other else -1.0
        bets, calls = first.first[one], first.after_pass_bet[one]
        if_bet = second.after_bet[other] * 2 * better + (1 - second.after_bet[other])
        raises = second.after_pass[other]
        if_pass = (1 - raises) * better + raises * (calls * 2 * better - (1 - calls))
        total += bets * if_bet + (1 - bets) * if_pass
    return total / len(KuhnPoker.DEALS)


def kuhn_exploitability(strategy: KuhnStrategy) -> float:
    """What a best response wins on average against the strategy, over both seats; 0 in an equilibrium.

    Tries all pure strategies of a seat.
    """
    pure = np.array(list(product((0.0, 1.0), repeat=6))).reshape(-1, 2, 3)
    nothing = np.zeros(3)
    as_first = max(kuhn_value(KuhnStrategy(each[0], each[1], nothing, nothing), strategy) for each in pure)
    as_second = min(kuhn_value(strategy, KuhnStrategy(nothing, nothing, each[0], each[1])) for each in pure)
    return (as_first - as_second) / 2
