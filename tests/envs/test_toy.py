"""The toy environments are proper Gymnasium environments and pay what they say."""

from __future__ import annotations

import re
import warnings
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pg_lightning.envs.make import make_vector_env
from pg_lightning.envs.tasks import toy

IDS = sorted(env_id for env_id, spec in gym.registry.items() if str(spec.entry_point).startswith(f"{toy.__name__}:"))
CONTEXTUAL = "pg_lightning/ContextualReward-v0"
RECALL = "pg_lightning/Recall-v0"
MASKED = "pg_lightning/MaskedReward-v0"


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


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_gymnasium_finds_no_fault_in_any_delay_of_recall(delay: int) -> None:
    check(gym.make(RECALL, delay=delay))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_cue_is_seen_first_and_never_again_and_the_last_step_is_marked(delay: int) -> None:
    env: Any = gym.make(RECALL, delay=delay)
    cues = set()
    for seed in range(20):
        observations, _, terminated, truncated = play(env, seed=seed)
        cue = 2 * env.unwrapped.cue - 1
        cues.add(cue)
        assert np.stack(observations)[:, 0].tolist() == [cue] + [0] * (delay + 1)
        # The last row is the observation after the end.
        assert np.stack(observations)[:, 1].tolist() == [0] * delay + [1, 1]
        assert (terminated, truncated) == (True, False)
    assert cues == {-1, 1}


def test_the_default_delay_is_three() -> None:
    assert len(play(gym.make(RECALL))[1]) == 4


def test_a_negative_delay_is_refused() -> None:
    with pytest.raises(ValueError, match="delay must be at least 0, not -1"):
        toy.Recall(delay=-1)


def recall_returns(remembers: bool, last_action: int = 1, early_action: int = 0, episodes: int = 400) -> np.ndarray:
    env, returns = gym.make(RECALL), []
    env.reset(seed=0)
    for _ in range(episodes):
        obs, _ = env.reset()
        cue, rewards, terminated = int(obs[0] > 0), [], False
        while not terminated:
            last = cue if remembers else last_action
            obs, reward, terminated, _, _ = env.step(last if obs[1] else early_action)
            rewards.append(float(reward))
        assert rewards[:-1] == [0.0] * 3
        returns.append(rewards[-1])
    return np.array(returns)


@pytest.mark.parametrize("early_action", [0, 1])
def test_memory_always_earns_one(early_action: int) -> None:
    assert recall_returns(remembers=True, early_action=early_action).tolist() == [1.0] * 400


@pytest.mark.parametrize("last_action", [0, 1])
def test_without_memory_recall_pays_half_of_the_time(last_action: int) -> None:
    assert recall_returns(remembers=False, last_action=last_action).sum() == pytest.approx(200, abs=30)


MASKS = {"discrete": [5], "multi_discrete": [3, 4]}


def parts(action: str, mask: np.ndarray) -> list[list[int]]:
    """The allowed options, choice by choice."""
    assert mask.dtype == np.int8
    assert mask.shape == (sum(MASKS[action]),)
    assert set(mask.tolist()) <= {0, 1}
    return [np.flatnonzero(part).tolist() for part in np.split(mask, np.cumsum(MASKS[action])[:-1])]


@pytest.mark.parametrize("action", MASKS)
def test_gymnasium_finds_no_fault_in_masks(action: str) -> None:
    check(gym.make(MASKED, action=action))


@pytest.mark.parametrize(
    ("action", "space"),
    [("discrete", gym.spaces.Discrete(5)), ("multi_discrete", gym.spaces.MultiDiscrete([3, 4]))],
)
def test_the_masked_action_spaces(action: str, space: gym.Space) -> None:
    assert gym.make(MASKED, action=action).action_space == space


