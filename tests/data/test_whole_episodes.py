"""Rollouts of whole episodes: what is begun is played to its end, so that no length of episode is favoured."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from pg_lightning.algorithms import REINFORCE
from pg_lightning.data import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout

N, ROLLOUTS = 3, 6
SHORT, LONG = 1, 12
MODES = ("same_step", "next_step", "disabled")


class Drawn(gym.Env):
    """Episodes of 1 to 12 steps, +1 a step; even lengths are cut, odd ones end. With `two`, only 1 or 12 steps.

    Observations say (episode, step, length).
    """

    observation_space = gym.spaces.Box(0, 2**24, (3,), np.float32)
    action_space = gym.spaces.Discrete(100)

    def __init__(self, two: bool = False) -> None:
        self.two = two
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        choices = [SHORT, LONG] if self.two else np.arange(SHORT, LONG + 1)
        self.episode, self.steps, self.length = self.episode + 1, 0, int(self.np_random.choice(choices))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        ended, is_cut = self.steps == self.length, self.length % 2 == 0
        return self._observation(), 1.0, ended and not is_cut, ended and is_cut, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.episode, self.steps, self.length], dtype=np.float32)


class Endless(gym.Env):
    """The environments with odd seeds never end, the others after 3 steps."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(100)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.never = seed % 2 == 1
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 3 and not self.never, False, {}


gym.register("tests/Drawn-v0", Drawn)
gym.register("tests/EndlessForSome-v0", Endless)


class Counter:
    """Its memory is the number of steps since it was empty, and so is its action."""

    policy_version = 0
    device = torch.device("cpu")

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 1)

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        return state[:, 0].long(), state + 1

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


class CartPoleCounter(Counter):
    """Goes left and right at random: CartPole has two actions."""

    def env_actions(self, actions: Tensor) -> Tensor:
        return torch.randint(2, actions.shape)


def collect(mode: str, backend: str, num_steps: int, rollouts: int = ROLLOUTS, two: bool = False) -> list[Rollout]:
    if backend == "vector":
        env, actor = make_vector_env("CartPole-v1", N, {"max_episode_steps": 40}, (), "vector"), CartPoleCounter()
    else:
        env, actor = make_vector_env("tests/Drawn-v0", N, {"two": two}, (), backend, mode), Counter()  # type: ignore[arg-type]
    seeds: Any = 5 if backend == "vector" else list(range(N))
    collector = RolloutCollector(env, num_steps, seeds, action_seed=0, whole_episodes=True)
    collected = [collector.collect(actor) for _ in range(rollouts)]
    collector.close()
    return collected


CASES = [(mode, "sync", steps) for mode in MODES for steps in (1, 5, 13)]
CASES += [(mode, "async", 5) for mode in MODES] + [("next_step", "vector", 20), ("next_step", "vector", 1)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def collected(request: pytest.FixtureRequest) -> tuple[tuple[str, str, int], list[Rollout]]:
    return request.param, collect(*request.param)


def ends_of(rollout: Rollout, n: int) -> list[int]:
    """Rows in which episodes of environment n end."""
    return (rollout.done[:, n] & rollout.valid[:, n]).nonzero()[:, 0].tolist()


def test_every_environment_begins_afresh_and_ends_at_its_first_end_at_or_after_the_rows_asked_for(
    collected: Any,
) -> None:
    (_, _, num_steps), rollouts = collected
    for rollout in rollouts:
        assert rollout.starts[0].all()
        lasts = []
        for n in range(N):
            ends = ends_of(rollout, n)
            assert [end for end in ends if end >= num_steps - 1] == ends[-1:]
            assert rollout.valid[:, n].nonzero()[-1] == ends[-1]
            lasts.append(ends[-1])
        # Nobody waits for longer than the last takes.
        assert len(rollout.rewards) == max(lasts) + 1
        assert len(rollout.obs) == max(lasts) + 2


def test_every_episode_is_whole_from_its_first_step_to_its_end(collected: Any) -> None:
    (mode, backend, _), rollouts = collected
    for rollout in rollouts:
        for n in range(N):
            first = 0
            for end in ends_of(rollout, n):
                rows = slice(first, end + 1)
                assert rollout.valid[rows, n].all()
                assert rollout.timesteps[rows, n].tolist() == list(range(end + 1 - first))
                if backend != "vector":
                    _, steps, lengths = rollout.obs[rows, n].unbind(-1)
                    assert steps.tolist() == list(range(end + 1 - first))
                    assert set(lengths.tolist()) == {end + 1 - first}
                first = end + (2 if mode == "next_step" else 1)
            between = [row for row in range(ends_of(rollout, n)[-1]) if not rollout.valid[row, n]]
            assert between == ([end + 1 for end in ends_of(rollout, n)[:-1]] if mode == "next_step" else [])


def test_long_and_short_episodes_are_mixed_and_buffers_grow(collected: Any) -> None:
    (_, _, num_steps), rollouts = collected
    rows = [len(rollout.rewards) for rollout in rollouts]
    assert max(rows) > num_steps
    assert len(set(rows)) > 1
    assert len(set(torch.cat([rollout.episode_lengths for rollout in rollouts]).tolist())) > 3
    assert any(not rollout.valid[-1].all() for rollout in rollouts)


def test_with_one_step_it_is_one_episode_of_every_environment() -> None:
    for mode in MODES:
        assert all(len(rollout.episode_returns) == N for rollout in collect(mode, "sync", 1))


def test_rows_that_wait_are_no_experience(collected: Any) -> None:
    _, rollouts = collected
    for rollout in rollouts:
        ends = [ends_of(rollout, n) for n in range(N)]
        lengths = rollout.timesteps[rollout.done & rollout.valid] + 1
        assert rollout.env_steps == int(rollout.valid.sum()) == int(lengths.sum())
        assert sorted(rollout.episode_lengths.tolist()) == sorted(lengths.tolist())
        assert sorted(rollout.episode_returns.tolist()) == sorted(lengths.tolist())
        assert not rollout.rewards[~rollout.valid].any()
        assert (rollout.rewards[rollout.valid] == 1).all()
        for n in range(N):
            assert not rollout.valid[ends[n][-1] + 1 :, n].any()


def test_final_observations_are_those_of_the_episodes_that_count(collected: Any) -> None:
    (mode, _, _), rollouts = collected
    for rollout in rollouts:
        cut = (rollout.truncated & ~rollout.terminated & rollout.valid).flatten().nonzero()[:, 0].tolist()
        assert sorted(rollout.final_rows.tolist()) == ([] if mode == "next_step" else cut)
        for row, final in zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True):
            before = rollout.obs[:-1].flatten(0, 1)[row]
            assert final.tolist() == [before[0], before[2], before[2]]


