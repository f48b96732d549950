"""The policy that acted is the policy that learns: no rollout is older than the weights, no ratio starts off 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from doubles import WatchedActor
from torch import Tensor
from torch.utils.data import IterableDataset

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutDataModule
from pg_lightning.rollout import Batch, Rollout

CONTINUOUS = "pg_lightning.envs.tasks.toy:pg_lightning/ContinuousContextualReward-v0"
MULTI_BINARY = "pg_lightning.envs.tasks.toy:pg_lightning/MultiBinaryReward-v0"
MASKED = "pg_lightning.envs.tasks.toy:pg_lightning/MaskedReward-v0"


class VersionRecorder(PPO):
    """Notes, at every rollout, which policy collected it and which policy this is."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.versions: list[tuple[int, int]] = []

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.versions.append((rollout.policy_version, self.policy_version))
        super().training_step(rollout, batch_idx)


class RatioRecorder(PPO):
    """Notes, at every rollout, how far π/π_old of the update is from 1 for the policy as it was when it acted."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ratio_errors: list[Tensor] = []
        self.actor = WatchedActor(self.actor)
        with torch.no_grad():
            self.network.actor_head.linear.weight *= 100  # far from uniform, so that an error in the features shows

    def targets(self, rollout: Rollout, *args: Any) -> Batch:
        self.batch = super().targets(rollout, *args)
        return self.batch

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        metrics = super().update(rollout)
        assert self.batch.old_log_probs is not None
        log_ratio = self.batch.old_log_probs - torch.cat(self.actor.acted)[rollout.valid.flatten()]
        self.ratio_errors.append(log_ratio.expm1().abs())
        self.actor.acted.clear()
        return metrics


class UnsizedDataModule(RolloutDataModule):
    """Rollouts as a dataset without a length."""

    def train_dataloader(self) -> Any:
        class Unsized(IterableDataset[Rollout]):
            def __init__(self, rollouts: Any) -> None:
                self.rollouts = rollouts

            def __iter__(self) -> Iterator[Rollout]:
                return iter(self.rollouts)

        return Unsized(super().train_dataloader())


@pytest.mark.parametrize("trainer", [{}, {"max_epochs": 3, "limit_train_batches": 2}, {"limit_train_batches": 3}])
def test_every_rollout_was_collected_by_the_policy_that_it_updates(fit: Any, trainer: dict[str, int]) -> None:
    module = fit(
        "CartPole-v1", {"total_steps": 640, "eval_every_steps": 128}, algorithm=VersionRecorder, trainer=trainer
    )
    expected = 6 if "max_epochs" in trainer else 10
    assert module.versions == [(k, k) for k in range(expected)]
    assert module.policy_version == expected


def test_a_dataset_without_a_length_is_refused_because_lightning_would_prefetch_it(fit: Any) -> None:
    with pytest.raises(RuntimeError, match="off-policy"):
        fit("CartPole-v1", datamodule=UnsizedDataModule)


CASES = [
    ("CartPole-v1", {}),
    ("CartPole-v1", {"normalize_obs": True}),
    ("CartPole-v1", {"normalize_obs": True, "shared_torso": True, "scale_rewards": True}),
    ("Pendulum-v1", {"normalize_obs": True}),
    (CONTINUOUS, {}),
    (MULTI_BINARY, {}),
    ("CartPole-v1", {"memory": "lstm", "normalize_obs": True}),
    ("CartPole-v1", {"memory": "gru", "shared_torso": True}),
    (MASKED, {}),
    (MASKED, {"memory": "lstm"}),
    ("Pendulum-v1", {"head": "squashed_gaussian"}),
    ("Pendulum-v1", {"head": "beta", "normalize_values": True}),
]


@pytest.mark.parametrize("autoreset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize(("env_id", "model"), CASES)
def test_old_log_probs_are_those_at_acting_time(fit: Any, env_id: str, model: Any, autoreset_mode: str) -> None:
    data = {"eval_every_steps": 128, "autoreset_mode": autoreset_mode}
    module = fit(env_id, data, algorithm=RatioRecorder, lr=1e-2, **model)
    assert len(module.ratio_errors) >= 4
    assert torch.cat(module.ratio_errors).max() < 1e-5


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_old_log_probs_are_those_at_acting_time_in_mixed_precision(fit: Any, env_id: str) -> None:
    """Where one batch rounds a number up and another rounds it down a single error is large, but not their mean."""
    module = fit(env_id, algorithm=RatioRecorder, trainer={"precision": "bf16-mixed"}, normalize_obs=True, lr=1e-2)
    assert len(module.ratio_errors) == 4
    assert torch.cat(module.ratio_errors).mean() < 2e-4
