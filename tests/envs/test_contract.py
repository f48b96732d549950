"""The contract of environments, which every back-end fulfils in every autoreset mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensor_env import TensorCartPole
from torch import Tensor

from pg_lightning.envs import BACKENDS, make_vector_env
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.backends.tensor import TensorEnvironments
from pg_lightning.envs.contract import Capabilities, Environments, VectorStep
from pg_lightning.envs.make import BackendSpec
from pg_lightning.policies.obs_groups import groups_of

N, STEPS, LIMIT = 3, 40, 12
SEEDS = [3, 4, 5]


def of_backend(backend: Any, mode: Any = None) -> Callable[[], Environments]:
    kwargs = {"max_episode_steps": LIMIT}
    return lambda: environments(make_vector_env("CartPole-v1", N, kwargs, (), backend, mode))


def of_gymnax(mode: Any = None) -> Callable[[], Environments]:
    kwargs = {"max_steps_in_episode": LIMIT}
    return lambda: environments(make_vector_env("CartPole-v1", N, kwargs, (), "gymnax", mode))


def of_gymnasium() -> Environments:
    """What says nothing of itself."""
    make = [lambda: gym.make("CartPole-v1", max_episode_steps=LIMIT)] * N
    return environments(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP))


def of_simulator(name: str, **kwargs: Any) -> Callable[[], Environments]:
    return lambda: make_vector_env(f"simulators.{name}", N, {"limit": LIMIT, **kwargs}, backend="simulator")


MODES = ("same_step", "next_step", "disabled")
IMPLEMENTATIONS: dict[str, Callable[[], Any]] = {
    **{f"{backend}, {mode}": of_backend(backend, mode) for backend in ("sync", "async") for mode in MODES},
    **{f"envpool, {mode}": of_backend("envpool", mode) for mode in MODES},
    "vector": of_backend("vector"),
    "gymnax": of_gymnax(),
    "gymnax, disabled": of_gymnax("disabled"),
    "gymnasium": of_gymnasium,
    "device": of_backend("device"),
    "Isaac Lab": of_simulator("IsaacLab", has_critic=False),
    "Isaac Lab with final observations": of_simulator("IsaacLab", has_critic=False, gives_final_obs=True),
    "mjlab": of_simulator("Mjlab"),
    "ManiSkill": of_simulator("ManiSkill"),
    "own, next_step": of_simulator("OwnVectorEnv"),
    "own, same_step, float64": of_simulator("OwnVectorEnv", mode="same_step", dtype="float64"),
    "Genesis": of_simulator("Genesis"),
    "Playground": of_simulator("Playground"),
    "rsl_rl": of_simulator("RslRl", groups=False),
    "tensors": lambda: TensorCartPole(N, LIMIT),
    "tensors without final observations": lambda: TensorCartPole(N, LIMIT, knows_final_obs=False),
}


def case(name: str) -> Any:
    """With a mark for `make test-envpool`."""
    return pytest.param(name, marks=[pytest.mark.envpool] if "envpool" in name else [])


@pytest.fixture(params=map(case, IMPLEMENTATIONS))
def env(request: pytest.FixtureRequest) -> Iterator[Any]:
    for library in ("envpool", "gymnax"):
        if library in request.param:
            pytest.importorskip(library)
    env = IMPLEMENTATIONS[request.param]()
    yield env
    env.close()


def kept(x: Any) -> Any:
    """A copy: the arrays of a step are written anew by the next."""
    return x.clone() if isinstance(x, Tensor) else None if x is None else np.array(x)


def seeds_for(env: Environments) -> Any:
    return SEEDS if env.capabilities.seeds == "per_env" else SEEDS[0]


def actions_of(env: Environments, t: int) -> Tensor:
    actions = torch.tensor([t % 2, 1, (t // 3) % 2])
    return 2.0 * actions[:, None] - 1.0 if env.single_action_space.shape else actions


def play(env: Environments, steps: int = STEPS, seeds: Any = None) -> tuple[Any, list[VectorStep[Any]]]:
    first = kept(env.reset(seeds_for(env) if seeds is None else seeds)[0])
    return first, go_on(env, 0, steps)


def go_on(env: Environments, start: int, steps: int) -> list[VectorStep[Any]]:
    outcome = []
    for t in range(start, start + steps):
        step = env.step(actions_of(env, t))
        outcome.append(VectorStep(*map(kept, step[:-1])))
    return outcome


def column(steps: list[VectorStep[Any]], name: str) -> np.ndarray:
    """`[T, N, …]`."""
    return np.stack([np.asarray(getattr(step, name)) for step in steps])


def test_arrays_have_the_shapes_of_the_contract_and_are_where_it_says(env: Any) -> None:
    first, steps = play(env)
    device = env.capabilities.device
    space = env.single_observation_space
    for step in steps:
        for name, shape in {"obs": (N, *space.shape)}.items() | {(name, (N,)) for name in step._fields[1:6]}:
            array = getattr(step, name)
            assert tuple(array.shape) == shape, name
            assert isinstance(array, np.ndarray if device is None else Tensor), name
            assert device is None or array.device == device, name
            assert name in ("obs", "rewards") or array.dtype in (np.bool_, torch.bool), name
        assert step.restarted is None
        assert step.action_mask is None
    assert tuple(first.shape) == (N, *space.shape)


def test_done_is_terminated_or_truncated_and_both_occur(env: Any) -> None:
    _, steps = play(env)
    terminated, truncated = column(steps, "terminated"), column(steps, "truncated")
    assert terminated.any()
    assert (truncated & ~terminated).any()
    np.testing.assert_array_equal(column(steps, "done"), terminated | truncated)


def test_an_episode_begins_after_each_end_in_the_same_step_or_the_next_as_the_capabilities_say(env: Any) -> None:
    _, steps = play(env)
    done, begins = column(steps, "done"), column(steps, "begins")
    expected = done if env.capabilities.autoreset != "next_step" else np.roll(done, 1, axis=0)
    expected[0] &= env.capabilities.autoreset != "next_step"
    assert done[:-1].any()
    np.testing.assert_array_equal(begins, expected)


def test_only_a_step_that_begins_an_episode_after_an_end_is_not_valid_and_it_pays_nothing(env: Any) -> None:
    _, steps = play(env)
    begins, done = column(steps, "begins"), column(steps, "done")
    valid = np.stack([np.ones(N, bool) if step.valid is None else np.asarray(step.valid) for step in steps])
    np.testing.assert_array_equal(~valid, begins & ~done)
    assert not column(steps, "rewards")[~valid].any()
    assert column(steps, "rewards")[valid].all()


def test_an_episode_begins_near_the_origin_and_ends_far_from_it(env: Any) -> None:
    """Which observation is which: where an episode was reset within the step, the last one is `final_obs`."""
    tensors = env.capabilities.device is not None and not isinstance(env, TensorEnvironments)
    near, far = (0.15, 0.2) if tensors else (0.05, 12 * 2 * np.pi / 360)
    first, steps = play(env)
    assert (abs(pole_in(env, first)) <= near).all()
    ends = 0
    for step in steps:
        assert (abs(pole_in(env, step.obs)[np.asarray(step.begins)]) <= near).all()
        for n in np.flatnonzero(np.asarray(step.terminated)):
            last = step.final_obs[n] if step.final_obs is not None else None
            if not step.begins[n]:
                last = step.obs[n]
            if last is not None:
                assert abs(pole_in(env, last)[2]) > far
                ends += 1
    assert bool(ends) == env.capabilities.knows_final_obs


def pole_in(env: Environments, obs: Any) -> np.ndarray:
    """The pole without what only a critic sees."""
    groups = groups_of(env.single_observation_space)
    columns = next((groups[name] for name in ("policy", "actor", "state") if name in groups), slice(None))
    return np.asarray(obs)[..., columns]


def test_the_same_seeds_and_actions_give_the_same_steps_and_other_seeds_do_not(env: Any) -> None:
    if env.capabilities.seeds == "none":
        return
    first, steps = play(env)
    again, same = play(env)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(column(steps, "obs"), column(same, "obs"))
    other = [seed + 10 for seed in SEEDS] if env.capabilities.seeds == "per_env" else 99
    assert not np.array_equal(first, play(env, 1, other)[0])


def test_a_saved_state_is_where_the_environments_go_on_or_the_reason_is_given(env: Any, request: Any) -> None:
    _, before = play(env)
    obs, returns, lengths = before[-1].obs, torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.int64)
    for step in before:
        valid = torch.ones(N, dtype=torch.bool) if step.valid is None else torch.as_tensor(step.valid)
        returns += torch.as_tensor(step.rewards) * valid
        lengths += valid
        returns[torch.as_tensor(step.done)], lengths[torch.as_tensor(step.done)] = 0.0, 0
    env.trim(lengths.numpy())
    state = env.state_dict(lengths)
    expected = go_on(env, STEPS, 20)
    other = IMPLEMENTATIONS[request.node.callspec.params["env"]]()
    other.reset(seeds_for(env))
    reason = other.load_state_dict(state, torch.as_tensor(obs), returns, lengths)
    assert bool(reason) == (env.capabilities.can_save_state == "no")
    if not reason:
        np.testing.assert_array_equal(column(go_on(other, STEPS, 20), "obs"), column(expected, "obs"))
    other.close()


def test_where_some_can_be_reset_the_others_stay_where_they_are(env: Any) -> None:
    if not env.capabilities.can_reset_some:
        assert env.capabilities.autoreset != "disabled"
        return
    play(env, 3)
    waiting = [kept_step(env.step_and_wait(actions_of(env, t))) for t in range(3)]
    assert not column(waiting, "begins").any()
    which = np.array([True, False, True])
    obs = kept(env.begin(which, [7, None, 8])[0])
    np.testing.assert_array_equal(obs[1], waiting[-1].obs[1])
    assert (obs != waiting[-1].obs)[which].all()
    np.testing.assert_array_equal(obs[which], kept(env.reset([7, 1, 8])[0])[which])


def kept_step(step: VectorStep[Any]) -> VectorStep[Any]:
    return VectorStep(*map(kept, step[:-1]))


def test_an_episode_that_waits_ends_where_its_actions_led(env: Any) -> None:
    if not env.capabilities.can_reset_some:
        return
    env.reset(SEEDS)
    for t in range(LIMIT):
        step = kept_step(env.step_and_wait(actions_of(env, t)))
        if step.done.any():
            break
    assert step.final_obs is None
    assert (abs(step.obs[step.terminated][:, 2]) > 12 * 2 * np.pi / 360).all()


def test_only_those_who_supervise_have_restarts_to_count(env: Any) -> None:
    play(env, 1)
    assert env.restarts == 0


def test_what_says_nothing_of_itself_can_do_the_least() -> None:
    env = of_gymnasium()
    assert env.capabilities == Capabilities(autoreset="same_step")


@pytest.mark.parametrize("backend", ["sync", "async", "vector", "envpool", "device"])
def test_what_the_table_says_of_a_back_end_is_what_its_environments_say(backend: Any) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = of_backend(backend)()
    assert BACKENDS[backend].capabilities == env.capabilities
    env.close()
    there = of_backend(BACKENDS[backend].evaluates_in, "disabled")()
    assert there.capabilities.can_reset_some
    there.close()


def test_a_back_end_is_a_file_and_a_line_of_the_table(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub trains PPO, and its one instance also serves the spaces and the evaluation."""
    made: list[TensorCartPole] = []

    def make(order: Any) -> TensorCartPole:
        made.append(TensorCartPole(order.num_envs, LIMIT))
        return made[-1]

    capabilities = TensorCartPole(1).capabilities
    monkeypatch.setitem(BACKENDS, "tensors", BackendSpec(make, capabilities))  # type: ignore[arg-type]
    data = {"num_envs": N, "num_steps": 16, "backend": "tensors", "total_steps": 4 * 16 * N, "eval_episodes": 2}
    module = fit("a stub", data)
    assert module.env_steps == 4 * 16 * N
    assert len(module.evaluation[0]) == 2
    assert len(made) == 1