def test_the_memory_is_empty_at_every_first_row(collected: Any) -> None:
    _, rollouts = collected
    for rollout in rollouts:
        assert rollout.state is not None
        assert not rollout.state.any()
        assert torch.equal(rollout.actions[rollout.valid], rollout.timesteps[rollout.valid])


def test_episodes_go_on_where_the_last_rollout_left_the_stream_of_random_numbers() -> None:
    """A fresh start is not a new seed: rollouts differ."""
    lengths = [tuple(rollout.episode_lengths.tolist()) for rollout in collect("same_step", "sync", 1)]
    assert len(set(lengths)) == ROLLOUTS


@pytest.mark.parametrize("num_steps", [1, 15])
@pytest.mark.parametrize("mode", MODES)
def test_lengths_have_the_mean_of_independent_episodes_where_those_that_fit_are_too_short(
    mode: str, num_steps: int
) -> None:
    """Where an environment stops depends on what it has played, not on what is to come.

    So the sum of its lengths, less their number times the mean, has mean 0 (Wald's equation).
    """
    mean = (SHORT + LONG) / 2
    excess, fitting = [], []
    for rollout in collect(mode, "sync", num_steps, rollouts=150, two=True):
        for n in range(N):
            ends = torch.tensor(ends_of(rollout, n))
            lengths = rollout.timesteps[ends, n] + 1
            excess.append(float((lengths - mean).sum()))
            fitting += (lengths[ends < num_steps] - mean).tolist()
    assert abs(z_score(excess)) < 3
    if num_steps > 1:
        assert z_score(fitting) < -6


def z_score(x: list[float]) -> float:
    return float(np.mean(x) / (np.std(x, ddof=1) / np.sqrt(len(x))))


@pytest.mark.parametrize("num_steps", [1, 50])
@pytest.mark.parametrize("mode", MODES)
def test_an_episode_without_end_is_refused_in_one_line(mode: str, num_steps: int) -> None:
    env = make_vector_env("tests/EndlessForSome-v0", N, autoreset_mode=mode)  # type: ignore[arg-type]
    collector = RolloutCollector(env, num_steps, list(range(N)), 0, whole_episodes=True, max_episode_steps=40)
    with pytest.raises(
        UserError, match=r"^data\.whole_episodes: an episode has not ended after \d+ steps; give.*$"
    ) as e:
        collector.collect(Counter())
    assert 40 <= int("".join(filter(str.isdigit, str(e.value)))) < 80


def test_environments_that_all_end_are_not_refused_however_many_steps_they_take_together() -> None:
    env = make_vector_env("tests/EndlessForSome-v0", 2)
    collector = RolloutCollector(env, 300, [0, 2], 0, whole_episodes=True, max_episode_steps=40)
    assert collector.collect(Counter()).env_steps == 600


@pytest.mark.parametrize("mode", MODES)
def test_reinforce_learns_from_whole_episodes(fit: Any, mode: str) -> None:
    data = {"num_envs": 8, "num_steps": 1, "whole_episodes": True, "total_steps": 6000, "autoreset_mode": mode}
    data |= {"eval_every_steps": 6000, "eval_episodes": 20}
    module = fit("CartPole-v1", data, algorithm=REINFORCE, lr=1e-2, gamma=0.99)
    assert float(module.evaluation[0].mean()) > 60  # at random it is 22
