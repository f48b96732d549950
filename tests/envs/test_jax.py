"""Environments written in JAX: the steps of the libraries themselves, with tensors and the contract around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pg_lightning.envs import make_env, make_vector_env
from pg_lightning.errors import UserError

jax = pytest.importorskip("jax", reason="needs JAX")
gymnax = pytest.importorskip("gymnax", reason="needs gymnax")

N = 6


def of_gymnax(env_id: str = "CartPole-v1", env_kwargs: Any = None, num_envs: int = N, mode: Any = None) -> Any:
    return make_vector_env(env_id, num_envs, env_kwargs, (), "gymnax", mode)


def actions_for(env: Any, t: int) -> torch.Tensor:
    """The same for every call with the same t."""
    space = env.single_action_space
    generator = torch.Generator().manual_seed(t)
    if space.shape == ():
        return torch.randint(int(space.n), (env.num_envs,), generator=generator)
    return torch.rand(env.num_envs, *space.shape, generator=generator) * 2 - 1


# A game with a random course, one with continuous actions, and one whose episodes end soon.
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "Asterix-MinAtar"])
def test_steps_are_those_of_gymnax_with_the_same_keys(env_id: str) -> None:
    limit = 25
    env = of_gymnax(env_id, {"max_steps_in_episode": limit})
    obs, _ = env.reset([5 + n for n in range(N)])
    theirs, params = gymnax.make(env_id)
    params = params.replace(max_steps_in_episode=limit)
    ends = np.zeros(2, int)
    keys, states = [], []
    for n in range(N):
        key, now = jax.random.split(jax.random.PRNGKey(5 + n))
        first, state = theirs.reset(now, params)
        np.testing.assert_allclose(obs[n], first, rtol=1e-6)
        keys.append(key)
        states.append(state)
    for t in range(60):
        actions = actions_for(env, t)
        step = env.step(actions)
        for n in range(N):
            keys[n], now, then = jax.random.split(keys[n], 3)
            action = np.asarray(actions[n])
            last, states[n], reward, terminated, _ = theirs.step_env(now, states[n], action, params)
            truncated = theirs.is_truncated(states[n], params)
            np.testing.assert_allclose(step.final_obs[n], last, rtol=1e-4, atol=1e-5)
            expected = (float(reward), bool(terminated), bool(truncated))
            assert (step.rewards[n].item(), *(bool(x[n]) for x in step[2:4])) == pytest.approx(expected, rel=1e-4)
            ends += expected[1:]
            if expected[1] or expected[2]:
                last, states[n] = theirs.reset(then, params)
            np.testing.assert_allclose(step.obs[n], last, rtol=1e-4, atol=1e-5)
            assert bool(step.begins[n]) == (expected[1] or expected[2])
    assert ends[1] > 0, "the time limit truncates"
    assert env_id == "Pendulum-v1" or ends[0] > 0


def test_steps_with_resets_are_those_of_gymnaxs_own_step() -> None:
    """Its `step` and ours differ in the keys only, and CartPole uses none after the first observation."""
    env = of_gymnax(env_kwargs={"max_steps_in_episode": 15})
    theirs, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=15)
    env.reset(0)
    step = jax.vmap(theirs.step, in_axes=(0, 0, 0, None))
    for t in range(40):
        state = jax.tree.unflatten(jax.tree.structure(theirs.reset(jax.random.PRNGKey(0))[1]), leaves_of(env)[1:])
        actions = actions_for(env, t)
        keys = jax.random.split(jax.random.PRNGKey(t), N)
        _, _, reward, terminated, truncated, info = step(keys, state, actions.numpy(), params)
        ours = env.step(actions)
        np.testing.assert_allclose(ours.final_obs, info["final_observation"], atol=1e-6)
        np.testing.assert_array_equal(ours.rewards, reward)
        np.testing.assert_array_equal(ours.terminated, terminated)
        np.testing.assert_array_equal(ours.truncated, truncated)


def leaves_of(env: Any) -> list[np.ndarray]:
    return [x.numpy() for x in env.state_dict(torch.zeros(N))["envs"]]


def test_an_episode_does_not_depend_on_the_number_of_environments() -> None:
    few, many = of_gymnax(num_envs=2), of_gymnax(num_envs=5)
    torch.testing.assert_close(few.reset([3, 4])[0], many.reset([3, 4, 5, 6, 7])[0][:2], rtol=0, atol=0)
    for t in range(100):
        actions = actions_for(many, t)
        torch.testing.assert_close(few.step(actions[:2]).obs, many.step(actions).obs[:2], rtol=0, atol=1e-6)


def test_tensors_are_the_memory_of_jax_and_stay_as_they_were() -> None:
    env = of_gymnax("Breakout-MinAtar")
    first, _ = env.reset(1)
    kept = [first]
    copies = [first.clone()]
    for t in range(50):
        step = env.step(actions_for(env, t))
        kept += [step.obs, step.final_obs, step.rewards]
        copies += [x.clone() for x in kept[-3:]]
    for x, copy in zip(kept, copies, strict=True):
        assert torch.equal(x, copy)
    assert step.obs.shape == (N, 10, 10, 4)
    assert step.obs.untyped_storage().data_ptr() == step.final_obs.untyped_storage().data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available() or jax.default_backend() != "gpu", reason="needs JAX on a GPU")
def test_on_a_gpu_no_array_passes_through_the_host() -> None:
    env = make_vector_env("CartPole-v1", N, {"max_steps_in_episode": 5}, (), "gymnax", device="cuda")
    env.reset(0)
    env.step(actions_for(env, 0).cuda())
    with jax.transfer_guard("disallow"):
        for t in range(10):
            step = env.step(actions_for(env, t).cuda())
    assert all(x.is_cuda for x in step[:5])


@pytest.mark.parametrize("change", ["transposed", "inference", "int32", "bool", "float64"])
def test_actions_may_be_any_tensors(change: str) -> None:
    env_id = "Pendulum-v1" if change in ("transposed", "float64") else "CartPole-v1"
    env, other = of_gymnax(env_id), of_gymnax(env_id)
    env.reset(2)
    other.reset(2)
    actions = actions_for(env, 0)
    with torch.inference_mode(change == "inference"):
        changed = {
            "transposed": lambda x: torch.stack([x, x], 1)[:, 1],
            "inference": lambda x: x + 0,
            "int32": lambda x: x.int(),
            "bool": lambda x: x.bool(),
            "float64": lambda x: x.double(),
        }[change](actions)
        assert torch.equal(env.step(changed).obs, other.step(actions).obs)


def test_categories_are_observed_as_one_of_many() -> None:
    env = of_gymnax("FrozenLake-misc")
    first, _ = env.reset(0)
    assert first.shape == (N, 16)
    assert torch.equal(first.sum(1), torch.ones(N))
    assert env.single_observation_space.shape == (16,)


def test_every_task_of_gymnax_can_be_stepped() -> None:
    for env_id in set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}:  # which loads pictures from elsewhere
        env = of_gymnax(env_id, num_envs=2)
        env.reset(0)
        step = env.step(actions_for(env, 0))
        assert step.obs.dtype == torch.float32, env_id
        assert step.obs.shape == (2, *env.single_observation_space.shape), env_id
        one = make_env(env_id, backend="gymnax")
        assert (one.observation_space, one.action_space) == (env.single_observation_space, env.single_action_space)


def test_one_environment_plays_as_a_batch_of_one() -> None:
    one, batch = make_env("CartPole-v1", backend="gymnax"), of_gymnax(num_envs=1)
    obs, _ = one.reset(seed=4)
    np.testing.assert_array_equal(obs, batch.reset([4])[0][0])
    obs, reward, terminated, truncated, _ = one.step(1)
    np.testing.assert_array_equal(obs, batch.step(torch.tensor([1])).obs[0])
    assert (reward, terminated, truncated) == (1.0, False, False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"env_id": "LunarLander-v3"}, r"^data.env_id: gymnax has CartPole-v1, .*not 'LunarLander-v3'$"),
        ({"env_kwargs": {"colour": 1}}, r"^data.env_kwargs: gymnax cannot make .*colour.*max_steps_in_episode"),
        ({"env_kwargs": {"gravity": "high"}}, r"^data.env_kwargs: gymnax cannot make .*'high'"),
        ({"autoreset_mode": "next_step"}, r"^data.autoreset_mode: backend 'gymnax' resets as same_step or disabled"),
        ({"wrappers": ["gymnasium.wrappers.NormalizeReward"]}, r"^data.wrappers: backend 'gymnax'"),
        ({"device": "meta"}, r"^trainer.accelerator: the policy is on meta, where JAX cannot compute; .*or set it"),
    ],
    ids=str,
)
def test_what_gymnax_does_not_have_is_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        make_vector_env(**{"env_id": "CartPole-v1", "num_envs": 2, "backend": "gymnax", **options})
    assert "\n" not in str(caught.value)


def test_ppo_trains_and_evaluates_in_gymnax(fit: Any) -> None:
    data = {"num_envs": 4, "num_steps": 16, "total_steps": 256, "eval_episodes": 3, "eval_every_steps": 128}
    module = fit("CartPole-v1", {**data, "backend": "gymnax"})
    assert module.env_steps == 256


def test_without_a_seed_an_environment_continues_its_own_random_stream() -> None:
    env, other = of_gymnax(mode="disabled"), of_gymnax(mode="disabled")
    first, _ = env.reset(seed=list(range(N)))
    other.reset(seed=list(range(N)))
    obs, _ = env.reset(seed=[None] * 3 + [3, 4, 5])
    np.testing.assert_array_equal(obs[3:], first[3:])
    np.testing.assert_array_equal(obs[:3], other.reset()[0][:3])
    assert len(np.unique(np.concatenate([obs, first[:3]]), axis=0)) == N + 3


def test_what_would_wait_forever_in_a_forked_process_is_refused(fit: Any) -> None:
    with pytest.raises(UserError, match=r"^data\.overlap: forks a process, in which data\.backend gymnax .*; choose"):
        fit("CartPole-v1", {"backend": "gymnax", "overlap": True})


# Brax: its smallest task, in its fastest physics, because every program takes seconds to compile.

LIMIT = 9
PENDULUM = {"episode_length": LIMIT, "backend": "spring"}


@pytest.fixture
def brax() -> Any:
    return pytest.importorskip("brax.envs", reason="needs Brax")


def of_brax(env_kwargs: Any = None, mode: Any = None) -> Any:
    return make_vector_env("inverted_pendulum", N, PENDULUM if env_kwargs is None else env_kwargs, (), "brax", mode)


def test_steps_are_those_of_brax_with_the_same_keys(brax: Any) -> None:
    """The states in between are compared too: what was reset starts anew, the others go on."""
    env, theirs = of_brax(), brax.get_environment("inverted_pendulum", backend="spring")
    first, step_all = jax.jit(jax.vmap(theirs.reset)), jax.jit(jax.vmap(theirs.step))
    obs, _ = env.reset(7)
    keys = jax.vmap(jax.random.split)(jax.vmap(jax.random.PRNGKey)(np.arange(7, 7 + N)))
    state, keys, lengths = first(keys[:, 1]), keys[:, 0], np.zeros(N, int)
    np.testing.assert_allclose(obs, state.obs, atol=1e-6)
    ends = np.zeros(2, int)
    for t in range(30):
        actions = actions_for(env, t // 12)  # in one direction for a while, so that some poles fall
        step = env.step(actions)
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        state, fresh, lengths, keys = step_all(state, actions.numpy()), first(keys[:, 2]), lengths + 1, keys[:, 0]
        np.testing.assert_allclose(step.final_obs, state.obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(step.rewards, np.asarray(state.reward))
        terminated, truncated = np.asarray(state.done) > 0, lengths >= LIMIT
        np.testing.assert_array_equal(step.terminated, terminated)
        np.testing.assert_array_equal(step.truncated, truncated)
        done = terminated | truncated
        ends += terminated.sum(), (truncated & ~terminated).sum()
        lengths[done] = 0
        state = jax.tree.map(
            lambda x, y, done=done: np.where(done.reshape(-1, *(1,) * (x.ndim - 1)), x, y), fresh, state
        )
        np.testing.assert_allclose(step.obs, state.obs, rtol=1e-3, atol=1e-4)
    assert ends.all(), "some fall and some are cut"


def test_each_episode_of_brax_starts_in_a_state_of_its_own(brax: Any) -> None:
    env = of_brax()
    first, _ = env.reset(1)
    starts = [first, *(env.step(torch.zeros(N, 1)).obs for _ in range(2 * LIMIT))]
    starts = [starts[0], starts[LIMIT], starts[2 * LIMIT]]
    assert all((x - y).abs().max(1).values.gt(0).all() for x, y in [starts[:2], starts[1:], starts[::2]])
    assert all(x.abs().max() < 0.02 for x in starts), "near the origin, as Brax's episodes start"


def test_the_state_of_brax_is_restored_to_the_bit(brax: Any) -> None:
    env, other = of_brax(), of_brax()
    env.reset(3)
    other.reset(4)
    for t in range(7):
        obs = env.step(actions_for(env, t)).obs
    state = env.state_dict(torch.zeros(N))
    assert other.load_state_dict(state, obs, torch.zeros(N), torch.zeros(N)) == ""
    for t in range(2 * LIMIT):
        ours, theirs = env.step(actions_for(env, t)), other.step(actions_for(env, t))
        assert torch.equal(ours.obs, theirs.obs)
        assert torch.equal(ours.truncated, theirs.truncated)
    state["envs"] = state["envs"][:-1]
    assert other.load_state_dict(state, obs, torch.zeros(N), torch.zeros(N)).startswith("its state has other arrays")


def test_evaluation_in_brax_gives_each_episode_its_seed(brax: Any) -> None:
    env, training = of_brax(mode="disabled"), of_brax()
    np.testing.assert_array_equal(env.reset(seed=[1] * N)[0], training.reset([1] * N)[0])
    env.step(np.zeros((N, 1), np.float32))
    which = np.arange(N) % 2 == 0
    obs, _ = env.reset(seed=[1 if x else None for x in which], options={"reset_mask": which})
    np.testing.assert_array_equal(obs[which], training.reset([1] * N)[0][which])
    assert not np.array_equal(obs[~which], training.reset([1] * N)[0][~which])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"env_id": "Ant-v5"}, r"^data.env_id: Brax has no 'Ant-v5'; it has ant, hopper"),
        (
            {"env_kwargs": {"backend": "bullet"}},
            r"^data.env_kwargs: Brax cannot make 'inverted_pendulum' .*bullet.*mjx",
        ),
        ({"env_kwargs": {"colour": 1}}, r"^data.env_kwargs: Brax cannot make .*colour"),
        ({"env_kwargs": {"episode_length": 0}}, r"^data.env_kwargs.episode_length: must be at least 1, got 0"),
        ({"wrappers": ["gymnasium.wrappers.NormalizeReward"]}, r"^data.wrappers: backend 'brax'"),
    ],
    ids=str,
)
def test_what_brax_does_not_have_is_refused_in_one_line(brax: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        make_vector_env(**{"env_id": "inverted_pendulum", "num_envs": 2, "backend": "brax", **options})
    assert "\n" not in str(caught.value)
