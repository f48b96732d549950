"""Self-play that is interrupted and resumed is, byte for byte, the self-play that was not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutCollector
from pg_lightning.games import SelfPlay, make_games, training_arena
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.rollout import Rollout

CASES = {
    "both seats": SelfPlay(both_seats=1.0),
    "snapshots": SelfPlay(both_seats=0.5, snapshot_every_steps=50, max_snapshots=2, sampling="hard"),
    "one seat": SelfPlay(both_seats=0.0, opponents=["random"], snapshot_every_steps=30, sampling="recent"),
}


def collector_of(settings: SelfPlay) -> RolloutCollector:
    return RolloutCollector(
        training_arena(make_games("TicTacToe-v1", 6, None, "sync"), settings, 3), 8, list(range(6)), 7
    )


def actor_with(collector: RolloutCollector, **model: Any) -> PolicyActor:
    torch.manual_seed(0)
    env = collector.env
    module = PPO(
        observation_space=env.single_observation_space, action_space=env.single_action_space, hidden_sizes=[8], **model
    )
    return module.actor


def change(actor: PolicyActor, number: int) -> None:
    """Other weights for every rollout, so that a snapshot of the wrong time shows."""
    generator = torch.Generator().manual_seed(number)
    for parameter in actor.policy.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def same(one: Rollout, other: Rollout) -> bool:
    names = ("obs", "actions", "rewards", "terminated", "valid", "timesteps", "action_mask", "episode_returns")
    state = one.state is None or torch.equal(one.state, other.state)
    return state and all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("memory", [None, "gru"])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_games_go_on_after_a_resume(settings, memory, tmp_path):
    collector = collector_of(settings)
    actor = actor_with(collector, memory=memory)
    for number in range(5):
        change(actor, number)
        collector.collect(actor)
    torch.save(collector.state_dict(), tmp_path / "state")
    resumed = collector_of(settings)
    other = actor_with(resumed, memory=memory)
    other.policy.load_state_dict(actor.policy.state_dict())
    assert resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True)) == ""
    for number in range(5, 12):
        for player in (actor, other):
            change(player, number)
        assert same(collector.collect(actor), resumed.collect(other))


def test_state_that_does_not_lead_to_the_same_position_is_refused():
    collector = collector_of(CASES["both seats"])
    actor = actor_with(collector)
    collector.collect(actor)
    state = collector.state_dict()
    state["envs"]["moves"][0] = []
    assert "other positions" in collector_of(CASES["both seats"]).load_state_dict(state)


def test_games_against_an_opponent_that_the_config_has_lost_are_not_restored():
    before = SelfPlay(both_seats=0.0, opponents=["pg_lightning.games.perfect.TicTacToeMinimax"])
    collector = collector_of(before)
    collector.collect(actor_with(collector))
    reason = collector_of(SelfPlay(both_seats=0.0)).load_state_dict(collector.state_dict())
    assert reason == "it was played against minimax, who is no opponent of the config"
