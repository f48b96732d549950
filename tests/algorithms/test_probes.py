"""Environments with one question each: every algorithm must learn what there is to learn, and nothing else."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from pg_lightning.algorithms import A2C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline
from pg_lightning.envs import make_env

TOYS = "pg_lightning.envs.tasks.toy:pg_lightning/"
GAMMA = 0.9
# An update of PPO is 4 gradient steps, of the others 1: they get shorter rollouts and a higher rate.
ONE_STEP = {"data": {"num_steps": 8}, "model": {"lr": 3e-2, "optimizer": "adam"}}
EPISODES = {"data": {"num_steps": 8, "whole_episodes": True}, "model": {"lr": 3e-2}}
SETTINGS: dict[Any, Any] = {
    PPO: {"data": {}, "model": {"num_minibatches": 1}},
    A2C: ONE_STEP,
    OneStepActorCritic: ONE_STEP,
    REINFORCEBaseline: EPISODES,
    REINFORCE: EPISODES,
}
all_algorithms = pytest.mark.parametrize("algorithm", SETTINGS)
algorithms_with_a_critic = pytest.mark.parametrize("algorithm", [a for a in SETTINGS if a.has_critic])


@pytest.fixture
def learn(fit: Any) -> Any:
    """The module trained for a second or so."""

    def run(
        name: str,
        algorithm: Any = PPO,
        total_steps: int = 4096,
        data: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **env_kwargs: Any,
    ) -> Any:
        settings = SETTINGS[algorithm]
        rows = {"env_kwargs": env_kwargs, "num_envs": 8, "num_steps": 16, "total_steps": total_steps}
        rows |= {"eval_every_steps": total_steps, "eval_episodes": 50, **settings["data"], **(data or {})}
        options = {"gamma": GAMMA, "lr": 2e-2, "lr_schedule": "linear", **settings["model"], **(model or {})}
        return fit(f"{TOYS}{name}-v0", rows, algorithm=algorithm, **options)

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


@algorithms_with_a_critic
def test_the_critic_learns_a_constant(learn: Any, algorithm: Any) -> None:
    assert values(learn("ConstantReward", algorithm), [[0.0]]) == pytest.approx([1.0], abs=0.02)


@algorithms_with_a_critic
def test_the_critic_learns_the_observation(learn: Any, algorithm: Any) -> None:
    assert values(learn("ObservedReward", algorithm), [[-1.0], [1.0]]) == pytest.approx([-1.0, 1.0], abs=0.05)


@algorithms_with_a_critic
def test_the_critic_discounts_a_reward_to_come_once_per_step(learn: Any, algorithm: Any) -> None:
    assert values(learn("DelayedReward", algorithm), [[0.0], [0.5]]) == pytest.approx([GAMMA, 1.0], abs=0.03)


@algorithms_with_a_critic
def test_the_critic_discounts_over_many_steps(learn: Any, algorithm: Any) -> None:
    v = values(learn("DelayedReward", algorithm, length=4), [[0.0], [0.25], [0.5], [0.75]])
    assert v == pytest.approx([GAMMA**3, GAMMA**2, GAMMA, 1.0], abs=0.05)


def check_choices(module: Any, obs: torch.Tensor, targets: list[Any]) -> None:
    """π is at least 95 % certain of the target of every context, V is near its best value 1, and all is hit."""
    with torch.no_grad():
        pi = module.network.pi(obs)
        probability = pi.log_prob(torch.tensor(targets)).exp()
    assert pi.mode.tolist() == targets
    assert probability.min() > 0.95
    if module.has_critic:
        assert values(module, obs) == pytest.approx([1.0] * len(targets), abs=0.06)
    assert module.evaluation[0].tolist() == [1.0] * 50


@all_algorithms
def test_the_actor_learns_the_better_of_two_actions(learn: Any, algorithm: Any) -> None:
    check_choices(learn("ActionReward", algorithm), observations("ActionReward"), [1])


@all_algorithms
def test_the_actor_learns_to_heed_the_observation(learn: Any, algorithm: Any) -> None:
    check_choices(learn("ContextualReward", algorithm), observations("ContextualReward"), [0, 1])


@pytest.mark.parametrize("kind", ["image", "discrete", "multi_discrete", "multi_binary", "tuple", "dict"])
def test_the_actor_learns_to_heed_every_kind_of_observation(learn: Any, kind: str) -> None:
    obs = observations("ContextualReward", observation=kind)
    check_choices(learn("ContextualReward", observation=kind), obs, [0, 1])


@all_algorithms
def test_the_actor_learns_each_part_of_a_multi_discrete_action(learn: Any, algorithm: Any) -> None:
    module = learn("MultiDiscreteReward", algorithm)
    check_choices(module, observations("MultiDiscreteReward"), [[0, 0], [1, 2]])


@all_algorithms
def test_the_actor_learns_each_bit_of_a_multi_binary_action(learn: Any, algorithm: Any) -> None:
    check_choices(learn("MultiBinaryReward", algorithm), observations("MultiBinaryReward"), [[0, 1], [1, 0]])


def check_points(module: Any, obs: torch.Tensor, targets: list[list[float]], still_wide: bool = False) -> None:
    """The mode is near the target of every context, and V is what the policy gets there."""
    with torch.no_grad():
        pi = module.network.pi(obs)
        mode = module.actor.env_actions(pi.mode)
        samples = torch.stack([module.actor.env_actions(pi.sample()) for _ in range(2000)])
    expected = -(samples - torch.tensor(targets)).square().sum(-1).mean(0)
    if module.has_critic:
        assert values(module, obs) == pytest.approx(expected.tolist(), abs=0.06)
    if still_wide:
        torch.testing.assert_close(samples.mean(0), torch.tensor(targets), rtol=0, atol=0.25)
        assert expected.min() > -0.5  # in the beginning −0.96
    else:
        torch.testing.assert_close(mode, torch.tensor(targets), rtol=0, atol=0.1)
        assert module.evaluation[0].min() > -0.02


@all_algorithms
def test_the_actor_learns_a_point_in_a_box(learn: Any, algorithm: Any) -> None:
    module = learn("ContinuousReward", algorithm, total_steps=8192, model={"log_std_init": -1.0})
    check_points(module, observations("ContinuousReward"), [[0.5, -0.5]])


@pytest.mark.parametrize("head", ["gaussian", "squashed_gaussian", "beta"])
@all_algorithms
def test_the_actor_learns_a_point_for_every_context_with_every_head(learn: Any, algorithm: Any, head: str) -> None:
    model = {"head": head, "log_std_init": -1.0}
    module = learn("ContinuousContextualReward", algorithm, total_steps=8192, model=model)
    targets = [[-0.5, 0.5], [0.5, -0.5]]
    # A beta distribution narrows slowly, and as long as it is wide, less of it is far off if it leans to the bound.
    check_points(module, observations("ContinuousContextualReward"), targets, still_wide=head == "beta")


@all_algorithms
def test_nothing_is_learned_of_a_coin_that_is_not_shown(learn: Any, algorithm: Any) -> None:
    module = learn("HiddenCoin", algorithm, data={"eval_episodes": 400})
    assert float(module.evaluation[0].mean()) == pytest.approx(0.5, abs=0.08)  # 3 standard errors
    if module.has_critic:
        assert values(module, [[0.0]]) == pytest.approx([0.5], abs=0.1)


# Actions that are not allowed.


def smallest_and_largest(obs: Any, mask: Any, sizes: list[int]) -> list[int]:
    """What context −1 or +1 asks for."""
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    return [int(np.flatnonzero(part)[-1 if obs[0] > 0 else 0]) for part in parts]


@pytest.mark.parametrize("algorithm", [PPO, A2C, REINFORCE])
@pytest.mark.parametrize("action", ["discrete", "multi_discrete"])
def test_the_actor_learns_the_best_of_what_is_allowed(learn: Any, algorithm: Any, action: str) -> None:
    """`strict` raises at any action that is not allowed, in training as in evaluation."""
    module = learn("MaskedReward", algorithm, total_steps=8192, action=action, strict=True)
    assert module.evaluation[0].mean() > 0.97
    env = make_env(f"{TOYS}MaskedReward-v0", {"action": action})
    sizes = env.unwrapped.sizes
    for seed in range(20):
        obs, info = env.reset(seed=seed)
        with torch.no_grad():
            features = module.network.actor_torso(torch.as_tensor(obs)[None])
            pi = module.network.actor_head(features, torch.as_tensor(info["action_mask"])[None])
        best = smallest_and_largest(obs, info["action_mask"], sizes)
        assert pi.mode.flatten().tolist() == best


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("action", ["discrete", "multi_discrete"])
def test_no_action_is_taken_that_is_not_allowed(learn: Any, action: str, mode: str, backend: str) -> None:
    data = {"autoreset_mode": mode, "backend": backend, "num_envs": 3, "eval_deterministic": False}
    module = learn("MaskedReward", total_steps=300, data=data, action=action, strict=True)
    assert module.env_steps >= 300
    assert module.evaluation[0].min() >= 0


class HideMask(gym.Wrapper):
    """Keeps to itself what is allowed."""

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: Any) -> Any:
        return (*self.env.step(action)[:4], {})


def test_without_the_mask_it_would_not_be_learned(learn: Any) -> None:
    data = {"wrappers": [f"{HideMask.__module__}.HideMask"], "eval_episodes": 200}
    module = learn("MaskedReward", total_steps=8192, data=data)
    assert module.evaluation[0].mean() < -3  # the best is −4.32
