"""Environments are put back where they were, or say why they cannot be."""

import os
import signal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from pg_lightning.envs import make_vector_env, replay
from pg_lightning.envs.contract import RESTARTED

N = 3


class HiddenCount(CartPoleVectorEnv):
    """Keeps something that is neither a number nor an array, and moves by it."""

    def reset(self, **kwargs):
        self.hidden = [0]
        return super().reset(**kwargs)

    def step(self, action):
        self.hidden[0] += 1
        obs, *rest = super().step(action)
        return obs + self.hidden[0], *rest


gym.register("HiddenCount-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", vector_entry_point=HiddenCount)


def played(env, steps, seed=0):
    """What a collector knows after some steps of random actions."""
    obs, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    actions, returns, lengths = [], np.zeros(N), np.zeros(N, np.int64)
    ended = np.zeros(N, bool)
    for _ in range(steps):
        actions.append(env.action_space.sample())
        obs, rewards, terminated, truncated, _ = env.step(actions[-1])
        resets, ended = ended, terminated | truncated
        returns, lengths = returns + rewards, lengths + ~resets
        returns[ended], lengths[ended] = 0, 0
    return actions, np.array(obs), returns, lengths, ended


def follow(env, steps=60):
    """Observations to come."""
    env.action_space.seed(1)
    return [np.array(env.step(env.action_space.sample())[0]) for _ in range(steps)]


@pytest.mark.parametrize("backend", ["sync", "async", "vector"])
@pytest.mark.parametrize("steps", [1, 13, 14, 19, 20, 34])
def test_what_follows_is_what_would_have_followed(backend, steps):
    """CartPole with random actions: with these steps one is over (13, 34; `vector` 19), has just begun, goes on."""
    env, other = (make_vector_env("CartPole-v1", N, None, (), backend, "next_step") for _ in range(2))
    actions, obs, returns, lengths, ended = played(env, steps)
    assert ended.any() == (steps in ((19,) if backend == "vector" else (13, 34)))
    state = replay.save(env, actions, lengths, ended)
    other.reset(seed=5)
    assert replay.load(other, state, obs, returns, lengths) == ""
    np.testing.assert_array_equal(follow(env), follow(other))
    env.close()
    other.close()


@pytest.mark.parametrize(("part", "change"), [("obs", 1e-6), ("returns", 1.0)])
def test_another_place_is_noticed(part, change):
    env = make_vector_env("CartPole-v1", N)
    actions, obs, returns, lengths, ended = played(env, 5)
    state = replay.save(env, actions, lengths, ended)
    {"obs": obs, "returns": returns}[part][0] += change
    assert replay.load(env, state, obs, returns, lengths) == "the same actions lead to another state"


def test_what_vectorised_code_hides_is_noticed():
    env = make_vector_env("HiddenCount-v0", N, backend="vector")
    actions, obs, returns, lengths, ended = played(env, 5)
    state = replay.save(env, actions, lengths, ended)
    other = make_vector_env("HiddenCount-v0", N, backend="vector")
    other.reset(seed=5)
    assert replay.load(other, state, obs, returns, lengths) == "the same actions lead to another state"


def test_an_environment_that_fails_is_none_that_fails_the_run():
    env = make_vector_env("CartPole-v1", N)
    actions, obs, returns, lengths, ended = played(env, 5)
    state = replay.save(env, actions, lengths, ended)
    state["actions"] = state["actions"] + 7
    assert replay.load(env, state, obs, returns, lengths).startswith("AssertionError: ")
    state["beginnings"][0].update(seed=None, before=None)
    assert replay.load(env, state, obs, returns, lengths).startswith("TypeError: ")


def test_a_process_that_dies_before_its_environment_is_asked_is_none_that_fails_the_run():
    """The next step replaces it, as if nobody had asked."""
    env = make_vector_env("CartPole-v1", N, backend="async")
    actions, _, _, lengths, ended = played(env, 5)
    os.kill(env.pids[1], signal.SIGKILL)
    assert replay.save(env, actions, lengths, ended) is None
    assert env.step(actions[0])[-1][RESTARTED].tolist() == [False, True, False]
    env.close()


def test_a_process_that_dies_in_the_replay_is_none_that_fails_the_run(monkeypatch):
    monkeypatch.setattr(replay.Replayable, "replay", lambda self: os._exit(3))
    env = make_vector_env("CartPole-v1", N, backend="async")
    actions, obs, returns, lengths, ended = played(env, 5)
    reason = replay.load(env, replay.save(env, actions, lengths, ended), obs, returns, lengths)
    assert reason.startswith("data.backend async: replay: env 0 ")
    assert env.reset(seed=5)[0].shape == (N, 4)
    env.close()


def test_an_episode_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr(replay, "MAX_REPLAY", 4)
    env = make_vector_env("CartPole-v1", N)
    actions, obs, returns, lengths, ended = played(env, 5)
    assert replay.save(env, actions, lengths, ended) is None
    assert replay.load(env, None, obs, returns, lengths) == "this back-end cannot save its state"
