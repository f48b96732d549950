"""Every algorithm learns by self-play, and the gradient is the one that the rules of the game imply."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from doubles import GradientOnly

from pg_lightning.algorithms import (
    A2C,
    PPO,
    REINFORCE,
    TRPO,
    OneStepActorCritic,
    REINFORCEBaseline,
    VTrace,
)
from pg_lightning.data import RolloutDataModule
from pg_lightning.games import SelfPlay

ONE_BY_ONE = {"num_envs": 8, "num_steps": 16}
WHOLE = {"num_envs": 8, "num_steps": 1, "whole_episodes": True}
ALGORITHMS = [(REINFORCE, WHOLE), (REINFORCEBaseline, WHOLE), (PPO, WHOLE)] + [
    (algorithm, ONE_BY_ONE) for algorithm in (OneStepActorCritic, A2C, PPO, TRPO, VTrace)
]


class Often:
    """Chooses 1 with a probability of 0.9."""

    name = "often"

    def __init__(self, num_games: int) -> None:
        pass

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        pass

    def act(
        self, which: np.ndarray, obs: np.ndarray, masks: np.ndarray, moves: Any, generator: torch.Generator
    ) -> np.ndarray:
        return (torch.rand(len(which), generator=generator) < 0.9).long().numpy()

    def close(self) -> None:
        pass


def module_for(algorithm: type[Any], data: RolloutDataModule, **model: Any) -> Any:
    torch.manual_seed(0)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    return algorithm(**spaces, total_steps=data.total_steps, **{"hidden_sizes": [16], **model})


@pytest.mark.parametrize("memory", [None, "gru"])
@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_every_algorithm_plays_itself(algorithm, settings, memory, quiet_trainer):
    play = SelfPlay(both_seats=0.5, snapshot_every_steps=100)
    data = RolloutDataModule("TicTacToe-v1", total_steps=600, eval_episodes=8, self_play=play, **settings)
    module = module_for(algorithm, data, memory=memory)
    before = [x.clone() for x in module.network.parameters()]
    trainer = quiet_trainer()
    trainer.fit(module, datamodule=data)
    assert module.env_steps >= 600
    assert any(not torch.equal(x, y) for x, y in zip(before, module.network.parameters(), strict=True))
    shares = [trainer.callback_metrics[f"val/{name}_rate"].item() for name in ("win", "draw", "loss")]
    assert sum(shares) == pytest.approx(1)
    assert {f"val/win_rate/random/{seat}" for seat in ("first", "second")} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("settings", [{"overlap": True}, {}])
def test_ppo_learns_to_beat_random_play(settings, quiet_trainer):
    """From both seats. At random, the first wins 58 % and the second 29 %."""
    data = RolloutDataModule(
        "TicTacToe-v1", num_envs=32, num_steps=32, total_steps=60_000, eval_every_steps=60_000, eval_episodes=200,
        self_play=SelfPlay(), **settings
    )  # fmt: skip
    model = {"lr": 2e-3, "lr_schedule": "linear", "gamma": 1.0, "ent_coef": 0.05, "hidden_sizes": [64]}
    module = module_for(PPO, data, activation="relu", **model)
    trainer = quiet_trainer()
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/win_rate/random/first"] > 0.85
    assert trainer.callback_metrics["val/win_rate/random/second"] > 0.65


@pytest.mark.parametrize("both", [1.0, 0.0])
def test_the_gradient_of_self_play_is_that_of_the_payoff(both, quiet_trainer):
    """Matching pennies: V = (2p − 1)(2q − 1) for the first seat, −V for the second, p and q their chances of a 1.

    Each seat's logit moves by its own gradient, with the other's chance fixed. An estimator that confused the seats
    would have another sign in one of them.
    """
    p, q, games = 0.8, 0.3, 20_000
    data = RolloutDataModule(
        "MatchingPennies-v0", num_envs=games, num_steps=1, whole_episodes=True, total_steps=1, eval_episodes=1,
        self_play=SelfPlay(both_seats=both, opponents=[] if both else [f"{__name__}.Often"]),
    )  # fmt: skip
    module = module_for(REINFORCE, data, gamma=1.0, hidden_sizes=[])
    weights = module.network.actor_head.linear
    with torch.no_grad():
        weights.bias.zero_()
        weights.weight.zero_()
        weights.weight[1] = torch.tensor([math.log(p / (1 - p)), math.log(q / (1 - q))])
    found = []

    def record(loss: torch.Tensor, batch: Any) -> None:
        (gradient,) = torch.autograd.grad(-loss, weights.weight)
        found.append((gradient[1], batch))

    module.learner = GradientOnly.instead_of(module.learner, record)
    quiet_trainer().fit(module, datamodule=data)
    gradient, batch = found[0]
    rows_per_game = len(batch) / games
    assert rows_per_game == (2 if both else 1)
    if both:
        expected = torch.tensor([2 * (2 * q - 1) * p * (1 - p), -2 * (2 * p - 1) * q * (1 - q)]) / rows_per_game
    else:  # against one who chooses 1 with 0.9, from each seat in half of the games
        expected = torch.tensor([2 * 0.8 * p * (1 - p), -2 * 0.8 * q * (1 - q)]) / 2
    torch.testing.assert_close(gradient, expected, rtol=0, atol=4 * 0.5 / math.sqrt(games))
