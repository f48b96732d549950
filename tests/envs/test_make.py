"""Vector environments from an id: every back-end, wrapper and observation space, one-line errors, and seeds."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from pg_lightning.envs import choose_backend, env_seed, make_env, make_vector_env
from pg_lightning.envs.backends.workers import WorkerVectorEnv
from pg_lightning.errors import UserError

TOYS = "pg_lightning.envs.tasks.toy:pg_lightning/"


class Showing(gym.Env):
    """Shows a fixed value of any observation space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: gym.Space, value: Any = None) -> None:
        self.observation_space, self.value = space, value

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.value, 0.0, False, False, {}


class VectorOnly(gym.vector.VectorEnv):
    """Vectorised code that shows categories."""

    def __init__(self, mode: AutoresetMode, num_envs: int, space: gym.Space, value: int) -> None:
        self.num_envs, self.value, self.metadata = num_envs, value, {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = space, spaces.Discrete(2)
        self.observation_space = spaces.MultiDiscrete([3] * num_envs)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return np.full(self.num_envs, self.value), {}

    def step(self, actions: np.ndarray) -> Any:
        off = np.zeros(self.num_envs, dtype=bool)
        return np.full(self.num_envs, self.value), np.zeros(self.num_envs), off, off, {}


class Fussy(gym.Wrapper):
    """A wrapper that wants an argument within bounds."""

    def __init__(self, env: gym.Env, bound: int) -> None:
        super().__init__(env)
        assert bound > 0, "bound must be\npositive"
        self.bound = bound


class Refusing(gym.Env):
    """An environment that does not like the values of its arguments."""

    def __init__(self, gravity: float) -> None:
        assert gravity < 0, f"gravity must be negative,\ngot {gravity}"


gym.register("tests/Showing-v0", Showing)
for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
    gym.register(
        f"tests/Categories{mode.name}-v0",
        Showing,
        vector_entry_point=partial(VectorOnly, mode),
        kwargs={"space": spaces.Discrete(3), "value": 1},
    )
gym.register("tests/Refusing-v0", Refusing)


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    """The message, which must be one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Back-ends and autoreset modes.


@pytest.mark.parametrize("mode", [None, "same_step", "next_step", "disabled"])
@pytest.mark.parametrize(("backend", "kind"), [("sync", SyncVectorEnv), ("async", WorkerVectorEnv)])
def test_a_backend_steps_that_many_environments_in_that_mode(backend: Any, kind: type, mode: Any) -> None:
    env = make_vector_env("CartPole-v1", 2, backend=backend, autoreset_mode=mode)
    assert isinstance(env.unwrapped, kind)
    assert env.num_envs == 2
    assert env.metadata["autoreset_mode"] == AutoresetMode[(mode or "same_step").upper()]
    assert env.reset(seed=[3, 4])[0].shape == env.step(np.array([0, 1]))[0].shape == (2, 4)
    env.close()


def test_sync_and_async_live_through_the_same() -> None:
    def play(backend: Any) -> list[Any]:
        env = make_vector_env("CartPole-v1", 2, backend=backend)
        seen = [np.array(env.reset(seed=[3, 4])[0])]
        for _ in range(30):
            obs, _, terminated, _, infos = env.step(np.array([0, 1]))
            seen.append(np.array(obs))
            seen += [infos["final_obs"][n] for n in np.flatnonzero(terminated)]
        env.close()
        return seen

    one, other = play("sync"), play("async")
    assert len(one) > 31
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_vector_backend_is_the_environments_own_code_in_its_own_mode() -> None:
    env = make_vector_env("CartPole-v1", 3, backend="vector")
    assert type(env.unwrapped).__name__ == "CartPoleVectorEnv"
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert env.reset(seed=1)[0].shape == (3, 4)
    assert make_vector_env("CartPole-v1", 3, backend="vector", autoreset_mode="next_step").num_envs == 3


def test_the_vector_backend_flattens_too() -> None:
    env = make_vector_env("tests/CategoriesNEXT_STEP-v0", 2, backend="vector")
    assert env.single_observation_space.shape == (3,)
    assert env.reset(seed=1)[0].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_vector_backend_refuses_what_it_cannot_do() -> None:
    make = make_vector_env
    assert "data.backend" in refusal(make, f"{TOYS}Endless-v0", 2, backend="vector")
    # Gymnasium flattens no observations of vectorised code that resets within the step.
    assert "data.backend" in refusal(make, "tests/CategoriesSAME_STEP-v0", 2, backend="vector")
    assert "data.wrappers" in refusal(
        make, "CartPole-v1", 2, wrappers=["gymnasium.wrappers.TimeAwareObservation"], backend="vector"
    )
    message = refusal(make, "CartPole-v1", 2, backend="vector", autoreset_mode="same_step")
    assert "data.autoreset_mode" in message
    assert "next_step" in message


@pytest.mark.parametrize("mode", [None, "same_step", "next_step", "disabled"])
def test_auto_takes_the_fastest_and_says_what_it_measured(monkeypatch: Any, mode: Any) -> None:
    speeds = {"SerialVectorEnv": 10.0, "WorkerVectorEnv": 20.0, "CartPoleVectorEnv": 30.0}
    monkeypatch.setattr(
        "pg_lightning.envs.choice._steps_per_second",
        lambda env, seconds: speeds[type(env.vector_env.unwrapped).__name__],
    )
    backend, reason = choose_backend("CartPole-v1", 2, autoreset_mode=mode)
    has_vector = mode in (None, "next_step")
    assert backend == ("vector" if has_vector else "async")
    assert reason.startswith(f"{backend}, the fastest")
    assert "sync 10" in reason
    assert "async 20" in reason
    assert ("vector 30" in reason) == has_vector


@pytest.mark.parametrize("mode", [None, "same_step", "next_step", "disabled"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", f"{TOYS}Endless-v0", "tests/CategoriesSAME_STEP-v0"])
def test_auto_never_fails_on_an_environment_that_can_be_made(env_id: str, mode: Any) -> None:
    backend, reason = choose_backend(env_id, 2, autoreset_mode=mode, seconds=0.02)
    assert backend in ("sync", "async", "vector")
    assert "env steps/s" in reason
    make_vector_env(env_id, 2, backend=backend, autoreset_mode=mode).close()


def test_auto_passes_arguments_and_wrappers_on_and_leaves_the_vectorised_code_out() -> None:
    wrappers = ["gymnasium.wrappers.TimeAwareObservation"]
    backend, _ = choose_backend("CartPole-v1", 2, {"max_episode_steps": 5}, wrappers, seconds=0.02)
    assert backend in ("sync", "async")


def test_auto_refuses_an_environment_that_cannot_be_made() -> None:
    assert "data.env_id" in refusal(choose_backend, "NoSuchEnvironment-v0", 2)


def test_a_final_observation_survives_the_reset_of_an_environment_that_reuses_its_array() -> None:
    class Reusing(gym.Env):
        observation_space, action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(2)
        state = np.zeros(1, dtype=np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            self.state[:] = 0
            return self.state, {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.state += 1
            return self.state, 0.0, False, self.state[0] == 2, {}

    gym.register("tests/Reusing-v0", Reusing)
    env = make_vector_env("tests/Reusing-v0", 1)
    env.reset()
    env.step(np.array([0]))
    obs, _, _, _, infos = env.step(np.array([0]))
    assert (obs.item(), infos["final_obs"][0].item()) == (0.0, 2.0)


# Ids, arguments and wrappers.


def test_a_module_before_the_id_is_imported() -> None:
    env = make_env(f"{TOYS}ConstantReward-v0")
    assert env.reset(seed=0)[0].tolist() == [0.0]


def test_arguments_reach_the_environment() -> None:
    env = make_env(f"{TOYS}DelayedReward-v0", {"length": 3, "max_episode_steps": 2})
    env.reset()
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (False, True)


def test_wrappers_are_applied_in_order_by_path_and_with_arguments() -> None:
    rescale = {"class_path": "gymnasium.wrappers.RescaleObservation", "init_args": {"min_obs": 0.0, "max_obs": 1.0}}
    stack = {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 2}}
    flatten = "gymnasium.wrappers.FlattenObservation"
    env = make_env("MountainCarContinuous-v0", wrappers=[rescale, stack, flatten])
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4,)
    assert np.all((obs >= 0) & (obs <= 1))
    assert make_vector_env("MountainCar-v0", 2, wrappers=[flatten, stack]).single_observation_space.shape == (2, 2)


class Unregistered(gym.Env):
    """Never given an id."""


@pytest.mark.parametrize(
    ("env_id", "cure"),
    [
        (Unregistered, 'not Unregistered; register it .* entry_point=Unregistered\\), and give "my_module:My-v0"'),
        (Unregistered(), "not Unregistered; register it"),
        (gym.spec("CartPole-v1"), "give the id 'CartPole-v1', not EnvSpec"),
        (lambda: Unregistered(), "not <lambda>; register it"),
        (None, "not NoneType; register it"),
    ],
    ids=["class", "instance", "spec", "function", "None"],
)
@pytest.mark.parametrize("backend", ["sync", "async", "vector", "envpool", "device", "simulator", "auto"])
def test_what_is_no_id_is_refused_with_the_way_to_one(env_id: Any, cure: str, backend: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.env_id: .*{cure}"):
        make_vector_env(env_id, 2, backend=backend)


def test_what_is_no_id_is_refused_where_one_environment_is_made() -> None:
    with pytest.raises(UserError, match=r"^data\.env_id: give the id 'CartPole-v1', not EnvSpec"):
        make_env(gym.spec("CartPole-v1"))  # type: ignore[arg-type]


def test_a_class_that_is_no_environment_of_gymnasiums_is_the_ids_fault() -> None:
    gym.register("tests/Alien-v0", entry_point=lambda: object())
    with pytest.raises(UserError, match=r"^data\.env_id: cannot make .* must inherit from the gymnasium.Env"):
        make_vector_env("tests/Alien-v0", 2)


@pytest.mark.parametrize(
    "env_id", ["NoSuchEnvironment-v0", "no_such_module:Env-v0", "CartPole-v99", "", "not an id", "ALE/NoSuchGame-v5"]
)
def test_an_id_that_does_not_exist_is_named_in_one_line(env_id: str) -> None:
    message = refusal(make_env, env_id)
    assert "data.env_id" in message
    assert repr(env_id) in message


def test_an_argument_that_the_environment_does_not_know_is_named_in_one_line() -> None:
    message = refusal(make_env, "CartPole-v1", {"gravitas": 1})
    assert "data.env_kwargs" in message
    assert "gravitas" in message


def test_a_value_that_the_environment_refuses_is_named_in_one_line() -> None:
    message = refusal(make_env, "tests/Refusing-v0", {"gravity": 1.0})
    assert "data.env_kwargs" in message
    assert "gravity must be negative" in message


@pytest.mark.parametrize(
    "wrapper",
    [
        "gymnasium.wrappers.NoSuchWrapper",
        "no_such_module.Wrapper",
        "NoDots",
        "",
        {"init_args": {}},
        {"class_path": f"{__name__}.Fussy"},
        {"class_path": f"{__name__}.Fussy", "init_args": {"bound": 0}},
        {"class_path": f"{__name__}.Fussy", "init_args": {"bund": 1}},
        "gymnasium.wrappers.ClipAction",
    ],
)
def test_a_wrapper_that_cannot_be_applied_is_named_in_one_line(wrapper: Any) -> None:
    path = wrapper if isinstance(wrapper, str) else wrapper.get("class_path", "")
    message = refusal(make_env, "CartPole-v1", wrappers=[wrapper])
    assert "data.wrappers" in message
    assert path in message


# What is not installed.


@pytest.mark.parametrize(
    ("module", "env_id", "wrappers", "extra"),
    [
        ("ale_py", "ale_py:ALE/Pong-v5", [], "atari"),
        ("cv2", "CartPole-v1", ["gymnasium.wrappers.AtariPreprocessing"], "atari"),
        ("Box2D", "LunarLander-v3", [], "box2d"),
        ("minigrid", "minigrid:MiniGrid-Empty-5x5-v0", [], "minigrid"),
        ("mujoco", "Hopper-v5", [], "mujoco"),
    ],
)
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(
    monkeypatch: Any, module: str, env_id: str, wrappers: Any, extra: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(make_env, env_id, wrappers=wrappers)
    assert message.startswith("data.wrappers: " if wrappers else "data.env_id: ")
    assert message.endswith(f': {module} is not installed; pip install "pg_lightning[{extra}]"')
    assert re.search(rf"^{extra} = \[", (Path(__file__).parents[2] / "pyproject.toml").read_text(), re.MULTILINE)


def test_a_module_that_is_broken_is_not_said_to_be_missing(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "pip install" not in refusal(make_env, "CartPole-v1", {"gravitas": 1})
    assert "pip install" not in refusal(make_env, "no_such_module:Env-v0")


@pytest.mark.parametrize(
    ("env_id", "name"),
    [("ALE/Pong-v5", "ale_py:ALE/Pong-v5"), ("MiniGrid-Empty-5x5-v0", "minigrid:MiniGrid-Empty-5x5-v0")],
)
def test_an_id_that_an_import_registers_is_named_with_the_import(monkeypatch: Any, env_id: str, name: str) -> None:
    monkeypatch.delitem(sys.modules, name.partition(":")[0], raising=False)
    monkeypatch.setattr("gymnasium.envs.registration.registry", {})
    assert refusal(make_env, env_id) == f"data.env_id: cannot make {env_id!r}: name it {name!r}"


# Observation spaces.

SHOWN: list[tuple[gym.Space, Any, list[float]]] = [
    (spaces.Box(-1, 1, (2,)), np.array([0.5, -0.5]), [0.5, -0.5]),
    (spaces.Box(-1, 1, ()), np.array(0.5), [0.5]),
    (spaces.Discrete(3), 1, [0, 1, 0]),
    (spaces.Discrete(3, start=5), 7, [0, 0, 1]),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    (spaces.MultiDiscrete([[2, 2], [2, 2]]), np.array([[0, 1], [1, 0]]), [1, 0, 0, 1, 0, 1, 1, 0]),
    (spaces.MultiBinary(3), np.array([1, 0, 1], dtype=np.int8), [1, 0, 1]),
    (spaces.MultiBinary((2, 2)), np.array([[1, 0], [0, 1]], dtype=np.int8), [1, 0, 0, 1]),
    (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2, 1)))), (1, np.array([[0.5], [1]])), [0, 1, 0.5, 1]),
    (spaces.Dict(b=spaces.Discrete(2), a=spaces.MultiBinary(1)), {"b": 0, "a": np.array([1])}, [1, 0, 1]),
    (spaces.Dict(x=spaces.Tuple((spaces.Dict(y=spaces.Discrete(2)),))), {"x": ({"y": 1},)}, [0, 1]),
]


@pytest.mark.parametrize(("space", "value", "expected"), SHOWN, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_observations_arrive_as_vectors_with_categories_one_hot(
    space: gym.Space, value: Any, expected: list[float], backend: Any
) -> None:
    env = make_vector_env("tests/Showing-v0", 2, {"space": space, "value": value}, backend=backend)
    assert isinstance(env.single_observation_space, spaces.Box)
    assert env.single_observation_space.shape == (len(expected),)
    assert env.reset(seed=[0, 1])[0].tolist() == [expected] * 2
    assert env.step(np.array([0, 1]))[0].tolist() == [expected] * 2
    env.close()


def test_images_keep_their_shape_and_type() -> None:
    env = make_env("tests/Showing-v0", {"space": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    assert env.observation_space == spaces.Box(0, 255, (4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(-1, 1, (2,)), None),
        spaces.OneOf([spaces.Discrete(2), spaces.Box(-1, 1)]),
        spaces.Tuple((spaces.Discrete(2), spaces.Text(5))),
        spaces.Dict(a=spaces.Dict(b=spaces.Sequence(spaces.Discrete(2)))),
    ],
    ids=lambda space: str(space)[:30],
)
def test_an_observation_space_without_a_vector_form_is_refused_in_one_line(space: gym.Space) -> None:
    message = refusal(make_env, "tests/Showing-v0", {"space": space})
    assert "observation space" in message
    assert "supported are Box, Discrete, MultiDiscrete, MultiBinary" in message


# Seeds.


def test_no_two_environments_of_any_run_rank_or_stream_share_a_seed() -> None:
    grid = list(product(range(24), range(3), range(4), range(32)))
    seeds = {env_seed(seed, stream, rank, env) for seed, stream, rank, env in grid}
    assert len(seeds) == len(grid)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_environments_of_neighbouring_runs_and_ranks_are_not_each_others_neighbours() -> None:
    """Gymnasium seeds env i with seed + i where it is given one seed: runs 1 and 2 would share all but one."""
    firsts = sorted(env_seed(seed, 0, rank, 0) for seed in range(100) for rank in range(4))
    assert np.diff(firsts).min() > 64


def test_keys_of_different_lengths_are_different_keys() -> None:
    keys = [(), (0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]
    assert len({env_seed(1, *key) for key in keys}) == len(keys)


def test_a_seed_is_always_the_same() -> None:
    assert env_seed(1, 2, 3) == env_seed(1, 2, 3)
    assert isinstance(env_seed(2**64 - 1, 0), int)


def test_the_parts_of_a_dict_that_have_a_vector_form_are_kept_as_the_refusal_says() -> None:
    space = spaces.Dict(mission=spaces.Text(5), image=spaces.Box(0, 9, (2,), np.float32), way=spaces.Discrete(3))
    shown = {"space": space, "value": {"mission": "go", "image": np.ones(2, np.float32), "way": 1}}
    said = refusal(make_env, "tests/Showing-v0", shown).partition("data.wrappers ")[2]
    env = make_env("tests/Showing-v0", shown, yaml.safe_load(said))
    assert env.reset()[0].tolist() == [1, 1, 0, 1, 0]
    assert "wrappers" not in refusal(make_env, "tests/Showing-v0", {"space": spaces.Dict(mission=spaces.Text(5))})


@pytest.mark.parametrize(
    ("backend", "missing"), [("gymnax", "jax"), ("brax", "jax"), ("gymnax", "gymnax"), ("brax", "brax")]
)
def test_a_library_in_jax_that_is_missing_is_named_with_the_command_that_installs_it(
    backend: Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing != "jax":
        pytest.importorskip("jax")
    for name in [name for name in sys.modules if name.endswith(("jax_programs", "gymnax_task", "brax_task"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UserError, match=rf'^data.backend: {missing} is not .*; pip install "pg_lightning\[{backend}\]"$'
    ):
        make_vector_env("CartPole-v1", 2, backend=backend)


def test_jax_is_imported_only_when_an_environment_needs_it() -> None:
    code = "import sys, pg_lightning, pg_lightning.envs; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
