"""Where the best policy tosses a coin, a policy gradient finds the coin: see `GreyCells`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pg_lightning.algorithms import A2C
from pg_lightning.data import EvaluationDataset
from pg_lightning.envs import make_vector_env

GREY_CELLS = "pg_lightning.envs.tasks.gridworld:pg_lightning/GreyCells-v0"
N, E, S, W = range(4)
# Walls to the N, E, S, W of the left end, a grey cell, the middle and the right end.
SEEN = torch.tensor([[1.0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
BEST_DETERMINISTIC = -21.2


def play(module: Any, deterministic: bool) -> torch.Tensor:
    env = make_vector_env(GREY_CELLS, 20, autoreset_mode="disabled")
    episodes = EvaluationDataset(env, module.actor, list(range(400)), 0, deterministic, 50)
    return torch.cat([episode.episode_return for episode in episodes])


def test_a_policy_gradient_learns_to_toss_a_coin_in_grey_cells(fit: Any) -> None:
    data = {"num_envs": 16, "num_steps": 16, "total_steps": 100_000, "eval_every_steps": 100_000, "eval_episodes": 1}
    model = {"optimizer": "adam", "lr": 3e-2, "lr_schedule": "linear", "hidden_sizes": [], "gae_lambda": 0.95}
    module = fit(GREY_CELLS, data, algorithm=A2C, normalize_advantage=True, scale_rewards=True, **model)
    with torch.no_grad():
        chances = module.network.pi(SEEN).log_probs.exp()
    left, grey, middle, right = chances
    assert left[E] > 0.9
    assert middle[S] > 0.9
    assert right[W] > 0.9
    assert grey[[W, E]].tolist() == pytest.approx([0.5, 0.5], abs=0.15)
    sampled, deterministic = (play(module, mode).mean() for mode in (False, True))
    assert sampled > -5  # the best is −3.8
    assert deterministic < BEST_DETERMINISTIC + 4  # 400 episodes from random cells
