"""The same game of two libraries is the same: masks, turns, ends, rewards and observations of random games."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from pg_lightning.games import Games, make_games
from pg_lightning.games.small import KuhnPoker

ZOO = "pettingzoo.classic:tictactoe_v3", "sync"
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
    for name in ("pettingzoo", "envpool")
}
GAMES = 60
ALL = np.array([0])


def begin(games: Games, seed: int) -> None:
    games.begin(ALL, [seed])
    assert not games.over[0]


def play(games: Games, action: int) -> None:
    games.play(ALL, np.array([action]))


def test_tic_tac_toe_by_hand():
    games = make_games("TicTacToe-v1", 1, None, "sync")
    begin(games, 0)
    for action in (0, 3, 1, 4):
        play(games, action)
    assert games.turn[0] == 0
    assert games.obs[0, ..., 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert games.obs[0, ..., 1].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    play(games, 2)
    assert games.over[0]
    assert games.rewards[0].tolist() == [1, -1]


@pytest.mark.parametrize(
    ("env_id", "backend", "other_id", "other_backend"),
    [
        pytest.param("TicTacToe-v1", "sync", *ZOO, marks=needs["pettingzoo"]),
        pytest.param("TicTacToe-v1", "sync", "TicTacToe-v1", "envpool", marks=needs["envpool"]),
        pytest.param(
            *("pettingzoo.classic:connect_four_v3", "sync", "ConnectFour-v1", "envpool"),
            marks=[needs["pettingzoo"], needs["envpool"]],
        ),
    ],
)
def test_random_games_agree(env_id, backend, other_id, other_backend):
    one, other = make_games(env_id, 1, None, backend), make_games(other_id, 1, None, other_backend)
    assert one.observation_space == other.observation_space
    assert one.action_space == other.action_space
    random, results = np.random.default_rng(0), set()
    for seed in range(GAMES):
        begin(one, seed)
        begin(other, seed)
        while not one.over[0]:
            assert one.turn == other.turn
            assert (one.masks == other.masks).all()
            assert (one.obs == other.obs).all()
            action = int(random.choice(np.flatnonzero(one.masks[0])))
            play(one, action)
            play(other, action)
            assert one.over == other.over
            assert (one.rewards == other.rewards).all()
        results.add(one.rewards[0, 0])
    assert results >= {1, -1}
    assert 0 in results or "connect" in env_id
    other.close()


@needs["envpool"]
def test_kuhn_poker_of_envpool_is_the_same_game():
    """There, action 0 bets and 1 passes, and the observation is the own card and the chips of both."""
    other, own = make_games("KuhnPoker-v1", 1, None, "envpool"), KuhnPoker(1)
    random, deals = np.random.default_rng(0), set()
    for seed in range(200):
        begin(own, seed)
        begin(other, seed)
        cards, moves = [-1, -1], []
        while not other.over[0]:
            seat = int(other.turn[0])
            cards[seat] = int(other.obs[0, :3].argmax())
            chips = other.obs[0, 3:5].argmax(), other.obs[0, 5:7].argmax()
            assert chips == (sum(moves[seat::2]), sum(moves[1 - seat :: 2]))
            assert own.turn[0] == seat
            assert other.masks.all()
            moves.append(int(random.integers(2)))
            if len(moves) == 2:  # both cards are known before the first result
                own.cards[0] = cards
            play(other, 1 - moves[-1])
            play(own, moves[-1])
            assert own.over == other.over
        deals.add(tuple(cards))
        assert own.rewards.tolist() == other.rewards.tolist()
    assert len(deals) == 6
    other.close()
