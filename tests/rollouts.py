"""Rollouts with no environment behind them, a Trainer that learns from them, and weights to compare."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from pg_lightning.rollout import Rollout
from pg_lightning.spaces import FlattenedBox

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
GROUPS = FlattenedBox(spaces.Dict(critic=spaces.Box(-1.0, 1.0, (1,)), policy=spaces.Box(-1.0, 1.0, (2,))))
DISCRETE = spaces.Discrete(4)
BOX = spaces.Box(-1.0, 1.0, (2,))

discrete_or_box = pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["Discrete", "Box"])


def make_rollout(observations=OBSERVATIONS, actions=BOX, T=16, N=3, seed=0, next_step=False) -> Rollout:
    """Random steps in which some episodes terminate, some are truncated, and some are both.

    Args:
        next_step: the row after an end is invalid; else truncated episodes leave a final observation.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    terminated, truncated = torch.from_numpy(rng.random((2, T, N)) < 0.15)
    valid = torch.ones(T, N, dtype=torch.bool)
    if next_step:
        for t in range(1, T):
            valid[t] = ~(terminated[t - 1] | truncated[t - 1])
            terminated[t] &= valid[t]
            truncated[t] &= valid[t]
    final_rows = torch.zeros(0, dtype=torch.int64) if next_step else (truncated & ~terminated).flatten().nonzero()[:, 0]
    sampled = torch.from_numpy(rng.integers(4, size=(T, N))) if actions is DISCRETE else normal(T, N, *actions.shape)
    return Rollout(
        obs=normal(T + 1, N, *observations.shape),
        actions=sampled,
        rewards=normal(T, N),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        timesteps=timesteps_of(terminated | truncated, valid),
        final_obs=normal(len(final_rows), *observations.shape),
        final_rows=final_rows,
        episode_returns=normal(3),
        episode_lengths=torch.tensor([3.0, 4.0, 5.0]),
        policy_version=0,
        env_steps=int(valid.sum()),
    )


def timesteps_of(done, valid) -> torch.Tensor:
    """Steps since the last end; the first row is taken for the beginning of an episode."""
    steps, rows = torch.zeros(done.shape[1], dtype=torch.int64), []
    for end, ok in zip(done, valid, strict=True):
        rows.append(steps)
        steps = (steps + ok) * ~end
    return torch.stack(rows)


def one_step_episodes(rewards, observations=None) -> Rollout:
    """Episodes that terminate at their first step, so that the return of a row is its reward."""
    rewards = torch.as_tensor(rewards).view(-1, 1)
    rollout = make_rollout(T=len(rewards), N=1)
    over, nothing = torch.ones_like(rewards, dtype=torch.bool), torch.zeros(0)
    rollout = replace(
        rollout, rewards=rewards, terminated=over, truncated=~over, timesteps=torch.zeros_like(over).long()
    )
    rollout = replace(rollout, final_obs=nothing.view(0, 3), final_rows=nothing.long())
    return rollout if observations is None else replace(rollout, obs=observations)


class Rollouts(IterableDataset):
    """Hands out one rollout after the other, each as if the policy of that moment had collected it."""

    def __init__(self, module, rollouts):
        self.module, self.rollouts = module, rollouts

    def __len__(self):
        return len(self.rollouts)

    def __iter__(self):
        for rollout in self.rollouts:
            rollout = rollout() if callable(rollout) else rollout
            state = self.module.network.initial_state(rollout.rewards.shape[1])
            yield replace(rollout, policy_version=self.module.policy_version, state=state)


def weights_of(module):
    return {name: p.detach().double().numpy().copy() for name, p in module.network.named_parameters()}


def fit(module, *rollouts, episodes=None, max_epochs=1, **options):
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    torch.manual_seed(1)
    validation = None if episodes is None else DataLoader(episodes, batch_size=None)
    trainer.fit(module, DataLoader(Rollouts(module, rollouts), batch_size=None), validation)
    return module


def options_of(*classes):
    parameters = [p for cls in classes for p in inspect.signature(cls.__init__).parameters.values()]
    return [p.name for p in parameters if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]


def same_weights(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
