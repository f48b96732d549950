"""The arena: independent random streams, rewards before the policy's first turn, results, games that never begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from doubles import actor_for
from scripted_games import ScriptedGames

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.games import Arena, SelfPlay, training_arena
from pg_lightning.games.arena import split_mix
from pg_lightning.games.contract import Matchup
from pg_lightning.games.exam import Exam
from pg_lightning.games.league import League
from pg_lightning.games.opponents import RandomOpponent


class Opening(ScriptedGames):
    """Seat 0 gets 5 for the first move of a game and loses 1 at its end, with its third move."""

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        super().begin(which, seeds)
        for n in which.tolist():
            self._left[n] = 3

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        super().play(which, actions)
        for n in which.tolist():
            reward = 5.0 if self._count[n] == 1 else -1.0 if self.over[n] else 0.0
            self.rewards[n] = reward, -reward


class Short(ScriptedGames):
    """The first move ends the game."""

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        super().begin(which, seeds)
        for n in which.tolist():
            self._left[n] = 1


def test_the_policy_does_not_share_its_random_numbers_with_its_opponents(monkeypatch):
    """One game of matching pennies at a time against a copy of itself, both at random: nobody wins. With the same
    numbers, the copy would always choose the same side."""
    play = SelfPlay(both_seats=0.0, snapshot_every_steps=1)
    data = RolloutDataModule("MatchingPennies-v0", num_envs=1, num_steps=2000, self_play=play)
    collector = data.make_collector([3], 7)
    actor = actor_for(collector.env)
    for _ in range(2):  # the first is against random moves
        rollout = collector.collect(actor)
    first = rollout.obs[:-1, 0, 0] == 1
    for seat in (first, ~first):
        assert rollout.rewards[:, 0][seat].mean().abs() < 4 / seat.sum().sqrt()


def test_a_test_has_other_games_than_the_validations(quiet_trainer):
    """Tic-tac-toe has no chance: only the moves of the opponent differ."""
    data = RolloutDataModule("TicTacToe-v1", num_envs=4, eval_episodes=20, self_play=SelfPlay())
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    module, found = PPO(**spaces, hidden_sizes=[8]), []
    for what in ("validate", "validate", "test"):
        getattr(quiet_trainer(), what)(module, datamodule=data, verbose=False)
        found.append((module.evaluation.returns.tolist(), module.evaluation.lengths.tolist()))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("seat", "expected"), [(0, 4.0), (1, -4.0)])
def test_moves_before_the_first_turn_count(seat, expected):
    """In training and in evaluations, and in the league's scores."""
    games = Opening(2)
    arena = Arena(games, Exam([RandomOpponent()]), 0)
    arena.exam.episodes = {11: seat, 12: seat}
    arena.reset([11, 12])
    rewards = np.zeros(2)
    while True:
        step = arena.step_and_wait(torch.from_numpy(games.masks.argmax(1)))
        rewards += step.rewards
        if step.done.all():
            break
    assert rewards.tolist() == [expected, expected]


class FirstSeat(League):
    """Gives the policy the first seat of all games."""

    def draw(self, place: int, key: int, number: float) -> Matchup:
        return super().draw(place, key, number)._replace(seat=0)


def test_the_league_scores_whole_games():
    """The first seat wins every game, although its last reward is negative."""
    games = Opening(6)
    league = FirstSeat(SelfPlay(both_seats=0.0), [RandomOpponent()], 6)
    arena = Arena(games, league, 0)
    arena.reset([*range(6)])
    for _ in range(60):
        arena.step(torch.from_numpy(games.masks.argmax(1)))
    count, points = league.scores["random"]
    assert count == points > 100


@pytest.mark.parametrize("trains", [True, False])
def test_games_that_end_before_the_policys_turn_are_an_error_not_a_hang(trains):
    if trains:
        arena = training_arena(Short(1), SelfPlay(both_seats=0.0), 0)
        arena.reset([0])  # half of the games are played from the first seat
        for _ in range(50):
            assert arena.step(torch.from_numpy(arena.reset()[1].argmax(1))).done.all()
        return
    arena = Arena(Short(1), Exam([RandomOpponent()]), 0)
    arena.exam.episodes = {5: 1}
    with pytest.raises(UserError, match=r"^data\.env_id: 1000 games in a row ended before the first turn"):
        arena.reset([5])


def test_random_numbers_of_games_are_uniform_and_independent():
    games = training_arena(ScriptedGames(1000), SelfPlay(both_seats=0.0), 0)
    games.reset([*range(1000)])
    numbers = (split_mix(np.arange(100_000, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(10_000, abs=400)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[::2], numbers[1::2])[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 1}, r"data\.num_steps: must be at least 2 where the policy plays both seats"),
        (
            {"self_play": SelfPlay(opponents=["random"])},
            r"data\.self_play\.opponents: with both_seats 1 the policy plays",
        ),
        (
            {"num_envs": 4, "self_play": SelfPlay(both_seats=0.9, snapshot_every_steps=5)},
            r"data\.self_play\.snapshot_every_steps: with both_seats 0\.9 the policy plays both seats of all 4 games",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        RolloutDataModule("TicTacToe-v1", **{"self_play": SelfPlay(), **settings})


def test_rollouts_larger_than_memory_are_refused(quiet_trainer):
    data = RolloutDataModule("TicTacToe-v1", num_steps=10**10, self_play=SelfPlay())
    module = PPO(observation_space=data.observation_space, action_space=data.action_space)
    with pytest.raises(UserError, match=r"^data\.num_steps: a rollout of 10000000000 steps in 8 environments"):
        quiet_trainer().fit(module, datamodule=data)


def test_a_league_goes_on_where_the_games_cannot():
    def collector() -> RolloutCollector:
        games = ScriptedGames(4, can_replay=False)
        play = SelfPlay(both_seats=0.5, snapshot_every_steps=10)
        return RolloutCollector(training_arena(games, play, 0), 8, [*range(4)], 0)

    first = collector()
    actor = actor_for(first.env)
    for _ in range(3):
        first.collect(actor)
    state = first.state_dict()
    second = collector()
    assert "cannot be restored" in second.load_state_dict(state)
    league = second.state_dict()["envs"]["league"]
    assert league["kept"] == state["envs"]["league"]["kept"] == ["snapshot-32", "snapshot-64"]
    assert second.state_dict()["envs"]["steps"] == 96
    second.collect(actor)
