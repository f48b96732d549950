"""Games with exact answers, in NumPy: all games of a batch move in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from pg_lightning.games.text import board


class SmallGames:
    """What the games of this file share: see `Games` for arguments and attributes.

    Args:
        num_games: G.
        obs_shape: of an observation.
        num_actions: A.
    """

    can_replay = True

    def __init__(self, num_games: int, obs_shape: tuple[int, ...], num_actions: int) -> None:
        self.num_games = num_games
        self.observation_space: spaces.Box = spaces.Box(0, 1, obs_shape, np.uint8)
        self.action_space: spaces.Discrete = spaces.Discrete(num_actions)
        self.obs = np.zeros((num_games, *obs_shape), np.uint8)
        self.masks = np.ones((num_games, num_actions), bool)
        self.turn = np.zeros(num_games, np.int64)
        self.rewards = np.zeros((num_games, 2))
        self.over = np.zeros(num_games, bool)

    def reseed(self, seed: int) -> None:
        """Nothing to do: each game has its own seed."""

    def close(self) -> None:
        """Nothing to end."""

    def _end(self, which: np.ndarray, rewards_of_first: np.ndarray) -> None:
        """Ends games with a result, `[K]` in the view of seat 0."""
        self.over[which] = True
        self.rewards[which, 0], self.rewards[which, 1] = rewards_of_first, -rewards_of_first


class TicTacToe(SmallGames):
    """Three in a row win 1. The observation `[3, 3, 2]` shows the own stones, then the opponent's."""

    LINES = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])

    def __init__(self, num_games: int) -> None:
        super().__init__(num_games, (3, 3, 2), 9)
        self._stones = np.zeros((num_games, 2, 9), bool)

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`; there is no chance."""
        self._stones[which], self.turn[which], self.over[which], self.rewards[which] = False, 0, False, 0.0
        self._show(which)

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`; action 3 i + j sets a stone in row i, column j."""
        movers = self.turn[which]
        self._stones[which, movers, actions] = True
        own = self._stones[which, movers]
        won = own[:, self.LINES].all(2).any(1)
        full = self._stones[which].any(1).all(1)
        self.rewards[which] = 0.0
        ended = won | full
        self._end(which[ended], np.where(won, 1.0 - 2.0 * movers, 0.0)[ended])
        self.turn[which] = 1 - movers
        self._show(which)

    def text(self, game: int, seat: int | None = None) -> str:
        """The board: x moves first."""
        first, second = self._stones[game].reshape(2, 3, 3)
        return board(first, second, num_actions=9)

    def _show(self, which: np.ndarray) -> None:
        stones, turn = self._stones[which], self.turn[which]
        own = np.arange(len(which))
        planes = np.stack([stones[own, turn], stones[own, 1 - turn]], -1)
        self.obs[which] = planes.reshape(-1, 3, 3, 2)
        self.masks[which] = ~stones.any(1)


class KuhnPoker(SmallGames):
    """Kuhn's poker (1950): three cards, one chip each, one bet of one chip.

    Action 0 passes (checks, or folds after a bet), 1 bets (or calls). The observation `[7]` is the own card (jack,
    queen, king) and, for each of the first two moves, whether it was made and was a pass or a bet. With the best play
    of both, the first seat loses 1/18 on average.
    """

    DEALS = np.array([[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]])

    def __init__(self, num_games: int) -> None:
        super().__init__(num_games, (7,), 2)
        self.cards = np.zeros((num_games, 2), np.int64)
        self._moves = np.zeros((num_games, 3), np.int64)  # 0 not made, 1 pass, 2 bet
        self._count = np.zeros(num_games, np.int64)

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`; the seed deals the cards."""
        self.cards[which] = self.DEALS[np.asarray(seeds) % 6]
        self._moves[which], self._count[which] = 0, 0
        self.turn[which], self.over[which], self.rewards[which] = 0, False, 0.0
        self._show(which)

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`."""
        count = self._count[which]
        self._moves[which, count] = actions + 1
        self._count[which] = count + 1
        first, second, third = self._moves[which].T
        showdown = ((first == 1) & (second == 1)) | ((first == 2) & (second == 2)) | (third == 2)
        second_folds, first_folds = (first == 2) & (second == 1), third == 1
        ended = showdown | second_folds | first_folds
        stake = 1.0 + ((second == 2) & (first == 2) | (third == 2))
        better = np.where(self.cards[which, 0] > self.cards[which, 1], 1.0, -1.0)
        result = np.where(showdown, stake * better, np.where(second_folds, 1.0, -1.0))
        self.rewards[which] = 0.0
        self._end(which[ended], result[ended])
        self.turn[which] = (count + 1) % 2
        self._show(which)

    def text(self, game: int, seat: int | None = None) -> str:
        """The cards, or that of a seat, and the moves."""
        cards = ["JQK"[card] for card in self.cards[game]]
        moves = [["pass", "bet"][move - 1] for move in self._moves[game] if move]
        seen = f"{cards[0]} against {cards[1]}" if seat is None else f"{cards[seat]} against an unknown card"
        return f"{seen}: {', '.join(moves) or 'no move'}"

    def _show(self, which: np.ndarray) -> None:
        turn = self.turn[which]
        obs = np.zeros((len(which), 7), np.uint8)
        rows = np.arange(len(which))
        obs[rows, self.cards[which, turn]] = 1
        for i in range(2):
            move = self._moves[which, i]
            obs[:, 3 + 2 * i], obs[:, 4 + 2 * i] = move == 1, move == 2
        self.obs[which] = obs


class MatchingPennies(SmallGames):
    """Seat 0 wins 1 if both chose the same side; seat 1, which does not see the choice, wins 1 if not.

    The observation `[2]` is the seat, one-hot.
    """

    def __init__(self, num_games: int) -> None:
        super().__init__(num_games, (2,), 2)
        self._chosen = np.zeros(num_games, np.int64)

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`."""
        self.turn[which], self.over[which], self.rewards[which] = 0, False, 0.0
        self._show(which)

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`."""
        is_second = self.turn[which] == 1
        second = which[is_second]
        self.rewards[which] = 0.0
        self._end(second, np.where(self._chosen[second] == actions[is_second], 1.0, -1.0))
        self._chosen[which[~is_second]] = actions[~is_second]
        self.turn[which] = 1 - self.turn[which]
        self._show(which)

    def text(self, game: int, seat: int | None = None) -> str:
        """Whose turn it is."""
        return f"seat {self.turn[game]} chooses"

    def _show(self, which: np.ndarray) -> None:
        self.obs[which] = np.eye(2, dtype=np.uint8)[self.turn[which]]
