"""Simulators that return tensors: what the adapters make of each kind, compared with NumPy, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import doubles
import numpy as np
import pytest
import simulators
import torch
from gymnasium import spaces
from simulators import Pole, privileged
from torch import Tensor
from waits import Waits, assert_no_step_waits

from pg_lightning.data import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.errors import UserError
from pg_lightning.policies.obs_groups import groups_of
from pg_lightning.rollout import Rollout

N, LIMIT, T = 32, 9, 40
actor_for = partial(doubles.actor_for, log_std_init=0.5)


def make(name: str, num_envs: int = N, **kwargs: Any) -> Any:
    return make_vector_env(f"simulators.{name}", num_envs, {"limit": LIMIT, **kwargs}, backend="simulator")


@dataclass
class Kind:
    """What a simulator says of the ends of episodes.

    Attributes:
        name: of the class in `simulators`.
        kwargs: its arguments.
        both: what an episode counts as that falls in the step of its limit.
        knows: whether the last observation is known.
        group: of the actor; empty if there are no groups.
        privileged_group: of the critic; empty if it sees the same.
    """

    name: str
    kwargs: dict[str, Any]
    both: str = "both"
    knows: bool = False
    group: str = ""
    privileged_group: str = ""


KINDS = {
    "Isaac Lab": Kind("IsaacLab", {}, group="policy", privileged_group="critic"),
    "Isaac Lab with final_obs": Kind(
        "IsaacLab", {"gives_final_obs": True}, knows=True, group="policy", privileged_group="critic"
    ),
    "Isaac Lab without a critic's group": Kind("IsaacLab", {"has_critic": False}),
    "mjlab": Kind("Mjlab", {}, group="actor", privileged_group="critic"),
    "ManiSkill": Kind("ManiSkill", {}, knows=True),
    "own, same_step": Kind("OwnVectorEnv", {"mode": "same_step"}, knows=True),
    "own, next_step": Kind("OwnVectorEnv", {"mode": "next_step"}, knows=True),
    "own, float64": Kind("OwnVectorEnv", {"mode": "same_step", "dtype": "float64"}, knows=True),
    "Genesis": Kind("Genesis", {}, both="truncated"),
    "Genesis, no groups": Kind("Genesis", {"groups": False}, both="truncated"),
    "Playground": Kind("Playground", {}, both="terminated", group="state", privileged_group="privileged_state"),
    "rsl_rl": Kind("RslRl", {}, both="truncated"),
}


def expected_rollout(kind: Kind, pole: Pole, start: np.ndarray) -> dict[str, np.ndarray]:
    """The rollout of the recorded actions in NumPy, from the states `[N, 4]`."""
    state, steps, waits = start.astype(np.float32), np.zeros(N, int), np.zeros(N, bool)
    resets_next = kind.kwargs.get("mode") == "next_step"
    columns: dict[str, list[np.ndarray]] = {"obs": [state]}
    finals: dict[int, np.ndarray] = {}
    for t, actions in enumerate(pole.actions):
        x, v, angle, w = state.T
        force = actions[:, 0].numpy().clip(-1, 1)
        moved = np.stack([x + 0.02 * v, v + 0.2 * force, angle + 0.02 * w, w + 0.3 * angle - 0.3 * force], 1)
        moved = moved.astype(np.float32)
        steps += 1
        fell, is_late = abs(moved[:, 2]) > 0.2, steps >= LIMIT
        terminated = fell & ~is_late if kind.both == "truncated" else fell
        truncated = is_late & ~fell if kind.both == "terminated" else is_late
        rewards, done = 1 - abs(moved[:, 0]), fell | is_late
        first = pole.firsts[t].numpy() if t in pole.firsts else np.full((N, 4), np.nan)
        valid = ~waits
        if resets_next:
            rewards, terminated, truncated, done = rewards * valid, terminated & valid, truncated & valid, done & valid
            begins, following = waits, np.where(waits[:, None], first, moved)
            waits = done
        else:
            begins, following = done, np.where(done[:, None], first, moved)
            for n in np.flatnonzero(truncated & ~terminated):
                finals[t * N + n] = moved[n] if kind.knows else state[n]
        steps[begins] = 0
        state = following.astype(np.float32)
        row = {"obs": state, "rewards": rewards, "terminated": terminated, "truncated": truncated, "valid": valid}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    arrays = {name: np.stack(column) for name, column in columns.items()}
    arrays["final_rows"] = np.array([*finals], int)
    arrays["final_obs"] = np.array([*finals.values()]).reshape(-1, 4)
    return arrays


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_rollout_is_that_of_the_same_actions_in_numpy(kind: Kind) -> None:
    env = make(kind.name, **kind.kwargs)
    collector = RolloutCollector(env, T, 3, action_seed=5)
    actor = actor_for(env)
    rollouts = [collector.collect(actor) for _ in range(2)]
    groups = groups_of(env.single_observation_space)
    columns = groups[kind.group] if kind.group else slice(None)
    obs = np.concatenate([rollouts[0].obs.numpy(), rollouts[1].obs[1:].numpy()])
    expected = expected_rollout(kind, Pole.latest, obs[0][:, columns])
    np.testing.assert_allclose(obs[..., columns], expected["obs"], atol=1e-5)
    for name in ("rewards", "terminated", "truncated", "valid"):
        found = torch.cat([getattr(rollout, name) for rollout in rollouts]).numpy()
        np.testing.assert_allclose(found, expected[name], atol=1e-5, err_msg=name)
        assert found.any()
    if kind.both == "both":
        assert (expected["terminated"] & expected["truncated"]).any()
    final_rows = torch.cat([rollouts[0].final_rows, rollouts[1].final_rows + T * N]).numpy()
    np.testing.assert_array_equal(final_rows, expected["final_rows"])
    final_obs = torch.cat([rollout.final_obs for rollout in rollouts]).numpy()
    np.testing.assert_allclose(final_obs[..., columns], expected["final_obs"], atol=1e-5)
    assert (len(final_rows) == 0) == (kind.kwargs.get("mode") == "next_step")
    if kind.privileged_group:
        seen = torch.as_tensor(obs[..., columns])
        known = privileged(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        torch.testing.assert_close(torch.as_tensor(obs[..., groups[kind.privileged_group]]), known)
    taken = torch.stack(Pole.latest.actions)
    actions = torch.cat([rollout.actions for rollout in rollouts])
    bounded = np.isfinite(env.single_action_space.low).all()
    torch.testing.assert_close(taken, actions.clamp(-1, 1) if bounded else actions)
    assert env.capabilities.knows_final_obs == kind.knows


def test_actor_and_critic_see_their_groups_without_an_option() -> None:
    for name, pair in {
        "IsaacLab": ("policy", "critic"),
        "Mjlab": ("actor", "critic"),
        "Playground": ("state", "privileged_state"),
    }.items():
        env = make(name)
        policy = actor_for(env).policy
        groups = groups_of(env.single_observation_space)
        assert policy.actor_torso.columns == (groups[pair[0]],)
        assert policy.critic_torso.columns == (groups[pair[1]],)


def test_nested_observations_are_flattened_as_by_gymnasium() -> None:
    env = make("ManiSkill", nested=True)
    obs, _ = env.reset(3)
    pole = Pole.latest.state
    original = env.single_observation_space.original
    for n in range(N):
        parts = {"agent": {"qpos": pole[n, :2], "qvel": pole[n, 2:]}, "extra": privileged(pole)[n]}
        np.testing.assert_allclose(obs[n], spaces.flatten(original, parts))


def test_images_stay_bytes_and_keep_their_shape() -> None:
    env = make("OwnVectorEnv", dtype="uint8", mode="same_step")
    assert env.single_observation_space == spaces.Box(0, 255, (2, 2), np.uint8)
    rollout = RolloutCollector(env, T, 3, action_seed=5).collect(actor_for(env))
    assert rollout.obs.dtype == rollout.final_obs.dtype == torch.uint8
    assert rollout.obs.shape == (T + 1, N, 2, 2)


def test_the_bounds_of_the_simulators_space_are_kept() -> None:
    box = make("OwnVectorEnv", dtype="float64").single_observation_space
    assert box == spaces.Box(-4.0, 4.0, (4,), np.float32)
    assert make("Mjlab").single_action_space == simulators.FORCE
    assert make("Genesis").single_action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)


@contextmanager
def infos(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    said: list[str] = []
    monkeypatch.setattr("pg_lightning.envs.backends.simulator_contracts.rank_zero_info", said.append)
    yield said


def test_numbers_in_double_precision_are_converted_and_that_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with infos(monkeypatch) as said:
        env = make("OwnVectorEnv", dtype="float64")
        obs, _ = env.reset(3)
        for _ in range(3):
            step = env.step(torch.zeros(N, 1))
    assert obs.dtype == step.obs.dtype == step.rewards.dtype == torch.float32
    assert said == ["data.env_id: the observations are float64, and are converted to float32"]


def test_the_wrapper_of_playground_is_reset_once_for_each_reset() -> None:
    env = make("Playground")
    assert env.env.resets == 1
    env.reset(3)
    assert env.env.resets == 2
    env.step(torch.zeros(N, 1))
    assert env.env.resets == 2


def test_a_seed_is_the_simulators_where_it_takes_one() -> None:
    for name, expected in {"IsaacLab": "one", "RslRl": "one", "Genesis": "none", "Playground": "none"}.items():
        assert make(name).capabilities.seeds == expected


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_no_step_of_a_rollout_waits_for_the_device(kind: Kind) -> None:
    env = make(kind.name, **kind.kwargs)
    assert_no_step_waits(env, actor_for(env), Waits(env.env))


def test_operations_that_wait_are_found() -> None:
    env = make("Mjlab")
    waits, x = Waits(env.env), torch.ones(3)
    with waits, torch.inference_mode():
        bool(x.any())
        x.nonzero()
        x[x > 0]
    assert len(waits.found) == 3


def test_what_gymnasium_registers_is_made_by_its_id() -> None:
    isaac = make_vector_env("simulators:FakeIsaac-v0", 3, {"gives_final_obs": True}, backend="simulator")
    assert isaac.num_envs == 3
    own = make_vector_env("OwnTensors-v0", 3, {"limit": 4}, backend="simulator")
    assert (own.num_envs, own.capabilities.autoreset) == (3, "next_step")
    assert isinstance(isaac.step(torch.zeros(3, 1)).obs, Tensor)


@pytest.mark.parametrize(
    ("env_id", "settings", "message"),
    [
        ("simulators.eight_poles", {}, "data.num_envs: simulators.eight_poles has 8 environments, not 4; set it to 8"),
        ("simulators.numpy_poles", {}, "data.backend: the observations of this simulator are ndarray, not tensors; "),
        ("simulators.one_pole", {}, "data.env_id: simulators.one_pole is no vector environment: "),
        ("simulators.nope", {}, "data.env_id: cannot import 'simulators.nope': "),
        ("nope.nope", {}, "data.env_id: cannot import 'nope.nope': "),
        ("Nope-v0", {}, "data.env_id: cannot make 'Nope-v0': "),
        ("simulators.IsaacLab", {"env_kwargs": {"a": 1}}, "data.env_kwargs: cannot make 'simulators.IsaacLab': "),
        ("simulators.IsaacLab", {"env_kwargs": {"num_envs": 4}}, "data.env_kwargs: num_envs is data.num_envs; remove"),
        ("simulators.IsaacLab", {"wrappers": ["a.B"]}, "data.wrappers: backend 'simulator' runs "),
        ("simulators.IsaacLab", {"autoreset_mode": "next_step"}, "data.autoreset_mode: simulators.IsaacLab resets as "),
        ("simulators.ManiSkill", {"env_kwargs": {"auto_reset": False}}, "data.env_id: simulators.ManiSkill does not "),
        (
            "simulators.IsaacLab",
            {"env_kwargs": {"mode": "disabled"}},
            "data.env_id: simulators.IsaacLab does not reset",
        ),
        ("Pendulum-v1", {}, "data.backend: 'Pendulum-v1' is one environment, not many; set it to sync"),
        ("simulators.Mjlab", {"env_kwargs": {"auto_reset": False}}, "data.env_id: simulators.Mjlab does not reset "),
        ("simulators.OwnVectorEnv", {"env_kwargs": {"mode": "disabled"}}, "data.env_id: simulators.OwnVectorEnv does "),
        (
            "simulators.OwnVectorEnv",
            {"env_kwargs": {"says_mode": False}},
            "data.env_id: OwnVectorEnv does not say",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(env_id: str, settings: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_vector_env(env_id, 4, backend="simulator", **settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "four values",
            "data.env_id: step of the simulator returned 4 values; it must return 5, the last a dictionary",
        ),
        ("array", "data.env_id: rewards of the simulator are ndarray, not tensors; set data.backend to vector"),
        ("few flags", f"data.env_id: the flags terminated of the simulator have shape [{N - 1}], not one number "),
        ("few final", "data.env_id: infos['final_obs'] of the simulator must have the structure of its observations, "),
        ("odd final", "data.env_id: infos['final_obs'] of the simulator must have the structure of its observations, "),
        ("no action space", "data.env_id: the simulator has no single_action_space, the action space of one environm"),
    ],
)
def test_a_step_that_is_not_one_is_refused_in_one_line(fault: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make("Faulty", fault=fault).step(torch.zeros(N, 1))
    assert str(caught.value).startswith(message)


def test_flags_and_rewards_may_be_columns() -> None:
    step = make("Faulty", fault="columns").step(torch.zeros(N, 1))
    assert step.rewards.shape == step.terminated.shape == step.truncated.shape == (N,)


def test_it_is_closed_with_the_simulator_and_need_not_have_a_close() -> None:
    make("IsaacLab").close()
    assert Pole.latest.is_closed
    with pytest.raises(UserError, match="has 8 environments"):
        make_vector_env("simulators.eight_poles", 4, backend="simulator")
    assert Pole.latest.is_closed
    make("Genesis").close()


def test_a_rollout_of_whole_episodes_has_no_others() -> None:
    env = make("IsaacLab")
    collector = RolloutCollector(env, 1, 3, action_seed=5, whole_episodes=True)
    for _ in range(2):
        rollout: Rollout = collector.collect(actor_for(env))
        assert len(rollout.episode_lengths) == N
        assert rollout.valid.sum() == rollout.episode_lengths.sum() == rollout.env_steps


@pytest.mark.parametrize("name", ["IsaacLab", "Genesis"])
def test_a_simulator_may_write_into_the_actions_that_it_gets(name: str) -> None:
    env, actions = make(name), torch.zeros(N, 1)
    env.step(actions)
    assert not actions.any()
