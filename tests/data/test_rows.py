"""Rows on the host and rows on a device make the same rollout of the same steps."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import actor_for
from gymnasium import spaces
from tensor_env import TensorCartPole
from torch import Tensor

import pg_lightning.envs.tasks.toy  # noqa: F401 - registers some of the tasks
from pg_lightning.data import RolloutCollector
from pg_lightning.data.device_rows import DeviceRows
from pg_lightning.data.host_rows import HostRows
from pg_lightning.envs.backends.tensor import TASKS, TensorEnvironments
from pg_lightning.envs.contract import Capabilities, Environments, VectorStep
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout

N, T, ROLLOUTS = 4, 6, 5
KINDS = {"host": None, "device": torch.device("cpu")}


class Space:
    """As much of `Environments` as rows ask of it."""

    num_envs = N
    single_action_space = spaces.Discrete(3)

    def __init__(self, kind: str, dtype: Any = np.float32) -> None:
        self.capabilities = Capabilities(device=KINDS[kind])
        self.single_observation_space = spaces.Box(0, 255, (2,), dtype)


def as_kind(kind: str, x: np.ndarray | None) -> Any:
    return None if x is None else np.array(x) if kind == "host" else torch.from_numpy(np.array(x))


def steps_of(seed: int, mode: str, masked: bool, restarts: bool, dtype: Any = np.float32) -> Any:
    """Steps without end that break no rule of the contract, drawn at random."""
    draw = np.random.default_rng(seed)
    pending = np.zeros(N, bool)

    def obs() -> np.ndarray:
        return draw.integers(0, 255, (N, 2)).astype(dtype)

    def mask() -> np.ndarray | None:
        return draw.integers(0, 2, (N, 3)).astype(np.int8) if masked else None

    yield obs(), mask()
    while True:
        restarted = draw.random(N) < 0.1 if restarts and draw.random() < 0.5 else None
        free = ~pending if restarted is None else ~pending & ~restarted
        terminated, truncated = free & (draw.random(N) < 0.2), free & (draw.random(N) < 0.3)
        done = terminated | truncated
        begins, valid, final_obs = done, None, None
        if mode == "next_step":
            begins, valid, pending = pending, ~pending, done
        elif mode == "final observations":
            final_obs = obs()
        if restarted is not None:
            begins, valid = begins | restarted, free if valid is None else valid & ~restarted
        rewards = draw.normal(size=N)
        if restarted is not None:
            rewards[restarted] = 0.0
        yield VectorStep(obs(), rewards, terminated, truncated, done, begins, final_obs, valid, restarted, mask())


def rollouts_of(kind: str, whole: bool, steps: Any, dtype: Any = np.float32) -> list[Rollout]:
    """Rollouts as the collector makes them; what a step gave is overwritten after it, as simulators do."""
    make: Any = HostRows if kind == "host" else DeviceRows
    rows = make(Space(kind, dtype), T, whole)
    rows.show(*(as_kind(kind, x) for x in next(steps)))
    state = torch.ones(N, 2)
    rollouts = []
    for k in range(ROLLOUTS):
        rows.begin()
        first_state = state
        while rows.t < T or (whole and rows.episodes.any_playing()):
            rows.actions.append(rows.now[:, 0].float() + rows.t)
            buffers = VectorStep(*(as_kind(kind, x) for x in next(steps)[:-1]))
            rows.add(buffers)
            state = rows.carried(state, state, buffers.begins) * 0.5
            for array in buffers:
                if array is not None:
                    array[...] = 1  # type: ignore[index]
        rollouts.append(rows.rollout(k, first_state, 3 if k else None))
        if whole:
            rows.show(*(as_kind(kind, x) for x in next(steps)[0:10:9]))
    return rollouts


def assert_same(one: Rollout, other: Rollout) -> None:
    for field in fields(Rollout):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype, field.name
            assert torch.equal(mine, theirs), field.name
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("mode", ["final observations", "unknown final observations", "next_step"])
@pytest.mark.parametrize("seed", range(3))
def test_host_and_device_make_the_same_rollout(mode: str, whole: bool, masked: bool, restarts: bool, seed: int) -> None:
    host, device = (rollouts_of(kind, whole, steps_of(seed, mode, masked, restarts)) for kind in KINDS)
    for one, other in zip(host, device, strict=True):
        assert_same(one, other)
    assert sum(rollout.episode_returns.numel() for rollout in host)
    assert (sum(rollout.final_rows.numel() for rollout in host) > 0) == (mode != "next_step")
    assert (host[0].action_mask is not None) == masked
    assert all(len(rollout.rewards) == T for rollout in host) or whole


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_bytes(kind: str) -> None:
    rollout = rollouts_of(kind, False, steps_of(0, "final observations", False, False, np.uint8), np.uint8)[0]
    assert rollout.obs.dtype == rollout.final_obs.dtype == torch.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_final_observation_is_unknown_the_one_before_it_stands_for_it(kind: str) -> None:
    rollout = rollouts_of(kind, False, steps_of(0, "unknown final observations", False, False))[0]
    assert len(rollout.final_rows)
    assert torch.equal(rollout.final_obs, rollout.obs[:-1].flatten(0, 1)[rollout.final_rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["obs", "rewards", "final_obs", "action"])
def test_what_is_not_finite_is_refused_by_environment_and_step(kind: str, what: str) -> None:
    make: Any = HostRows if kind == "host" else DeviceRows
    rows = make(Space(kind), T, False)
    rows.show(as_kind(kind, np.zeros((N, 2), np.float32)), None)
    rows.begin()
    for t in range(3):
        cut = np.full(N, t == 1)
        arrays: dict[str, np.ndarray] = {"obs": np.zeros((N, 2)), "rewards": np.zeros(N), "final_obs": np.zeros((N, 2))}
        action = torch.zeros(N)
        if t == 1 and what in arrays:
            arrays[what][2] = np.nan
        if t == 1 and what == "action":
            action[2] = np.nan
        rows.actions.append(action)
        obs, rewards, final_obs = (as_kind(kind, arrays[name]) for name in ("obs", "rewards", "final_obs"))
        no, yes = as_kind(kind, np.zeros(N, bool)), as_kind(kind, cut)
        rows.add(VectorStep(obs, rewards, no, yes, yes, yes, final_obs))
    words = {"obs": "observation", "rewards": "reward", "final_obs": "final observation", "action": "action"}[what]
    with pytest.raises(UserError, match=rf"non-finite {words} (in|to) env 2 at step 1 of a rollout of {T}"):
        rows.rollout(0, None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_first", [False, True])
def test_a_mask_in_some_steps_only_is_refused(kind: str, at_first: bool) -> None:
    make: Any = HostRows if kind == "host" else DeviceRows
    rows = make(Space(kind), T, False)
    mask = as_kind(kind, np.ones((N, 3), np.int8))
    rows.show(as_kind(kind, np.zeros((N, 2), np.float32)), mask if at_first else None)
    rows.begin()
    no = as_kind(kind, np.zeros(N, bool))
    step = VectorStep(as_kind(kind, np.zeros((N, 2))), as_kind(kind, np.zeros(N)), no, no, no, no)
    with pytest.raises(UserError, match="in some steps only"):
        rows.add(step if at_first else step._replace(action_mask=mask))


class OnTheHost(TensorCartPole):
    """The same environment, which gives arrays."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.capabilities = replace(self.capabilities, device=None)

    def reset(self, seeds: Any = None) -> Any:
        return super().reset(seeds)[0].numpy(), None

    def step(self, actions: Tensor) -> Any:
        return VectorStep(*(None if x is None else x.numpy() for x in super().step(actions)[:-1]))


