"""Self-play that is interrupted and resumed is, byte for byte, the self-play that was not."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from pg_lightning.algorithms import PPO
from pg_lightning.checkpoint.league import check_league
from pg_lightning.checkpoint.values import Damage
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.games import SelfPlay, make_games, training_arena
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.rollout import Rollout

CASES = {
    "both seats": SelfPlay(both_seats=1.0),
    "snapshots": SelfPlay(both_seats=0.5, snapshot_every_steps=50, max_snapshots=2, sampling="hard"),
    "one seat": SelfPlay(both_seats=0.0, opponents=["random"], snapshot_every_steps=30, sampling="recent"),
}


class Seated:
    """Plays the lowest legal move, or as the second the highest: it must know its seat."""

    def __init__(self, num_games: int, api_key: str = "") -> None:
        self.name, self.seats = "seated", np.full(num_games, -1)

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        self.seats[which] = seats

    def act(self, which: np.ndarray, obs: np.ndarray, masks: np.ndarray, *_: Any) -> np.ndarray:
        assert (self.seats[which] >= 0).all()
        A = masks.shape[1]
        return np.where(self.seats[which] == 0, masks.argmax(1), A - 1 - masks[:, ::-1].argmax(1))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a policy with a memory."""
    data = RolloutDataModule("TicTacToe-v1", total_steps=1, eval_episodes=1, self_play=SelfPlay())
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    module = PPO(**spaces, hidden_sizes=[8], memory="gru", total_steps=1, num_minibatches=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=-1, num_sanity_val_steps=0, **quiet,
                      default_root_dir=tmp_path_factory.mktemp("recurrent"))  # fmt: skip
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        module.network.actor_head.linear.weight *= 1000  # so that the state matters
    path = str(tmp_path_factory.mktemp("checkpoint") / "policy.ckpt")
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("opponent", ["recurrent", f"{__name__}.Seated"])
def test_opponents_of_the_config_go_on_too(opponent, recurrent, tmp_path):
    """A recurrent one with its states, your own with the seats that it has."""
    play = SelfPlay(both_seats=0.0, opponents=[recurrent if opponent == "recurrent" else opponent])
    collector = collector_of(play)
    actor = actor_with(collector)
    for _ in range(3):
        collector.collect(actor)
    torch.save(collector.state_dict(), tmp_path / "state")
    resumed = collector_of(play)
    assert resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True)) == ""
    for _ in range(4):
        assert same(collector.collect(actor), resumed.collect(actor))


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
    state["envs"]["games"]["moves"][0] = []
    assert "other positions" in collector_of(CASES["both seats"]).load_state_dict(state)


def test_games_against_an_opponent_that_the_config_has_lost_are_not_restored():
    before = SelfPlay(both_seats=0.0, opponents=["pg_lightning.games.perfect.TicTacToeMinimax"])
    collector = collector_of(before)
    collector.collect(actor_with(collector))
    reason = collector_of(SelfPlay(both_seats=0.0)).load_state_dict(collector.state_dict())
    assert reason == "it was played against minimax, who is no opponent of the config"


GAMES, LEAGUE = ("envs", "games"), ("envs", "league")
DAMAGES: dict[str, tuple[tuple[str, ...], Any]] = {
    "seats of nobody": ((*GAMES, "seats"), [5] * 6),
    "no opponents": ((*GAMES, "opponents"), [None] * 6),
    "fewer games": ((*GAMES, "moves"), [[]]),
    "a negative move": ((*GAMES, "moves"), [[-1]] * 6),
    "keys that are texts": ((*GAMES, "keys"), ["x"] * 6),
    "no generator": ((*GAMES, "generator"), None),
    "infinite rewards": ((*GAMES, "totals"), torch.full((6, 2), torch.inf, dtype=torch.float64)),
    "steps that are no number": (("envs", "steps"), "x"),
    "negative steps": ((*LEAGUE, "steps"), -1),
    "scores of three": ((*LEAGUE, "scores"), {"random": [1.0, 1.0, 1.0]}),
    "scores of NaN": ((*LEAGUE, "since"), [float("nan"), 0.0]),
    "a copy that there is not": ((*LEAGUE, "kept"), ["nobody"]),
    "too many copies": ((*LEAGUE, "snapshots"), {f"snapshot-{n}": {} for n in range(3000)}),
    "no league": (LEAGUE, None),
    "nothing": (("envs",), None),
}


@pytest.mark.parametrize(("path", "value"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_games_are_refused_before_they_are_used(path, value):
    collector = collector_of(CASES["snapshots"])
    actor = actor_with(collector)
    for _ in range(3):
        collector.collect(actor)
    state = collector.state_dict()
    check_league("ranks[0].envs", state["envs"], 6, 3, 2)
    part = state
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(Damage, match=r"^ranks\[0\]\.envs"):
        check_league("ranks[0].envs", state["envs"], 6, 3, 2)


def test_damaged_weights_and_copies_of_another_game_are_refused():
    collector = collector_of(CASES["snapshots"])
    actor = actor_with(collector)
    for _ in range(3):
        collector.collect(actor)
    for damage in ("weights", "space", "state"):
        state = copy.deepcopy(collector.state_dict())
        snapshot = next(iter(state["envs"]["league"]["snapshots"].values()))
        if damage == "weights":
            next(iter(snapshot["weights"].values())).fill_(torch.nan)
            with pytest.raises(Damage, match="NaN"):
                check_league("envs", state["envs"], 6, 3, 2)
            continue
        if damage == "space":
            snapshot["policy"]["init_args"]["action_space"]["n"] = 8
        else:
            snapshot["state"] = torch.zeros(6, 3)
        with pytest.raises(Damage, match="another game" if damage == "space" else "not of its policy"):
            collector_of(CASES["snapshots"]).load_state_dict(state)


def test_secrets_of_opponents_are_not_written_and_those_of_evaluations_may_change():
    def written(**settings: Any) -> str:
        data = RolloutDataModule("TicTacToe-v1", self_play=SelfPlay(**settings))
        data.collector = SimpleNamespace(is_given_up=True)
        return data.state_dict()["settings"]["self_play"]

    secret = {"class_path": f"{__name__}.Seated", "init_args": {"api_key": "hunter2"}}
    assert written() == written(eval_opponents=[secret])
    assert "hunter2" not in written(both_seats=0.5, opponents=[secret])
    assert written() != written(both_seats=0.5)
