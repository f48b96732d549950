"""Where two algorithms are the same by definition they must end with the same weights, from the same environments."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from rollouts import weights_of

from pg_lightning.algorithms import A2C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline
from pg_lightning.data import RolloutDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.* has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

ONE_PASS = {"num_epochs": 1, "num_minibatches": 1, "clip_range": 1e6}
CART_POLE, PENDULUM = "CartPole-v1", "Pendulum-v1"  # Discrete and Box actions; ends and time limits


# Two time limits: one that cuts most episodes and one that none reaches, with a budget for a few updates each.
WHOLE = {
    "truncated": {"limit": 9, "data": {"whole_episodes": True}},
    "terminated": {"limit": 500, "data": {"whole_episodes": True, "total_steps": 500}},
}
on_whole_episodes = pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)


def train(algorithm, env_id=CART_POLE, limit=9, zero_critic=False, data=None, **options):
    """Weights after a few updates in double precision, every algorithm from the same weights and the same seeds."""
    torch.manual_seed(7)
    small = {"num_envs": 3, "num_steps": 12, "total_steps": 140}
    datamodule = RolloutDataModule(env_id, env_kwargs={"max_episode_steps": limit}, **small | (data or {}))
    module = algorithm(
        observation_space=datamodule.observation_space,
        action_space=datamodule.action_space,
        total_steps=datamodule.total_steps,
        **{"hidden_sizes": [4], "lr": 0.01, **options},
    )
    # The orders in which the networks are made differ: what has one name has one value.
    with torch.no_grad():
        for name, p in module.network.named_parameters():
            seed = sum(map(ord, name))
            p.copy_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
            if zero_critic and name.startswith("critic"):
                p.zero_()
    before = weights_of(module)
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule)
    after = weights_of(module)
    assert module.policy_version >= 3
    for name in after:
        moved = np.abs(after[name] - before[name]).max()
        assert moved == 0 if zero_critic and name.startswith("critic") else moved > 1e-4, name
    return after


def distance(one, other):
    """Between weights that both have."""
    common = one.keys() & other.keys()
    assert any(name.startswith("actor") for name in common)
    return max(np.abs(one[name] - other[name]).max() for name in common)


def assert_same(one, other):
    assert distance(one, other) < 1e-6


def assert_different(one, other):
    assert distance(one, other) > 1e-4


PLAIN = {"normalize_advantage": False}
VARIANTS = {
    "plain": (CART_POLE, PLAIN),
    "Box": (PENDULUM, PLAIN),
    "normalised": (CART_POLE, {"normalize_advantage": True}),
    "rmsprop": (PENDULUM, {"normalize_advantage": True, "optimizer": "rmsprop"}),
    "shared": (CART_POLE, {**PLAIN, "shared_torso": True, "optimizer": "rmsprop"}),
    "shared, Box": (PENDULUM, {"normalize_advantage": True, "shared_torso": True}),
    "lstm": (CART_POLE, {**PLAIN, "memory": "lstm", "memory_size": 3}),
    "gru, Box, shared": (
        PENDULUM,
        {"normalize_advantage": True, "memory": "gru", "memory_size": 3, "shared_torso": True},
    ),
    "everything else": (
        CART_POLE,
        {
            "normalize_advantage": True,
            "normalize_obs": True,
            "normalize_values": True,
            "scale_rewards": True,
            "ent_coef": 0.1,
            "lr_schedule": "linear",
            "critic_lr": 0.03,
        },
    ),
}


@pytest.mark.parametrize(("env_id", "options"), VARIANTS.values(), ids=VARIANTS)
def test_ppo_with_one_pass_and_one_minibatch_is_a2c(env_id, options):
    common = {"optimizer": "adam", "gae_lambda": 0.9, **options}
    assert_same(train(PPO, env_id, **ONE_PASS, **common), train(A2C, env_id, **common))


@pytest.mark.parametrize(
    "change",
    [
        {"num_epochs": 2},
        {"num_minibatches": 2},
        {"gae_lambda": 0.5},
        {"normalize_advantage": True},
        {"optimizer": "rmsprop"},
        {"num_epochs": 2, "clip_range": 1e-4},
    ],
    ids=str,
)
def test_ppo_with_anything_else_changed_is_not_a2c(change):
    common = {"optimizer": "adam", "gae_lambda": 0.9, **PLAIN}
    assert_different(train(PPO, **(ONE_PASS | common | change)), train(A2C, **common))


@on_whole_episodes
@pytest.mark.parametrize("options", [PLAIN, {"normalize_advantage": True, "memory": "lstm"}], ids=["plain", "lstm"])
def test_a2c_on_whole_episodes_is_reinforce_with_a_learned_baseline(whole, options):
    common = {**whole, "optimizer": "adam", **options}
    expected = train(REINFORCEBaseline, **common)
    assert_same(train(A2C, gae_lambda=1.0, **common), expected)
    assert_different(train(A2C, gae_lambda=0.9, **common), expected)
    assert_different(train(REINFORCEBaseline, discount_objective=True, gamma=0.9, **common), expected)


@pytest.mark.parametrize("env_id", [CART_POLE, PENDULUM])
@pytest.mark.parametrize("num_steps", [1, 8])
def test_a2c_with_lambda_0_is_the_one_step_actor_critic(env_id, num_steps):
    common = {"env_id": env_id, "data": {"num_steps": num_steps}, "optimizer": "adam", **PLAIN}
    expected = train(OneStepActorCritic, **common)
    assert_same(train(A2C, gae_lambda=0.0, **common), expected)
    # With rollouts of one row there is nothing for λ to weigh.
    (assert_same if num_steps == 1 else assert_different)(train(A2C, gae_lambda=1.0, **common), expected)


@on_whole_episodes
@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_reinforce_is_that_with_a_learned_baseline_whose_critic_is_zero_and_stays_so(whole, normalize_advantage):
    common = {**whole, "normalize_advantage": normalize_advantage}
    expected = train(REINFORCE, **common)
    assert_same(train(REINFORCEBaseline, zero_critic=True, vf_coef=0.0, **common), expected)
    assert_different(train(REINFORCEBaseline, **common), expected)
    discounted = {**common, "discount_objective": True, "gamma": 0.9}
    assert_same(train(REINFORCEBaseline, zero_critic=True, vf_coef=0.0, **discounted), train(REINFORCE, **discounted))


@pytest.mark.parametrize("limit", [1, 5])
def test_whole_returns_and_rewards_to_go_are_the_same_for_episodes_of_one_step_only(limit):
    common = {"env_id": PENDULUM, "limit": limit, "data": {"whole_episodes": True, "total_steps": 100}, **PLAIN}
    to_go, whole, discounted = (
        train(REINFORCE, **option, **common) for option in ({}, {"causal": False}, {"discount_objective": True})
    )
    for other in (whole, discounted):
        (assert_same if limit == 1 else assert_different)(other, to_go)


@pytest.mark.parametrize("algorithm", [REINFORCE, REINFORCEBaseline])
def test_without_discounting_both_objectives_are_one(algorithm):
    def weights(gamma, **options):
        return train(algorithm, gamma=gamma, data={"whole_episodes": True}, **options)

    assert_same(weights(1.0, discount_objective=True), weights(1.0))
    assert_different(weights(0.9, discount_objective=True), weights(0.9))