@pytest.mark.parametrize("memory", [None, "lstm"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_the_collector_makes_of_tensors_what_it_makes_of_arrays(whole: bool, knows: bool, memory: str | None) -> None:
    rollouts = []
    for make in (OnTheHost, TensorCartPole):
        env: Environments = make(N, 7, knows)
        module = actor_for(env, memory=memory)
        collector = RolloutCollector(env, 20, 3, action_seed=5, whole_episodes=whole)
        rollouts.append([collector.collect(module) for _ in range(3)])
        collector.close()
    for one, other in zip(*rollouts, strict=True):
        assert_same(one, other)
        assert one.final_rows.numel() > 0
        assert one.episode_returns.numel() > 0


@pytest.mark.parametrize("env_id", ["the stub", *TASKS])
def test_on_a_device_no_step_waits_for_the_host(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns a tensor into a number of Python's waits for the device: the rollout does once, its steps never."""
    limit = {"max_episode_steps": 7}
    env: Any = TensorCartPole(N, 7) if env_id == "the stub" else TensorEnvironments(env_id, N, limit)
    module = actor_for(env)
    collector = RolloutCollector(env, 20, 3, action_seed=5)
    collector.collect(module)
    waits: list[str] = []
    for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero"):
        original = getattr(Tensor, name)

        def watched(self: Tensor, *args: Any, _original: Any = original, _name: str = name) -> Any:
            waits.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(Tensor, name, watched)
    collector.collect(module)
    monkeypatch.undo()
    assert waits == ["tolist"]
