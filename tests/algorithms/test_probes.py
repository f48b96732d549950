"""Environments with one question each: PPO must learn exactly what there is to learn, and nothing where there isn't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pg_lightning.envs import make_env

TOYS = "pg_lightning.envs.toy:pg_lightning/"
GAMMA = 0.9


@pytest.fixture
def learn(fit: Any) -> Any:
    """The module trained for a second or so."""

    def run(name: str, total_steps: int = 4096, **env_kwargs: Any) -> Any:
        data = {"env_kwargs": env_kwargs, "num_envs": 8, "num_steps": 16, "total_steps": total_steps}
        data |= {"eval_every_steps": total_steps, "eval_episodes": 50}
        model = {"gamma": GAMMA, "lr": 2e-2, "lr_schedule": "linear", "log_std_init": -1.0, "num_minibatches": 1}
        return fit(f"{TOYS}{name}-v0", data, **model)

    return run


def observations(name: str, **env_kwargs: Any) -> torch.Tensor:
    """The observations of contexts 0 and 1, flattened as training sees them."""
    env = make_env(f"{TOYS}{name}-v0", env_kwargs)
    by_context = {}
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        by_context[env.unwrapped.context] = np.asarray(obs, dtype=np.float32)
    return torch.from_numpy(np.stack([by_context[c] for c in sorted(by_context)]))


def values(module: Any, obs: Any) -> list[float]:
    with torch.no_grad():
        return module.network.v(torch.as_tensor(obs)).tolist()


def test_the_critic_learns_a_constant(learn: Any) -> None:
    assert values(learn("ConstantReward"), [[0.0]]) == pytest.approx([1.0], abs=0.02)


def test_the_critic_learns_the_observation(learn: Any) -> None:
    assert values(learn("ObservedReward"), [[-1.0], [1.0]]) == pytest.approx([-1.0, 1.0], abs=0.05)


def test_the_critic_discounts_a_reward_to_come_once_per_step(learn: Any) -> None:
    assert values(learn("DelayedReward"), [[0.0], [0.5]]) == pytest.approx([GAMMA, 1.0], abs=0.03)


def test_the_critic_discounts_over_many_steps(learn: Any) -> None:
    v = values(learn("DelayedReward", length=4), [[0.0], [0.25], [0.5], [0.75]])
    assert v == pytest.approx([GAMMA**3, GAMMA**2, GAMMA, 1.0], abs=0.05)


def check_choices(module: Any, obs: torch.Tensor, targets: list[Any]) -> None:
    """π is at least 95 % certain of the target of every context, V is near its best value 1, and all is hit."""
    with torch.no_grad():
        pi, v = module.network(obs)
        probability = pi.log_prob(torch.tensor(targets)).exp()
    assert pi.mode.tolist() == targets
    assert probability.min() > 0.95
    assert v.tolist() == pytest.approx([1.0] * len(targets), abs=0.06)
    assert module.evaluation[0].tolist() == [1.0] * 50


def test_the_actor_learns_the_better_of_two_actions(learn: Any) -> None:
    check_choices(learn("ActionReward"), observations("ActionReward"), [1])


@pytest.mark.parametrize("kind", ["box", "image", "discrete", "multi_discrete", "multi_binary", "tuple", "dict"])
def test_the_actor_learns_to_heed_every_kind_of_observation(learn: Any, kind: str) -> None:
    obs = observations("ContextualReward", observation=kind)
    check_choices(learn("ContextualReward", observation=kind), obs, [0, 1])


def test_the_actor_learns_each_part_of_a_multi_discrete_action(learn: Any) -> None:
    check_choices(learn("MultiDiscreteReward"), observations("MultiDiscreteReward"), [[0, 0], [1, 2]])


def test_the_actor_learns_each_bit_of_a_multi_binary_action(learn: Any) -> None:
    check_choices(learn("MultiBinaryReward"), observations("MultiBinaryReward"), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("name", "targets"),
    [("ContinuousReward", [[0.5, -0.5]]), ("ContinuousContextualReward", [[-0.5, 0.5], [0.5, -0.5]])],
)
def test_the_actor_learns_a_point_in_a_box(learn: Any, name: str, targets: list[list[float]]) -> None:
    module = learn(name, total_steps=8192)
    with torch.no_grad():
        pi, v = module.network(observations(name))
    torch.testing.assert_close(pi.mode, torch.tensor(targets), rtol=0, atol=0.1)
    assert v.tolist() == pytest.approx([-2 * float(pi.log_std.exp().square().mean())] * len(targets), abs=0.05)
    assert module.evaluation[0].min() > -0.02


def test_nothing_is_learned_of_a_coin_that_is_not_shown(fit: Any) -> None:
    data = {"num_envs": 8, "num_steps": 16, "total_steps": 4096, "eval_every_steps": 4096, "eval_episodes": 400}
    module = fit(f"{TOYS}HiddenCoin-v0", data, gamma=GAMMA, lr=2e-2, lr_schedule="linear", num_minibatches=1)
    assert float(module.evaluation[0].mean()) == pytest.approx(0.5, abs=0.08)  # 3 standard errors
    assert values(module, [[0.0]]) == pytest.approx([0.5], abs=0.1)
