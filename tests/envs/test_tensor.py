"""Tasks of tensors are Gymnasium's: the same steps from the same states, in double precision."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waits import Waits, assert_no_step_waits

from pg_lightning.algorithms import A2C, PPO
from pg_lightning.envs import make_vector_env
from pg_lightning.envs.backends.tensor import TASKS, TensorEnvironments
from pg_lightning.errors import UserError

N = 64
CLASSICS = [env_id for env_id in TASKS if "/" not in env_id]
DISCRETE = [env_id for env_id in CLASSICS if isinstance(gym.spec(env_id).make().action_space, gym.spaces.Discrete)]
every_task = pytest.mark.parametrize("env_id", CLASSICS)
# Where episodes pass through and end, and a little beyond: the greatest of each number of the state.
REACH = {
    "CartPole": [2.5, 3.0, 0.25, 3.0],
    "Pendulum": [9.0, 8.0],
    "Acrobot": [np.pi, np.pi, 4 * np.pi, 9 * np.pi],
    "MountainCar": [1.2, 0.07],
    "MountainCarContinuous": [1.2, 0.07],
}


def of_gymnasium(env: Any, state: np.ndarray, action: Any) -> tuple[Any, ...]:
    """Observation, reward and end of one step of Gymnasium's task from a state, and the state that follows."""
    task = env.unwrapped
    task.state = state.copy()
    task.steps_beyond_terminated = None
    obs, reward, terminated, *_ = task.step(action)
    return obs, reward, terminated, np.array(task.state, dtype=np.float64)


