"""The interface of two-player zero-sum games, played in batches, and of the players that are not the learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces

BOTH = -1  # as a learner's seat: the learner plays both
RESIGNS = -1  # as a move of an opponent: it loses 1, and the game is over


class Matchup(NamedTuple):
    """Who plays a game.

    Attributes:
        opponent: of the learner; None if it plays both seats.
        seat: of the learner, or `BOTH`.
    """

    opponent: Opponent | None
    seat: int


class Games(Protocol):
    """G games that are played in parallel, each at its own pace.

    Seat 0 makes the first move of a game. Chance (cards, dice) belongs to the game and follows its seed.

    Attributes:
        num_games: G.
        observation_space: of the seat to move.
        action_space: of both seats.
        obs: `[G, *obs]` as the seat to move sees the game; overwritten by the next move.
        masks: `[G, A]` bool, the legal actions of the seat to move.
        turn: `[G]` int64, the seat to move, 0 or 1.
        rewards: `[G, 2]` float64, of both seats for the last move.
        over: `[G]` bool; the game has ended and waits for `begin`.
        can_replay: whether a game repeats itself when it begins with the same seed and the same moves are played.
    """

    num_games: int
    observation_space: spaces.Box
    action_space: spaces.Discrete
    obs: np.ndarray
    masks: np.ndarray
    turn: np.ndarray
    rewards: np.ndarray
    over: np.ndarray
    can_replay: bool

    def reseed(self, seed: int) -> None:
        """Restarts the chance of games that cannot take a seed each; all games must begin then."""
        ...

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """Starts new games where `which` `[K]` int says, with a seed for each."""
        ...

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """Plays one legal move, `actions` `[K]`, in the games `which` `[K]`, which are not over."""
        ...

    def text(self, game: int, seat: int | None = None) -> str:
        """The position of a game for a reader: all of it, or what a seat may see."""
        ...

    def close(self) -> None:
        """Ends what the games have started."""
        ...


class Opponent(Protocol):
    """A player of any number of games, whose state, if it has one, is kept by game.

    Attributes:
        name: for metrics and messages.
    """

    name: str

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """New games in `which` `[K]` int, in which it has `seats` `[K]`."""
        ...

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """Its moves `[K]` in the games `which` `[K]`, or `RESIGNS`.

        Args:
            which: indices of the games.
            obs: `[K, *obs]` as it sees them.
            masks: `[K, A]` bool, the legal actions.
            moves: of both seats in each of these games, from the first.
            generator: for sampled moves.
        """
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...
