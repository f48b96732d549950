"""Elo ratings: the formula for two players, known ratings from many games, and intervals that cover them."""

from __future__ import annotations

import numpy as np
import pytest

from pg_lightning.analysis.elo import PRIOR, ratings


def results_of(true: np.ndarray, games: int, seed: int = 0, draws: float = 0.0) -> np.ndarray:
    """Games of all pairs from both seats."""
    random, P = np.random.default_rng(seed), len(true)
    results = np.zeros((P, P, 3), int)
    for i in range(P):
        for j in range(P):
            if i != j:
                win = 1 / (1 + 10 ** ((true[j] - true[i]) / 400))
                share = [win * (1 - draws), draws, (1 - win) * (1 - draws)]
                results[i, j] = random.multinomial(games, share)
    return results


@pytest.mark.parametrize(("won", "drawn", "lost"), [(30, 0, 10), (10, 20, 10), (100, 0, 0), (3, 5, 40)])
def test_two_players_have_the_difference_of_the_formula(won, drawn, lost):
    results = np.zeros((2, 2, 3), int)
    results[0, 1] = won // 2, drawn, lost
    results[1, 0] = 0, 0, won - won // 2  # the same from the other seat
    found = ratings(results, anchor=1, resamples=50)
    points, against = won + (drawn + PRIOR) / 2, lost + (drawn + PRIOR) / 2
    assert found.elo == pytest.approx([400 * np.log10(points / against), 0], abs=1e-2)


@pytest.mark.parametrize("draws", [0.0, 0.6])
def test_many_games_give_the_true_ratings(draws):
    true = np.array([0.0, 100.0, -80.0, 250.0])
    if draws:  # a draw counts half, which pulls shares to 1/2 and differences to 0
        share = 1 / (1 + 10 ** ((true[:, None] - true) / 400))
        assert abs(share - 0.5).max() > 0.2
    found = ratings(results_of(true, 20_000, draws=draws), resamples=20)
    if draws:
        assert (np.sign(np.diff(found.elo)) == np.sign(np.diff(true))).all()
        assert abs(found.elo).max() < 0.6 * abs(true).max()
    else:
        assert found.elo == pytest.approx(true, abs=6)


def test_intervals_cover_the_true_ratings():
    true, covered = np.array([0.0, 60.0, 150.0]), []
    for seed in range(60):
        found = ratings(results_of(true, 60, seed), resamples=200)
        covered.append((found.low <= true) & (true <= found.high))
        assert found.low[0] == found.high[0] == 0
        assert (found.low <= found.elo).all()
        assert (found.elo <= found.high).all()
    assert 0.88 <= np.mean(covered, axis=0)[1:].mean() <= 0.99


def test_the_seat_makes_no_difference_and_the_anchor_only_shifts():
    results = results_of(np.array([0.0, 60.0, 150.0]), 50)
    swapped = results.transpose(1, 0, 2)[..., ::-1]
    found, other = ratings(results, resamples=10), ratings(swapped, resamples=10)
    assert found.elo == pytest.approx(other.elo, abs=1e-3)
    shifted = ratings(results, anchor=2, resamples=10)
    assert shifted.elo == pytest.approx(found.elo - found.elo[2], abs=1e-3)


def test_players_who_never_met_are_compared_through_others_or_not_at_all():
    results = results_of(np.array([0.0, 60.0, 150.0]), 4000)
    results[0, 2] = results[2, 0] = 0
    assert ratings(results, resamples=10).elo == pytest.approx([0, 60, 150], abs=20)
    results[1, 2] = results[2, 1] = 0
    with pytest.raises(ValueError, match="who have met"):
        ratings(results, resamples=10)
