"""Matches between players that do not learn."""

from __future__ import annotations

import numpy as np
import pytest
from odd_games import Opponent
from scripted_games import PlainGo

from pg_lightning.errors import UserError
from pg_lightning.games import make_games
from pg_lightning.games.contract import RESIGNS
from pg_lightning.games.match import play_match
from pg_lightning.games.opponents import RandomOpponent
from pg_lightning.games.perfect import TicTacToeMinimax


class Lowest(Opponent):
    """Plays the first legal action, or resigns where there are so few."""

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least, self.seats = least, []

    def begin(self, which, seats):
        self.seats += seats.tolist()

    def act(self, which, obs, masks, moves, generator):
        assert all(len(played) == 9 - mask.sum() for played, mask in zip(moves, masks[:, :9], strict=True))
        return np.where(masks.sum(1) <= self.least, RESIGNS, masks.argmax(1))


def tictactoe(num_games=7):
    return make_games("TicTacToe-v1", num_games, None, "sync")


def test_perfect_play_does_not_lose_and_its_results_are_of_the_first_seat():
    won, drawn, lost = play_match(tictactoe(), TicTacToeMinimax(), RandomOpponent(), 100, 0)
    assert (won > 90, lost) == (True, 0)
    assert won + drawn == 100
    assert play_match(tictactoe(), RandomOpponent(), TicTacToeMinimax(), 100, 0)[0] == 0
    assert play_match(tictactoe(), TicTacToeMinimax(), TicTacToeMinimax(), 20, 0).tolist() == [0, 20, 0]


def test_the_result_by_hand():
    """0, 1, 2, … in turn: seat 0 has 0, 2, 4, 6 and wins by the diagonal."""
    first, second = Lowest(), Lowest()
    assert play_match(tictactoe(), first, second, 10, 0).tolist() == [10, 0, 0]
    assert (first.seats, second.seats) == ([0] * 10, [1] * 10)


def test_who_resigns_loses():
    assert play_match(tictactoe(), Lowest(5), Lowest(), 10, 0).tolist() == [0, 0, 10]
    assert play_match(tictactoe(), Lowest(), Lowest(6), 10, 0).tolist() == [10, 0, 0]


def test_results_repeat_themselves():
    one = play_match(tictactoe(), RandomOpponent(), RandomOpponent("other"), 50, 3)
    assert (one == play_match(tictactoe(), RandomOpponent(), RandomOpponent("other"), 50, 3)).all()
    assert (one != play_match(tictactoe(), RandomOpponent(), RandomOpponent("other"), 50, 4)).any()


def test_an_illegal_move_is_one_line():
    with pytest.raises(UserError, match="opponent stubborn played the illegal move 0; legal were 1, 2, 3"):
        play_match(PlainGo(1, 3), Opponent(0), Opponent(0), 1, 0)
