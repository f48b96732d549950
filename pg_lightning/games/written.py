"""Games that write down their positions and moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pg_lightning.games.contract import Games
from pg_lightning.games.text import move_name

SEATS = "first", "second"


class WrittenGames:
    """Games as they are, and what happens in them as text: see `Games` for the other attributes.

    Args:
        games: to be played.

    Attributes:
        pages: of each game, the position at its beginning, and each move with the position after it.
        moves: of each game, the actions from the first.
    """

    def __init__(self, games: Games) -> None:
        self._games = games
        self.num_games, self.can_replay = games.num_games, games.can_replay
        self.observation_space, self.action_space = games.observation_space, games.action_space
        self.obs, self.masks, self.turn = games.obs, games.masks, games.turn
        self.rewards, self.over = games.rewards, games.over
        self.pages: list[list[str]] = [[] for _ in range(games.num_games)]
        self.moves: list[list[int]] = [[] for _ in range(games.num_games)]

    def reseed(self, seed: int) -> None:
        """See `Games`."""
        self._games.reseed(seed)

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`."""
        self._games.begin(which, seeds)
        for n in which.tolist():
            self.pages[n], self.moves[n] = [self.text(n)], []

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`."""
        movers = self.turn[which].tolist()
        self._games.play(which, actions)
        for n, mover, action in zip(which.tolist(), movers, actions.tolist(), strict=True):
            self.moves[n].append(action)
            self.pages[n].append(f"{len(self.moves[n])}. {SEATS[mover]}: {self.name_of(action)}\n{self.text(n)}")

    def text(self, game: int, seat: int | None = None) -> str:
        """See `Games`."""
        return self._games.text(game, seat)

    def name_of(self, action: int) -> str:
        """The name of a move."""
        return move_name(action, self.obs.shape[1:], self.masks.shape[1])

    def close(self) -> None:
        """See `Games`."""
        self._games.close()
