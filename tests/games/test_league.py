"""The opponents of training: which copies are kept, and how often each is drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pg_lightning.games import SelfPlay
from pg_lightning.games.contract import BOTH, Opponent
from pg_lightning.games.league import League
from pg_lightning.games.opponents import PolicyOpponent, RandomOpponent
from pg_lightning.policies import ActorCritic


def policy_of(number: float) -> ActorCritic:
    policy = ActorCritic(spaces.Box(0, 1, (2,)), spaces.Discrete(2), hidden_sizes=[])
    with torch.no_grad():
        policy.actor_head.linear.bias.fill_(number)
    return policy


def league_of(snapshots: int = 0, fixed: tuple[Opponent, ...] = (), **settings: object) -> League:
    """A league of games against others, with a copy of the policies 1, 2, ... every 100 env steps."""
    league = League(SelfPlay(**{"both_seats": 0.0, "snapshot_every_steps": 100, **settings}), fixed, 4)
    for number in range(1, snapshots + 1):
        league.follow(policy_of(number), 100 * number)
    return league


def drawn(league: League, count: int = 2000) -> Counter[str]:
    """How often each opponent is drawn."""
    numbers = np.random.default_rng(0).random(count)
    return Counter(league.draw(0, 0, number).opponent.name for number in numbers)


def test_there_is_no_copy_before_it_is_due_and_moves_are_random_until_then():
    league = league_of()
    league.follow(policy_of(1), 99)
    assert drawn(league).keys() == {"random"}
    league.follow(policy_of(1), 100)
    league.follow(policy_of(2), 199)
    assert drawn(league).keys() == {"snapshot-100"}


def test_a_copy_does_not_learn():
    league, policy = league_of(), policy_of(1)
    league.follow(policy, 100)
    with torch.no_grad():
        policy.actor_head.linear.bias.fill_(9)
    opponent = league.draw(0, 0, 0.0).opponent
    assert isinstance(opponent, PolicyOpponent)
    assert opponent.policy.actor_head.linear.bias.tolist() == [1.0, 1.0]
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not any(parameter.requires_grad for parameter in opponent.policy.parameters())


def test_the_latest_copies_are_kept():
    assert drawn(league_of(5, max_snapshots=2)).keys() == {"snapshot-400", "snapshot-500"}


def test_a_copy_joins_only_with_the_required_score():
    league = league_of(1, snapshot_score=0.6)
    opponent = league.draw(0, 0, 0.0).opponent
    for reward in (1.0, 0.0, -1.0):  # a score of 1/2
        league.count(opponent, reward)
    league.follow(policy_of(2), 500)
    assert drawn(league).keys() == {"snapshot-100"}
    league.count(opponent, 2.0)  # 0.625
    league.follow(policy_of(2), 600)
    assert drawn(league).keys() == {"snapshot-100", "snapshot-600"}
    for _ in range(3):  # counted anew since then: 0
        league.count(opponent, -1.0)
    league.follow(policy_of(3), 900)
    assert drawn(league).keys() == {"snapshot-100", "snapshot-600"}


def test_uniform():
    found = drawn(league_of(3, (RandomOpponent(),), sampling="uniform"))
    assert found.keys() == {"random", "snapshot-100", "snapshot-200", "snapshot-300"}
    assert min(found.values()) > 430


def test_recent_halves_the_weight_of_each_older_copy():
    found = drawn(league_of(3, (RandomOpponent(),), sampling="recent"))
    expected = {"random": 1, "snapshot-300": 1, "snapshot-200": 0.5, "snapshot-100": 0.25}
    for name, weight in expected.items():
        assert found[name] / 2000 == pytest.approx(weight / 2.75, abs=0.04)


def test_hard_draws_those_against_whom_it_scores_less_and_forgets_none():
    league = league_of(3, sampling="hard")
    for name, rewards in (("snapshot-100", [1, 1, 1, 1]), ("snapshot-200", [1, -1, 0, 0])):
        for reward in rewards:
            league.count(RandomOpponent(name), reward)
    found = drawn(league, 20_000)
    weights = {"snapshot-100": 0.01, "snapshot-200": 0.25, "snapshot-300": 1.0}
    for name, weight in weights.items():
        assert found[name] / 20_000 == pytest.approx(weight / 1.26, abs=0.01)
    assert found["snapshot-100"] > 0


def test_seats_are_even_and_independent_of_the_opponent():
    league = league_of(2)
    numbers = np.random.default_rng(0).random(4000)
    found = Counter((match.opponent.name, match.seat) for match in (league.draw(0, 0, x) for x in numbers))
    assert len(found) == 4
    assert min(found.values()) > 900


def test_the_first_games_are_played_on_both_seats():
    league = league_of(1, both_seats=0.5)
    assert [league.draw(place, 0, 0.3).seat for place in range(4)] == [BOTH, BOTH, 1, 1]
    assert [league.draw(place, 0, 0.3).opponent is None for place in range(4)] == [True, True, False, False]
