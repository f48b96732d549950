"""Rollouts and evaluation with the EnvPool back-end."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from pg_lightning import PPO, RolloutDataModule
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.envs.backends.pool import PoolEnv
from pg_lightning.rollout import Rollout

pytest.importorskip("envpool")


class CoinTosser:
    """Heads or tails for each environment."""

    policy_version = 0
    device = torch.device("cpu")

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, obs: Tensor, generator: torch.Generator, *_: Any) -> tuple[Tensor, None]:
        return torch.randint(2, (len(obs),), generator=generator), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


def collect(whole_episodes: bool = False, **env_kwargs: Any) -> list[Rollout]:
    env = make_vector_env("CartPole-v1", 3, env_kwargs, backend="envpool")
    collector = RolloutCollector(env, 40, [4, 5, 6], 7, whole_episodes)
    rollouts = [collector.collect(CoinTosser()) for _ in range(3)]
    collector.close()
    return rollouts


@pytest.mark.parametrize("env_kwargs", [{}, {"max_episode_steps": 9}], ids=["falls", "cut"])
def test_reset_rows_are_no_env_steps_and_returns_are_sums_of_rewards(env_kwargs: Any) -> None:
    rollouts = collect(**env_kwargs)
    obs, rewards, valid = (
        torch.cat([getattr(rollout, name)[:40] for rollout in rollouts]) for name in ("obs", "rewards", "valid")
    )
    ended = torch.cat([rollout.terminated | rollout.truncated for rollout in rollouts])
    assert torch.equal(valid[1:], ~ended[:-1])
    assert torch.equal(rewards, valid.float())
    assert obs[1:][ended[:-1]].abs().max() > 0.05  # the end is seen, the start comes a row later
    assert obs[2:][ended[:-2]].abs().max() <= 0.05
    assert sum(rollout.env_steps for rollout in rollouts) == valid.sum() < valid.numel()

    expected, running = [], np.zeros(3)
    for t in range(len(ended)):
        running += rewards[t].numpy()
        expected += [running[n] for n in np.flatnonzero(ended[t])]
        running[ended[t].numpy()] = 0
    assert torch.cat([rollout.episode_returns for rollout in rollouts]).tolist() == expected
    assert torch.cat([rollout.episode_lengths for rollout in rollouts]).tolist() == expected
    assert torch.cat([rollout.truncated for rollout in rollouts]).any() == bool(env_kwargs)


@pytest.mark.parametrize("whole_episodes", [False, True])
def test_the_same_seed_gives_the_same_rollouts(whole_episodes: bool) -> None:
    for one, other in zip(collect(whole_episodes), collect(whole_episodes), strict=True):
        for name in ("obs", "actions", "rewards", "terminated", "truncated", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_whole_episodes_start_afresh_and_end() -> None:
    for rollout in collect(whole_episodes=True):
        assert rollout.obs[0].abs().max() <= 0.05
        assert (rollout.terminated | rollout.truncated).sum(0).min() >= 1


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_it_trains_and_evaluates(env_id: str, tmp_path: Any) -> None:
    def run() -> tuple[Any, dict[str, torch.Tensor]]:
        seed_everything(3)
        data = RolloutDataModule(env_id, num_envs=2, num_steps=32, total_steps=128, backend="envpool", eval_episodes=3)
        model = PPO(observation_space=data.observation_space, action_space=data.action_space, total_steps=128)
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
        trainer.fit(model, data)
        return trainer.test(model, data), model.state_dict()

    (result,), weights = run()
    (again,), same = run()
    assert result == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert any(np.isfinite(value) and "return" in name for name, value in result.items())


def test_what_only_envpool_has_is_evaluated_there() -> None:
    data = RolloutDataModule("Breakout-v5", num_envs=1, backend="envpool", eval_episodes=1)
    assert data.observation_space.shape == (4, 84, 84)
    strategy, module = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(actor=None)
    alone: Any = {"global_rank": 0, "world_size": 1, "lightning_module": module, "precision": "32-true"}
    data.trainer = SimpleNamespace(**alone, strategy=strategy)  # type: ignore[assignment]
    episodes: Any = data.val_dataloader().dataset
    assert isinstance(episodes.env.vector_env.envs[0].unwrapped, PoolEnv)
    data.teardown("validate")
