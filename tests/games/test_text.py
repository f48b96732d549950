"""Positions as text, which a person can read."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from pg_lightning.games import make_games
from pg_lightning.games.text import move_name
from pg_lightning.games.written import WrittenGames

ZOO = pytest.mark.skipif(importlib.util.find_spec("pettingzoo") is None, reason="needs PettingZoo")
POOL = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs EnvPool")
CONNECT_FOUR = """\
. . . . . . .
. . . . . . .
. . . . . . .
. . . . . . .
. . . o . . .
. . . x . . x
0 1 2 3 4 5 6"""
GO = """\
  A B C D E F G H J
9 x . . . . . . . .
8 o . . . . . . . .
7 . . . . . . . . .
6 . . . . . . . . .
5 . . . . . . . . .
4 . . . . . . . . .
3 . . . . . . . . .
2 . . . . . . . . .
1 . . . . . . . . x"""
HEX = """\
     0  1  2  3  4  5  6  7  8  9 10
  0  .  x  .  .  .  .  .  .  .  .  .
 11   .  .  o  .  .  .  .  .  .  .  ."""


def after(env_id, moves, backend="sync", **arguments):
    games = make_games(env_id, 2, arguments or None, backend)
    games.begin(np.array([0, 1]), [0, 0])
    for move in moves:
        games.play(np.array([1]), np.array([move]))
    return games


@pytest.mark.parametrize(
    ("env_id", "backend", "arguments", "moves", "text"),
    [
        ("TicTacToe-v1", "sync", {}, [4, 0, 5], "  0 1 2\n0 o . .\n3 . x x\n6 . . ."),
        pytest.param(
            *("pettingzoo.classic:tictactoe_v3", "sync", {}, [4, 0, 5], "  0 1 2\n0 o . .\n3 . x x\n6 . . ."),
            marks=ZOO,
        ),
        pytest.param("pettingzoo.classic:connect_four_v3", "sync", {}, [3, 3, 6], CONNECT_FOUR, marks=ZOO),
        pytest.param("ConnectFour-v1", "envpool", {}, [3, 3, 6], CONNECT_FOUR, marks=POOL),
        pytest.param("pettingzoo.classic:go_v5", "sync", {"board_size": 9}, [0, 9, 80], GO, marks=ZOO),
        pytest.param("pettingzoo.classic:go_v5", "sync", {"board_size": 9}, [0, 9, 80, 81], GO, marks=ZOO),
        pytest.param("Go9x9-v1", "envpool", {}, [0, 9, 80], GO, marks=POOL),
        pytest.param("Go9x9-v1", "envpool", {}, [0, 9, 80, 81, 81], GO, marks=POOL),
        pytest.param("Hex-v1", "envpool", {}, [1, 13], HEX, marks=POOL),
        pytest.param("TicTacToe-v1", "envpool", {}, [4, 0, 5], "  0 1 2\n0 o . .\n3 . x x\n6 . . .", marks=POOL),
    ],
)
def test_boards(env_id, backend, arguments, moves, text):
    games = after(env_id, moves, backend, **arguments)
    for seat in (None, 0, 1):
        assert games.text(1, seat).startswith(text)
    games.close()


@pytest.mark.parametrize(
    ("env_id", "last"),
    [("TicTacToe-v1", "0 x x x"), pytest.param("pettingzoo.classic:tictactoe_v3", "0 x x x", marks=ZOO)],
)
def test_the_last_position_of_a_game_is_shown(env_id, last):
    games = after(env_id, [0, 3, 1, 4, 2])
    assert games.over[1]
    assert games.text(1).splitlines()[1] == last


def test_kuhn_poker_shows_a_seat_its_own_card_only():
    games = after("KuhnPoker-v0", [0, 1])
    both, first, second = games.text(1), games.text(1, 0), games.text(1, 1)
    cards, moves = both.split(": ")
    assert moves == "pass, bet"
    assert sorted({*cards.split(" against ")}) in (["J", "K"], ["J", "Q"], ["K", "Q"])
    assert first == f"{cards[0]} against an unknown card: pass, bet"
    assert second == f"{cards[-1]} against an unknown card: pass, bet"


@POOL
def test_kuhn_poker_of_envpool_shows_a_seat_its_own_card_only():
    games = after("KuhnPoker-v1", [0], "envpool")
    both = games.text(1)
    assert both.endswith(": 2 and 1 chips")
    assert games.text(1, 0) == f"{both[0]} against an unknown card: 2 and 1 chips"
    assert games.text(1, 1) == f"{both.split(' against ')[1][0]} against an unknown card: 2 and 1 chips"


def test_names_of_moves():
    assert [move_name(action, (9, 9, 17), 82) for action in (0, 80, 81)] == ["A9", "J1", "pass"]
    assert move_name(4, (3, 3, 2), 9) == "4"


def test_written_games_are_the_games():
    games = WrittenGames(make_games("TicTacToe-v1", 2, None, "sync"))
    games.begin(np.array([0, 1]), [0, 0])
    for move in (4, 0, 5):
        games.play(np.array([1]), np.array([move]))
    assert games.moves == [[], [4, 0, 5]]
    assert [len(pages) for pages in games.pages] == [1, 4]
    assert games.pages[1][0] == "  0 1 2\n0 . . .\n3 . . .\n6 . . ."
    assert games.pages[1][3] == "3. first: 5\n  0 1 2\n0 o . .\n3 . x x\n6 . . ."
    games.begin(np.array([1]), [0])
    assert games.moves[1] == []
    assert len(games.pages[1]) == 1
