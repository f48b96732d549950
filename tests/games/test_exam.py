"""Evaluations: each opponent as often as every other, from both seats, and results by opponent and seat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pg_lightning.algorithms import REINFORCE
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.games import SelfPlay

HERE = __name__


class Always:
    """Chooses one side."""

    def __init__(self, num_games: int, side: int) -> None:
        self.name, self.side = f"always {side}", side

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        pass

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        return np.full(len(which), self.side)

    def close(self) -> None:
        pass


class Illegal(Always):
    """Chooses a side that there is not."""

    def act(self, which: np.ndarray, *_: object) -> np.ndarray:
        return np.full(len(which), 1)


def always(side: int) -> dict[str, object]:
    return {"class_path": f"{HERE}.Always", "init_args": {"side": side}}


def chooses(side: int, data: RolloutDataModule) -> REINFORCE:
    """A policy that always chooses a side."""
    module = REINFORCE(
        observation_space=data.observation_space, action_space=data.action_space, hidden_sizes=[], total_steps=1
    )
    with torch.no_grad():
        module.network.actor_head.linear.weight.zero_()
        module.network.actor_head.linear.bias[:] = torch.tensor([0.0, 10.0 * (2 * side - 1)])
    return module


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("what", ["validate", "test"])
def test_results_belong_to_the_opponent_and_the_seat(what, num_envs, quiet_trainer):
    """In matching pennies the first seat wins if both choose the same; the policy chooses 1."""
    play = SelfPlay(eval_opponents=[always(0), always(1)])
    data = RolloutDataModule("MatchingPennies-v0", num_envs=num_envs, eval_episodes=10, self_play=play)
    module = chooses(1, data)
    trainer = quiet_trainer()
    prefix = {"validate": "val", "test": "test"}[what]
    for _ in range(2):  # again with the same seeds
        (found,) = getattr(trainer, what)(module, datamodule=data, verbose=False)
        expected = {"always 0/first": 0.0, "always 0/second": 1.0, "always 1/first": 1.0, "always 1/second": 0.0}
        assert {name: found[f"{prefix}/win_rate/{name}"] for name in expected} == expected
        assert module.evaluation.groups.bincount().tolist() == [3, 3, 2, 2]
        assert found[f"{prefix}/win_rate"] == pytest.approx(0.5)


def test_a_test_after_a_validation_has_its_own_episodes(quiet_trainer):
    """The games of both are the same objects, and the episodes are not."""
    play = SelfPlay(eval_opponents=[always(0), always(1)])
    data = RolloutDataModule("MatchingPennies-v0", num_envs=4, eval_episodes=8, total_steps=1, num_steps=1,
                             whole_episodes=True, self_play=play)  # fmt: skip
    module = chooses(1, data)
    trainer = quiet_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert {f"test/win_rate/always {side}/{seat}" for side in (0, 1) for seat in ("first", "second")} <= set(
        trainer.callback_metrics
    )
    assert trainer.callback_metrics["test/win_rate/always 0/second"] == 1.0


def test_an_illegal_move_of_an_opponent_is_one_line(quiet_trainer):
    """In the game of the test action 1 is legal everywhere but in some positions."""
    play = SelfPlay(eval_opponents=[{"class_path": f"{HERE}.Illegal", "init_args": {"side": 1}}])
    data = RolloutDataModule("TicTacToe-v1", num_envs=2, eval_episodes=2, self_play=play)
    module = chooses_somehow(data)
    with pytest.raises(UserError, match=r"^data\.self_play: opponent always 1 played the illegal move 1; legal were"):
        quiet_trainer().test(module, datamodule=data, verbose=False)


def chooses_somehow(data: RolloutDataModule) -> REINFORCE:
    return REINFORCE(observation_space=data.observation_space, action_space=data.action_space, total_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"both_seats": 1.5}, r"data\.self_play\.both_seats: must be between 0 and 1, got 1\.5"),
        ({"max_snapshots": 0}, r"data\.self_play\.max_snapshots: must be at least 1, got 0"),
        ({"snapshot_every_steps": 0}, r"data\.self_play\.snapshot_every_steps: must be at least 1, got 0"),
        ({"eval_opponents": []}, r"data\.self_play\.eval_opponents: name at least one opponent"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SelfPlay(**options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "CartPole-v1"}, r"data\.env_id: no game 'CartPole-v1'; with data\.self_play it is KuhnPoker-v0, "),
        ({"backend": "async"}, r"data\.backend: data\.self_play plays games of 'sync' or 'envpool', not of 'async'"),
        ({"env_kwargs": {"x": 1}}, r"data\.env_kwargs: TicTacToe-v1 takes no arguments"),
        ({"wrappers": ["gymnasium.wrappers.ClipReward"]}, r"data\.wrappers: data\.self_play plays games as they are"),
        ({"autoreset_mode": "next_step"}, r"data\.autoreset_mode: data\.self_play plays games as they are; remove it"),
        ({"env_id": "no_module:game"}, r"data\.env_id: cannot import 'no_module:game': ModuleNotFoundError"),
    ],
)
def test_settings_for_other_environments_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RolloutDataModule(**{"env_id": "TicTacToe-v1", "self_play": SelfPlay(), **settings})


@pytest.mark.parametrize(
    ("opponent", "message"),
    [
        ("nobody.at.all", r"data\.self_play\.(eval_)?opponents: cannot import 'nobody\.at\.all'"),
        ("runs/none/version_0", r"data\.self_play\.(eval_)?opponents: no file or folder 'runs/none/version_0'"),
        ("collections.OrderedDict", r"data\.self_play\.(eval_)?opponents: OrderedDict has no name, begin, act, close"),
        (f"{HERE}.Always", r"data\.self_play\.(eval_)?opponents: cannot make Always\(num_games, \*\*init_args\)"),
    ],
)
@pytest.mark.parametrize("field", ["opponents", "eval_opponents"])
def test_an_opponent_that_cannot_be_made_is_one_line_before_anything_starts(field, opponent, message):
    play = SelfPlay(**{"both_seats": 0.0, field: [opponent]})
    with pytest.raises(UserError, match=message):
        RolloutDataModule("TicTacToe-v1", self_play=play)