@every_task
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_step_is_that_of_gymnasium(env_id: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reach = np.array(REACH[env_id.partition("-")[0]])
    states = rng.uniform(-reach, reach, (N, len(reach)))
    if "MountainCar" in env_id:
        states[:, 0] = states[:, 0].clip(max=0.6)
        states[: N // 4, 0] = -1.2 + 0.01 * rng.random(N // 4)  # at the wall
        states[N // 4 : N // 2, 0] = rng.uniform(0.44, 0.51, N // 4)  # at the goal
    env = gym.make(env_id, disable_env_checker=True)
    env.action_space.seed(seed)
    # In float64, or Gymnasium computes in the precision of the action.
    actions = [np.asarray(env.action_space.sample(), None if env_id in DISCRETE else np.float64) for _ in range(N)]
    expected = [of_gymnasium(env, state, action) for state, action in zip(states, actions, strict=True)]
    task = TASKS[env_id]()
    moved, rewards, terminated = task.step(torch.from_numpy(states), torch.as_tensor(np.array(actions)))
    obs, reward, end, state = (np.array(column) for column in zip(*expected, strict=True))
    # MountainCarContinuous rounds its state to float32.
    atol = 1e-7 if env_id.startswith("MountainCarContinuous") else 1e-9
    np.testing.assert_allclose(moved, state, rtol=0, atol=atol)
    np.testing.assert_allclose(rewards, reward, rtol=0, atol=atol)
    np.testing.assert_array_equal(terminated, end)
    np.testing.assert_allclose(task.observe(moved), obs, rtol=1e-6, atol=1e-6)


@every_task
def test_episodes_begin_where_those_of_gymnasium_do(env_id: str) -> None:
    task, env = TASKS[env_id](), gym.make(env_id, disable_env_checker=True)
    ours = task.first(torch.rand(4000, task.num_uniforms, dtype=torch.float64)).numpy()
    env.reset(seed=0)
    theirs = np.array([(env.reset(), np.array(env.unwrapped.state))[1] for _ in range(4000)])
    np.testing.assert_allclose(ours.min(0), theirs.min(0), atol=0.05 * np.ptp(theirs, 0).max())
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.05 * np.ptp(theirs, 0).max())
    np.testing.assert_allclose(ours.max(0), theirs.max(0), atol=0.05 * np.ptp(theirs, 0).max())


@every_task
def test_spaces_and_time_limit_are_those_of_the_id(env_id: str) -> None:
    env = TensorEnvironments(env_id, 2)
    spec = gym.spec(env_id)
    with gym.make(env_id) as one:
        assert env.single_observation_space == one.observation_space
        assert env.single_action_space == one.action_space
    first, _ = env.reset(0)
    assert first.dtype == torch.float32
    assert env.limit == spec.max_episode_steps


def test_an_episode_is_cut_at_the_limit_and_the_next_begins_in_the_same_step() -> None:
    env = TensorEnvironments("Pendulum-v1", 3, {"max_episode_steps": 4})
    env.reset(1)
    steps = [env.step(torch.zeros(3, 1)) for _ in range(9)]
    assert [step.truncated.all().item() for step in steps] == [False, False, False, True] * 2 + [False]
    cut = steps[3]
    assert cut.final_obs is not None
    assert not torch.equal(cut.final_obs, cut.obs)
    assert cut.obs[:, 2].abs().max() <= 1.0, "the first velocity"
    assert torch.equal(steps[0].final_obs, steps[0].obs), "where nothing ends the last observation is this one"


@pytest.mark.parametrize(
    ("given", "limit"), [({}, 200), ({"max_episode_steps": 7}, 7), ({"max_episode_steps": -1}, None)]
)
def test_the_time_limit_is_what_gymnasium_makes_of_the_argument(given: dict[str, int], limit: int | None) -> None:
    env = TensorEnvironments("Pendulum-v1", 2, given)
    assert env.limit == limit
    env.reset(0)
    cut = [bool(env.step(torch.zeros(2, 1)).truncated.any()) for _ in range(20)]
    assert cut == [limit is not None and (t + 1) % limit == 0 for t in range(20)]


def test_arguments_are_those_of_gymnasium() -> None:
    down = torch.tensor([[0.0, 0.0, 0.25, 0.0]])
    pay = [TASKS["CartPole-v1"](**options).step(down, torch.tensor([0]))[1] for options in ({}, REWARDED)]
    assert [x.item() for x in pay] == [1.0, -1.0]
    with gym.make("Pendulum-v1", g=1.0) as env:
        *_, state = of_gymnasium(env, np.array([1.0, 0.0]), np.array([0.0], np.float32))
    moved, *_ = TASKS["Pendulum-v1"](g=1.0).step(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, 1))
    np.testing.assert_allclose(moved[0], state, atol=1e-12)


TOY, GRID = "pg_lightning.envs.tasks.toy:pg_lightning/", "pg_lightning.envs.tasks.gridworld:pg_lightning/"
EXACT = {
    "constant": (f"{TOY}ConstantReward-v0", {}),
    "delayed": (f"{TOY}DelayedReward-v0", {"length": 4}),
    "observed": (f"{TOY}ObservedReward-v0", {}),
    "recall": (f"{TOY}Recall-v0", {}),
    "recall at once": (f"{TOY}Recall-v0", {"delay": 0}),
    "grey cells": (f"{GRID}GreyCells-v0", {"penalty": 7.0, "max_episode_steps": 9}),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_task_with_an_exact_answer_is_the_one_of_numpy(name: str) -> None:
    """Both play the same actions from the same first observation, which tells the whole state; N episodes each."""
    env_id, options = EXACT[name]
    env = TensorEnvironments(env_id, N, options)
    ones = [gym.make(env_id, **options) for _ in range(N)]
    obs, _ = env.reset(2)
    draw = np.random.default_rng(3)
    lengths = np.zeros(N)
    ended = 0
    for _ in range(12):
        for n in np.flatnonzero(lengths == 0):
            while True:
                first, _ = ones[n].reset(options={"cell": tuple(env.carry[0][n].int().tolist())})
                if (first == obs[n].numpy()).all():
                    break
        actions = draw.integers(int(env.single_action_space.n), size=N)
        step = env.step(torch.from_numpy(actions))
        for n, (one, action) in enumerate(zip(ones, actions, strict=True)):
            expected, reward, terminated, truncated, _ = one.step(action)
            assert (step.rewards[n], step.terminated[n], step.truncated[n]) == (reward, terminated, truncated)
            last = step.final_obs[n] if step.done[n] else step.obs[n]
            np.testing.assert_array_equal(last, expected)
        lengths = np.where(step.done, 0, lengths + 1)
        ended += int(step.done.sum())
        obs = step.obs
    assert ended > N


def test_the_critic_of_a_tensor_task_learns_the_exact_value(fit: Any) -> None:
    data = {"num_envs": 8, "num_steps": 8, "backend": "device", "total_steps": 8_000, "eval_every_steps": 10**6}
    module = fit(f"{TOY}DelayedReward-v0", {**data, "eval_episodes": 1}, algorithm=A2C, gamma=0.5, lr=3e-3)
    values = module.network.v(torch.tensor([[0.0], [0.5]]))
    np.testing.assert_allclose(values.detach(), [0.5, 1.0], atol=0.05)


@every_task
def test_no_step_of_a_rollout_waits_for_the_device(env_id: str) -> None:
    env = TensorEnvironments(env_id, 3, {"max_episode_steps": 5})
    policy = PPO(observation_space=env.single_observation_space, action_space=env.single_action_space)
    actor = policy.double().actor  # which does not act in NumPy
    assert_no_step_waits(env, actor, Waits(copies=True))


REWARDED = {"sutton_barto_reward": True}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"env_id": "LunarLander-v3"}, r"^data.backend: device has CartPole-v0, .*not 'LunarLander-v3'; use sync or"),
        ({"env_id": "nope:pg_lightning/Recall-v0"}, r"^data.env_id: cannot make 'nope:pg_lightning/Recall-v0' on a "),
        ({"env_kwargs": {"max_episode_steps": 0}}, r"^data.env_kwargs: cannot make 'CartPole-v1' on a device: "),
        ({"env_kwargs": {"colour": 1}}, r"^data.env_kwargs: cannot make 'CartPole-v1' on a device: .*colour"),
        ({"autoreset_mode": "next_step"}, r"^data.autoreset_mode: backend 'device' resets as same_step"),
        ({"wrappers": ["gymnasium.wrappers.NormalizeReward"]}, r"^data.wrappers: backend 'device'"),
    ],
    ids=str,
)
def test_what_a_device_does_not_have_is_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_vector_env(**{"env_id": "CartPole-v1", "num_envs": 2, "backend": "device", **options})