@pytest.mark.parametrize("action", MASKS)
def test_an_action_is_paid_by_what_is_allowed_and_by_the_context(action: str) -> None:
    env: Any = gym.make(MASKED, action=action)
    env.reset(seed=0)
    met = set()
    for _ in range(50):
        for choices in np.ndindex(*MASKS[action]):
            obs, info = env.reset()
            allowed = parts(action, info["action_mask"])
            given = choices[0] if action == "discrete" else np.array(choices)
            _, reward, terminated, truncated, after = env.step(given)
            best = [max(options) if obs[0] == 1 else min(options) for options in allowed]
            if all(choice in options for choice, options in zip(choices, allowed, strict=True)):
                assert reward == np.mean([choice == b for choice, b in zip(choices, best, strict=True)])
            else:
                assert reward == -10
            assert (terminated, truncated) == (True, False)
            assert parts(action, after["action_mask"]) == allowed
            met.add((float(obs[0]), reward))
    rewards = [-10, 0, 1] if action == "discrete" else [-10, 0, 0.5, 1]
    assert met == {(context, reward) for context in (-1.0, 1.0) for reward in rewards}


@pytest.mark.parametrize("action", MASKS)
def test_a_strict_environment_refuses_what_is_not_allowed_and_nothing_else(action: str) -> None:
    env: Any = gym.make(MASKED, action=action, strict=True)
    env.reset(seed=0)
    for _ in range(50):
        for choices in np.ndindex(*MASKS[action]):
            allowed = parts(action, env.reset()[1]["action_mask"])
            given = choices[0] if action == "discrete" else np.array(choices)
            if all(choice in options for choice, options in zip(choices, allowed, strict=True)):
                assert env.step(given)[1] >= 0
            else:
                with pytest.raises(ValueError, match="is not allowed; allowed are"):
                    env.step(given)


@pytest.mark.parametrize("action", MASKS)
def test_every_mask_but_the_empty_one_is_as_likely_under_both_contexts(action: str) -> None:
    env = gym.make(MASKED, action=action)
    env.reset(seed=0)
    counts: dict[tuple[float, ...], int] = {}
    for _ in range(6000):
        obs, info = env.reset()
        assert all(parts(action, info["action_mask"]))
        key = (float(obs[0]), *info["action_mask"].tolist())
        counts[key] = counts.get(key, 0) + 1
    number = 2 * int(np.prod([2**size - 1 for size in MASKS[action]]))
    assert len(counts) == number
    expected = 6000 / number
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(chi2 - (number - 1)) < 4 * np.sqrt(2 * (number - 1))


def test_the_values_of_masked_policies_are_those_of_the_docstring() -> None:
    env: Any = gym.make(MASKED)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    logits, even, blind = [], [], []
    for _ in range(2000):
        obs, info = env.reset()
        mask = info["action_mask"]
        logits.append(env.step(np.argmax(np.where(mask, obs[0] * np.arange(5), -np.inf)))[1])
        even.append(env.step(rng.choice(np.flatnonzero(mask)))[1])
        blind.append(env.step(4 if obs[0] == 1 else 0)[1])
    assert np.mean(logits) == 1
    for returns, expected in ((even, 887 / 1860), (blind, -134 / 31)):
        assert abs(np.mean(returns) - expected) < 3.5 * np.std(returns) / np.sqrt(len(returns))


@pytest.mark.parametrize("action", MASKS)
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_masks_of_copies_are_stacked_and_belong_to_the_next_action(action: str, mode: Any) -> None:
    env: Any = make_vector_env(f"{toy.__name__}:{MASKED}", 3, {"action": action, "strict": True}, autoreset_mode=mode)
    _, infos = env.reset(seed=0)
    for _ in range(20):
        masks = infos["action_mask"]
        assert masks.dtype == np.int8
        first = np.array([[options[0] for options in parts(action, mask)] for mask in masks])
        infos = env.step(first[:, 0] if action == "discrete" else first)[-1]


def test_a_mask_that_was_handed_out_is_not_changed_later() -> None:
    env = gym.make(MASKED)
    kept = env.reset(seed=0)[1]["action_mask"]
    before = kept.copy()
    for _ in range(10):
        env.step(0)
        env.reset()
    np.testing.assert_array_equal(kept, before)
