"""The exact values, against what is known of these games."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pg_lightning.games import make_games
from pg_lightning.games.perfect import (
    KuhnStrategy,
    TicTacToeMinimax,
    best_moves,
    kuhn_exploitability,
    kuhn_situations,
    kuhn_value,
    value,
)


def equilibrium(alpha: float) -> KuhnStrategy:
    """Kuhn 1950: the first seat may bluff with the jack with any probability α up to 1/3."""
    return KuhnStrategy(
        np.array([alpha, 0, 3 * alpha]),
        np.array([0, alpha + 1 / 3, 1]),
        np.array([1 / 3, 0, 1]),
        np.array([0, 1 / 3, 1]),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1 / 3])
def test_equilibria_of_kuhns_poker(alpha):
    strategy = equilibrium(alpha)
    assert kuhn_value(strategy, strategy) == pytest.approx(-1 / 18)
    assert kuhn_exploitability(strategy) == pytest.approx(0, abs=1e-12)


def test_the_exploitability_of_uniform_play_is_that_of_the_literature():
    uniform = KuhnStrategy(*np.full((4, 3), 0.5))
    assert 2 * kuhn_exploitability(uniform) == pytest.approx(0.9166666)  # OpenSpiel's test of nash_conv
    assert kuhn_exploitability(equilibrium(0.0)._replace(after_bet=np.array([0, 0, 1]))) > 0.01


def test_the_value_is_the_mean_of_played_games():
    """Ties the formula to the game that is learned, with other strategies on both seats."""
    random = np.random.default_rng(0)
    strategies = [KuhnStrategy(*random.random((4, 3))) for _ in range(2)]
    games = make_games("KuhnPoker-v0", 40_000, None, "sync")
    everywhere = np.arange(games.num_games)
    games.begin(everywhere, everywhere.tolist())
    total, situations = np.zeros(games.num_games), kuhn_situations()
    while len(which := everywhere[~games.over]):
        index = (games.obs[which][:, None] == situations).all(2).argmax(1)
        seats = games.turn[which]
        assert ((index < 6) == (seats == 0)).all()
        bet = np.stack([np.concatenate(strategy) for strategy in strategies])[seats, index]
        games.play(which, (random.random(len(which)) < bet).astype(int))
        total[which] += games.rewards[which, 0]
    assert total.mean() == pytest.approx(kuhn_value(*strategies), abs=4 * total.std() / 200)


def test_perfect_tic_tac_toe_is_a_draw():
    assert value(0, 0) == 0
    assert best_moves(0, 0) == list(range(9))
    assert best_moves(1 << 0, 1 << 4) != list(range(9))


def test_minimax_never_loses_and_wins_often_against_random_play():
    games = make_games("TicTacToe-v1", 300, None, "sync")
    everywhere = np.arange(games.num_games)
    generator = torch.Generator().manual_seed(0)
    player = TicTacToeMinimax()
    games.begin(everywhere, everywhere.tolist())
    results = np.zeros(games.num_games)
    seats = everywhere % 2
    while len(which := everywhere[~games.over]):
        perfect = player.act(which, games.obs[which], games.masks[which], [], generator)
        anyhow = torch.multinomial(torch.from_numpy(games.masks[which]).float(), 1, generator=generator)[:, 0].numpy()
        games.play(which, np.where(games.turn[which] == seats[which], perfect, anyhow))
        results[which] += games.rewards[which, seats[which]]
    assert results.min() == 0
    assert results.mean() > 0.8
