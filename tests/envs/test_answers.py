"""What environments return is taken or refused alike by every back-end, and what they get is theirs to write into."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import untidy_envs
from doubles import ActsBy
from gymnasium import spaces

from pg_lightning.data import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.flattened import flattener
from pg_lightning.errors import UserError
from pg_lightning.processes import WorkerError

MODES = ("same_step", "next_step", "disabled")
BACKENDS = [(backend, mode) for backend in ("sync", "async") for mode in MODES]
N, STEPS = 2, 9
everywhere = pytest.mark.parametrize(("backend", "mode"), BACKENDS)


def play(env_id: str, backend: Any, mode: Any, num_steps: int = STEPS, **env_kwargs: Any) -> list[Any]:
    """The first observations, and `(obs, rewards, terminated, truncated, final_obs)` of every step."""
    env = environments(make_vector_env(f"{env_id}-v0", N, env_kwargs, (), backend, mode))
    try:
        played: list[Any] = [np.array(env.reset([1, 2])[0])]
        for t in range(num_steps):
            step = env.step(torch.full((N, 1), 0.1 * (t + 1)))
            final = None if step.final_obs is None else [step.final_obs[n] for n in np.flatnonzero(step.done)]
            played.append([np.array(x).tolist() for x in (*step[:4], final)])
        return played
    finally:
        env.close()


def same(a: list[Any], b: list[Any]) -> bool:
    return np.array_equal(a[0], b[0]) and a[0].dtype == b[0].dtype and a[1:] == b[1:]


def refusal(env_id: str, backend: str, mode: str, **env_kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        play(env_id, backend, mode, **env_kwargs)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("data.env_id: ")
    return line


@everywhere
@pytest.mark.parametrize("kind", untidy_envs.SHOWN)
def test_an_observation_is_taken_if_only_its_type_differs_and_refused_otherwise(
    kind: str, backend: str, mode: str
) -> None:
    if kind == "whole numbers":
        tidy = [np.zeros((N, 2), np.float32)]
        assert same(play("Shows", backend, mode, 0, kind=kind), tidy)
    elif untidy_envs.SHOWN[kind][1]:
        assert same(play("Shows", backend, mode, kind=kind), play("Tidy", backend, mode))
    else:
        said = refusal("Shows", backend, mode, kind=kind)
        assert said.startswith("data.env_id: env 0 returned in reset an observation of ")
        assert "its observation_space is Box(-100.0, 100.0, (2,), float32)" in said
        later = refusal("Shows", backend, mode, kind=kind, first=2)
        assert later.startswith("data.env_id: env 0 returned in step 2 an observation of ")


@everywhere
@pytest.mark.parametrize(
    ("dtype", "value", "fault"),
    [
        ("uint8", 200, ""),
        ("int64", 200, ""),
        ("bool", 1, ""),
        ("int64", 256, "numbers from 256 to 256"),
        ("int16", -1, "numbers from -1 to -1"),
        ("float64", 0.9, "dtype float64 and shape [2]"),
        ("float32", 1.0, "dtype float32 and shape [2]"),
    ],
)
def test_bytes_are_never_made_from_what_does_not_fit_into_them(
    dtype: str, value: float, fault: str, backend: str, mode: str
) -> None:
    if fault:
        assert f"an observation of {fault}: " in refusal("Bytes", backend, mode, dtype=dtype, value=value)
    else:
        assert (play("Bytes", backend, mode, dtype=dtype, value=value)[0] == value).all()


@everywhere
@pytest.mark.parametrize("kind", untidy_envs.WRITTEN)
def test_rewards_and_ends_may_be_arrays_of_one_number(kind: str, backend: str, mode: str) -> None:
    assert same(play("Writes", backend, mode, kind=kind), play("Tidy", backend, mode))


@everywhere
@pytest.mark.parametrize("which", ["reward", "terminated", "truncated"])
def test_two_numbers_for_one_are_refused(which: str, backend: str, mode: str) -> None:
    said = refusal("Pair", backend, mode, which=which)
    assert re.match(rf"data.env_id: env 0 returned in step 1 (a )?{which} that is not one ", said)
    assert "shape [2]" in said


TAKEN = [(name, n) for name, (_, _, taken, _) in untidy_envs.PARTS.items() for n in range(len(taken))]
REFUSED = [(name, n) for name, (*_, refused) in untidy_envs.PARTS.items() for n in range(len(refused))]


@pytest.mark.parametrize(("name", "which"), TAKEN)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_parts_of_observations_may_be_written_in_another_way(name: str, which: int, backend: str) -> None:
    assert same(
        play("Parts", backend, "same_step", name=name, which=which + 1), play("Parts", backend, "same_step", name=name)
    )


@pytest.mark.parametrize(("name", "which"), REFUSED)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_parts_of_observations_outside_their_spaces_are_refused(name: str, which: int, backend: str) -> None:
    """Among them those that `gymnasium.spaces.flatten` takes for something else."""
    said = refusal("Parts", backend, "same_step", name=name, which=which, refused=True)
    assert said.startswith("data.env_id: env 0 returned in step 1 an observation")
    assert "its observation_space " in said


@pytest.mark.parametrize("name", untidy_envs.PARTS)
def test_flattened_observations_are_gymnasiums(name: str) -> None:
    space = untidy_envs.PARTS[name][0]
    space.seed(0)
    for element in [space.sample() for _ in range(20)]:
        ours, theirs = flattener(space)(element), spaces.flatten(space, element)
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@everywhere
def test_infos_of_an_environment_are_not_taken_for_ours(backend: str, mode: str) -> None:
    played = play("Chatty", backend, mode)
    assert played[3][3] == [True, True]
    if mode == "same_step":
        assert played[3][4] == [[3.0, pytest.approx(0.3)]] * N
    assert all(step[4] is None or 77.0 not in np.ravel(step[4]) for step in played[1:])


@everywhere
def test_infos_may_be_none(backend: str, mode: str) -> None:
    assert same(play("Silent", backend, mode), play("Tidy", backend, mode))


@everywhere
def test_infos_must_be_a_dictionary(backend: str, mode: str) -> None:
    said = refusal("Mumbles", backend, mode)
    assert said.startswith("data.env_id: env 0 returned in step 1 infos that are no dictionary (5): ")


@everywhere
@pytest.mark.parametrize(("env_id", "where"), [("OldReset", "reset"), ("OldStep", "step 1")])
def test_the_old_interface_is_named(env_id: str, where: str, backend: str, mode: str) -> None:
    said = refusal(env_id, backend, mode)
    assert said.startswith(f"data.env_id: env 0 returned in {where} ")
    assert "Gym's old interface; adapt it" in said


@everywhere
def test_an_exception_of_the_environment_itself_is_not_taken_for_the_old_interface(backend: Any, mode: Any) -> None:
    env = make_vector_env("Confused-v0", N, None, (), backend, mode, max_env_restarts=0)
    env.reset(seed=1)
    with pytest.raises((ValueError, WorkerError), match="too many values to unpack") as error:
        env.step(np.zeros((N, 1)))
    assert "old interface" not in str(error.value)
    env.close()


@everywhere
def test_options_are_none_where_there_are_none(backend: str, mode: str) -> None:
    played = play("Goal", backend, mode)
    assert (played[0] == 0.0).all()
    assert len(played) == STEPS + 1


@pytest.mark.parametrize(("backend", "mode"), [*BACKENDS, ("vector", None)])
def test_an_environment_may_write_into_its_action(backend: Any, mode: Any) -> None:
    name, fault = ("Fleet-v0", {"fault": "writes into its actions"}) if backend == "vector" else ("Rescales-v0", {})
    env = make_vector_env(name, N, fault, (), backend, mode)
    collector = RolloutCollector(env, STEPS, [1, 2] if backend != "vector" else 1, 0)
    rollout = collector.collect(ActsBy(lambda obs: torch.full((len(obs), 1), 0.5)))
    assert (rollout.actions == 0.5).all()
    assert (rollout.rewards[rollout.valid] == 0.5).all()
    state = collector.state_dict()["envs"]
    assert backend == "vector" or state["actions"] is None or (state["actions"] == 0.5).all()
    collector.close()


@pytest.mark.parametrize("fault", ["columns", "ends are numbers", "float64"])
def test_vectorised_code_may_write_its_numbers_in_another_way(fault: str) -> None:
    assert same(play("Fleet", "vector", None, fault=fault), play("Fleet", "vector", None))


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("obs of one", "reset an observation of dtype float32 and shape [1, 2]"),
        ("no numbers", "reset an observation of dtype <U32 and shape [2, 2]"),
        ("one reward", "step 1 rewards that are not one for each of 2 environments (ndarray of shape [1])"),
    ],
)
def test_vectorised_code_that_does_not_keep_to_its_spaces_is_refused(fault: str, what: str) -> None:
    assert refusal("Fleet", "vector", None, fault=fault).startswith(
        f"data.env_id: the vector environment returned in {what}: "
    )


@pytest.mark.parametrize("final_obs", ["array", "objects"])
def test_last_observations_of_vectorised_code_may_be_written_in_two_ways(final_obs: str) -> None:
    played = play("SameStepFleet", "vector", None, final_obs=final_obs)
    assert played[3][4] is not None
    np.testing.assert_allclose(played[3][4], [[3.0, 0.3]] * N, rtol=1e-6)


@pytest.mark.parametrize(
    ("final_obs", "what"),
    [
        ("none", "no infos['final_obs'] of 2 entries"),
        ("one", "no infos['final_obs'] of 2 entries"),
        ("parts", "an observation of dtype float32 and shape [1]"),
    ],
)
def test_vectorised_code_that_loses_last_observations_is_refused(final_obs: str, what: str) -> None:
    said = refusal("SameStepFleet", "vector", None, final_obs=final_obs)
    assert said.startswith(f"data.env_id: the vector environment returned in step 3 {what}")


def test_vectorised_code_made_by_others_is_held_to_the_same() -> None:
    env = environments(untidy_envs.Fleet(N, "obs of one"))
    with pytest.raises(UserError, match="the vector environment returned in reset an observation"):
        env.reset(1)
