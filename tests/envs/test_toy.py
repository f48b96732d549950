"""The toy environments are proper Gymnasium environments and pay what they say."""

from __future__ import annotations

import re
import warnings
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pg_lightning.envs import toy

IDS = sorted(env_id for env_id in gym.registry if env_id.startswith("pg_lightning/"))
CONTEXTUAL = "pg_lightning/ContextualReward-v0"


def test_every_environment_of_the_table_is_registered_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)`", toy.__doc__ or "", re.MULTILINE)
    assert [f"pg_lightning/{name}-v0" for name in sorted(listed)] == IDS


def check(env: gym.Env) -> None:
    with warnings.catch_warnings():
        # Advice on rendering and on the bounds of spaces.
        warnings.simplefilter("ignore")
        check_env(env.unwrapped)
        check_env(env)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_no_fault(env_id: str) -> None:
    check(gym.make(env_id))


@pytest.mark.parametrize("observation", get_args(toy.ObservationKind))
@pytest.mark.parametrize("action", get_args(toy.ActionKind))
def test_gymnasium_finds_no_fault_in_any_kind_of_action_and_observation(action: str, observation: str) -> None:
    check(gym.make(CONTEXTUAL, action=action, observation=observation))


@pytest.mark.parametrize("terminate_after", [None, 5, 8])
def test_gymnasium_finds_no_fault_in_the_endless_environment(terminate_after: int | None) -> None:
    check(gym.make("pg_lightning/Endless-v0", terminate_after=terminate_after))


def play(env: gym.Env, action: Any = 0, seed: int = 0) -> tuple[list[Any], list[float], bool, bool]:
    """Observations, rewards and how the episode ended."""
    observations, rewards, terminated, truncated = [env.reset(seed=seed)[0]], [], False, False
    while not terminated and not truncated:
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        rewards.append(reward)
    return observations, rewards, terminated, truncated


@pytest.mark.parametrize(("name", "rewards"), [("ConstantReward", [1.0]), ("DelayedReward", [0.0, 1.0])])
def test_nothing_is_paid_but_one_at_the_end(name: str, rewards: list[float]) -> None:
    assert play(gym.make(f"pg_lightning/{name}-v0"))[1:] == (rewards, True, False)


def test_the_observation_is_paid() -> None:
    episodes = [play(gym.make("pg_lightning/ObservedReward-v0"), seed=seed) for seed in range(20)]
    assert all(observations[0].tolist() == rewards for observations, rewards, _, _ in episodes)
    assert {rewards[0] for _, rewards, _, _ in episodes} == {-1.0, 1.0}


TARGETS: dict[str, list[Any]] = {
    "discrete": [0, 1],
    "multi_discrete": [[0, 0], [1, 2]],
    "multi_binary": [[0, 1], [1, 0]],
    "box": [[-0.5, 0.5], [0.5, -0.5]],
}


@pytest.mark.parametrize("action", TARGETS)
@pytest.mark.parametrize("contextual", [False, True])
def test_the_target_of_the_context_is_paid_best(action: str, contextual: bool) -> None:
    env: Any = gym.make(CONTEXTUAL, action=action, contextual=contextual)
    contexts = set()
    for seed in range(20):
        env.reset(seed=seed)
        context = env.unwrapped.context
        contexts.add(context)
        best = 0.0 if action == "box" else 1.0
        assert [env.step(np.array(target))[1] == best for target in TARGETS[action]] == [context == 0, context == 1]
    assert contexts == ({0, 1} if contextual else {1})


def test_a_miss_in_a_box_costs_its_squared_distance() -> None:
    env = gym.make("pg_lightning/ContinuousReward-v0")
    assert play(env, np.array([0.0, 0.5], dtype=np.float32))[1] == [-(0.5**2 + 1.0**2)]


@pytest.mark.parametrize("observation", get_args(toy.ObservationKind))
def test_the_context_is_shown_in_every_kind_of_observation_but_hidden(observation: str) -> None:
    env: Any = gym.make(CONTEXTUAL, observation=observation)
    shown = {}
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        shown[env.unwrapped.context] = gym.spaces.flatten(env.observation_space, obs).tolist()
    assert (shown[0] == shown[1]) == (observation == "hidden")


def test_the_hidden_coin_pays_half_of_the_time_and_does_not_show_when() -> None:
    env = gym.make("pg_lightning/HiddenCoin-v0")
    episodes = [play(env, action=1, seed=seed) for seed in range(200)]
    assert all(observations[0] == observations[1] == [0.0] for observations, _, _, _ in episodes)
    assert sum(rewards[0] for _, rewards, _, _ in episodes) == pytest.approx(100, abs=21)


@pytest.mark.parametrize(
    ("kwargs", "length", "terminated", "truncated"),
    [
        ({}, 8, False, True),
        ({"max_episode_steps": 3}, 3, False, True),
        ({"terminate_after": 5}, 5, True, False),
        ({"terminate_after": 8}, 8, True, True),
    ],
)
def test_the_endless_environment_is_cut_or_ended_or_both(
    kwargs: dict[str, int], length: int, terminated: bool, truncated: bool
) -> None:
    env = gym.make("pg_lightning/Endless-v0", first_reward=-2.0, **kwargs)
    observations, rewards, *end = play(env)
    assert rewards == [-2.0] + [1.0] * (length - 1)
    assert end == [terminated, truncated]
    assert observations == [min(t, kwargs.get("terminate_after", 1)) for t in range(length + 1)]
