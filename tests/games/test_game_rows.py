"""A transition goes from a seat's turn to its own next turn, with the rewards of all moves in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import ActsBy, WatchedActor, actor_for
from scripted_games import ScriptedGames, Transition, Turn, legal, rows_of, transitions
from torch import Tensor

from pg_lightning.data import RolloutCollector
from pg_lightning.games import SelfPlay, training_arena
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.rollout import Rollout

G, T, ROLLOUTS = 5, 7, 6


class Player(ActsBy):
    """Plays any legal move."""

    policy = torch.nn.Identity()

    def act(self, obs: Tensor, generator: Any, deterministic: bool, mask: Tensor, state: Any) -> tuple[Tensor, None]:
        return legal(obs, mask), None


class Watched(WatchedActor):
    """Also notes what it saw."""

    def __init__(self, actor: PolicyActor) -> None:
        super().__init__(actor)
        self.seen: list[tuple[float, ...]] = []

    def act(self, obs: Tensor, *args: Any) -> Any:
        self.seen += map(tuple, obs.tolist())
        return super().act(obs, *args)


def played(both: float, alternates: bool, **how: Any) -> tuple[ScriptedGames, list[Rollout]]:
    games = ScriptedGames(G, alternates)
    arena = training_arena(games, SelfPlay(both_seats=both), 0)
    collector = RolloutCollector(arena, T, list(range(G)), 0, **how)
    rollouts = [collector.collect(Player()) for _ in range(ROLLOUTS)]
    collector.collect(Player())  # so that every transition of the others is complete
    return games, rollouts


@pytest.mark.parametrize("alternates", [True, False])
@pytest.mark.parametrize("both", [1.0, 0.4, 0.0])
def test_rows_are_the_transitions_of_each_seat(both, alternates):
    games, rollouts = played(both, alternates)
    num_both = round(both * G)
    expected, seats = transitions(games.turns), {}
    for rollout in rollouts:
        assert rollout.rewards.shape[1] == G + num_both
        for row in rows_of(rollout):
            assert row == expected.pop(row.obs)
            place, game, _, seat = row.obs
            seats.setdefault((place, game), set()).add(seat)
    assert all(len(of_game) == 1 for (place, _), of_game in seats.items() if place >= num_both)
    assert len({frozenset(of_game) for of_game in seats.values()}) > 1
    if alternates:  # nothing is lost but the last turn of each game of both seats in each rollout
        assert sum(rollout.env_steps for rollout in rollouts) == ROLLOUTS * (G * T - num_both)


def test_the_last_turn_is_left_out_also_where_it_ends_a_game():
    games, rollouts = played(1.0, True)
    turns = iter(games.turns)
    lost = 0
    for rollout in rollouts:
        own = [[next(turns) for _ in range(G)] for _ in range(T)]
        seen = {row.obs for row in rows_of(rollout)}
        assert not seen & {turn.obs for turn in own[-1]}
        lost += sum(turn.ends for turn in own[-1])
        assert {turn.obs for row in own[:-2] for turn in row} <= seen
    assert lost > 0


def test_invalid_rows_are_at_the_end_of_a_column():
    for rollout in played(0.6, False)[1]:
        assert (rollout.valid.int().diff(dim=0) <= 0).all()


@pytest.mark.parametrize("both", [1.0, 0.6, 0.0])
def test_whole_episodes_have_no_loss(both):
    """Every turn of the policy in a game that counts is a row; the games that are played while others wait are none."""
    games, rollouts = played(both, False, whole_episodes=True)
    expected, num_both = transitions(games.turns), round(both * G)
    seats: dict[tuple[float, float], set[float]] = {}
    for rollout in rollouts:
        last = rollout.valid.long().sum(0) - 1
        columns = torch.arange(rollout.valid.shape[1])[last >= 0]
        assert rollout.terminated[last[columns], columns].all()
        for row in rows_of(rollout):
            assert row == expected[row.obs]
            place, game, _, seat = row.obs
            seats.setdefault((place, game), set()).add(seat)
    for obs in expected:
        place, game, _, seat = obs
        of_game = seats.get((place, game), set())
        if of_game and (place < num_both or seat in of_game):
            assert any(row.obs == obs for rollout in rollouts for row in rows_of(rollout))


def test_returns_of_both_seats_are_opposite():
    _, rollouts = played(1.0, True, whole_episodes=True)
    for rollout in rollouts:
        returns = rollout.episode_returns
        assert len(returns) % 2 == 0
        assert returns.any()
        assert torch.equal(returns[::2], -returns[1::2])
        assert rollout.rewards.sum() != 0 or returns.sum() == 0


def test_where_one_seat_learns_the_reward_includes_the_opponents_moves():
    _, rollouts = played(0.0, True)
    rewards = torch.cat([rollout.rewards.flatten() for rollout in rollouts])
    assert len(rewards.unique()) > 11  # one move gives 11 different ones


def test_a_transition_is_what_it_says():
    """The reference itself, by hand: seat 0, seat 1, seat 0 with rewards 1, 2 and 4 for the first seat."""
    turns = [
        Turn(0, 1, 0, (0.0,), 0, (1.0, -1.0), False),
        Turn(0, 1, 1, (1.0,), 1, (2.0, -2.0), False),
        Turn(0, 1, 0, (2.0,), 2, (4.0, -4.0), True),
    ]
    assert list(transitions(turns).values()) == [
        Transition((0.0,), 0, 3.0, False, 0, (2.0,)),
        Transition((2.0,), 2, 4.0, True, 1, None),
        Transition((1.0,), 1, -7.0, True, 0, None),
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("memory", ["lstm", None])
@pytest.mark.parametrize("both", [1.0, 0.4])
def test_each_seat_has_a_memory_of_its_own(both, memory, whole):
    """Unrolled over the columns of a rollout, the policy gives the actions the probabilities that they were drawn with:
    only if the state of a seat goes from its turn to its own next turn, and starts at zero with a game."""
    games = ScriptedGames(G, alternates=False)
    arena = training_arena(games, SelfPlay(both_seats=both), 0)
    collector = RolloutCollector(arena, T, list(range(G)), 0, whole)
    actor = Watched(actor_for(arena, memory=memory, memory_size=4))
    with torch.no_grad():
        actor.policy.actor_head.linear.weight *= 100  # so that the state matters
    for _ in range(ROLLOUTS):
        rollout = collector.collect(actor)
        log_probs = actor.log_probs(rollout)
        acted = dict(zip(actor.seen, torch.cat(actor.acted).tolist(), strict=True))
        for t, n in rollout.valid.nonzero().tolist():
            assert log_probs[t, n].item() == pytest.approx(acted[tuple(rollout.obs[t, n].tolist())], abs=1e-5)
