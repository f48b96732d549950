"""A task that only a policy with memory can solve is solved with one, and not without."""

from __future__ import annotations

from typing import Any

import pytest

from pg_lightning.algorithms import A2C, PPO
from pg_lightning.errors import UserError

RECALL = "pg_lightning.envs.tasks.toy:pg_lightning/Recall-v0"
DATA = {"num_envs": 16, "num_steps": 16, "total_steps": 10240, "eval_every_steps": 10240, "eval_episodes": 100}
MODEL = {"hidden_sizes": [16], "memory_size": 16, "gamma": 0.95, "lr": 1e-2, "lr_schedule": "linear"}
ALGORITHMS = {
    PPO: (DATA, {"num_minibatches": 2}),
    A2C: ({**DATA, "num_steps": 8, "total_steps": 24576, "eval_every_steps": 24576}, {"optimizer": "adam"}),
}


@pytest.fixture
def recall(fit: Any) -> Any:
    """Mean return of 100 deterministic episodes after a training of a few seconds."""

    def run(algorithm: Any, **model: Any) -> float:
        data, options = ALGORITHMS[algorithm]
        module = fit(RECALL, data, algorithm=algorithm, **{**MODEL, **options, **model})
        return float(module.evaluation[0].mean())

    return run


@pytest.mark.parametrize("memory", ["lstm", "gru"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_shown_first_is_remembered(recall: Any, algorithm: Any, memory: str) -> None:
    assert recall(algorithm, memory=memory) > 0.95


def test_one_memory_under_both_heads_remembers_too(recall: Any) -> None:
    assert recall(PPO, memory="gru", shared_torso=True) > 0.95


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_memory_it_is_a_coin(recall: Any, algorithm: Any) -> None:
    assert recall(algorithm) == pytest.approx(0.5, abs=0.15)  # 3 standard errors


def test_minibatches_that_do_not_deal_out_the_environments_evenly_are_refused(fit: Any) -> None:
    with pytest.raises(UserError, match=r"model\.num_minibatches.* 3 does not divide data\.num_envs 4"):
        fit(RECALL, memory="gru", num_minibatches=3)
