"""What the collector writes down is what the environments lived through, row by row, in every autoreset mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, count, islice
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.envs import make_vector_env
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout

T, N, ROLLOUTS = 5, 3, 4
MODES = ("same_step", "next_step", "disabled")
# Length and end of successive episodes. Environment n starts its first at entry n, so that ends fall on every row.
EPISODES = [(3, "truncated"), (1, "terminated"), (4, "both"), (2, "truncated"), (1, "truncated"), (6, "terminated")]


def script(env: int, episode: int) -> tuple[int, str]:
    return EPISODES[(env + episode) % len(EPISODES)]


def reward_of(env: int, episode: int, step: int, action: int) -> float:
    return 1000.0 * env + 100 * episode + 10 * step + action


class Script(gym.Env):
    """Observations say (env, episode, step); rewards say that and the action. With `reuse`, always the same array."""

    observation_space = gym.spaces.Box(0, 2**24, (3,), np.float32)
    action_space = gym.spaces.Discrete(10)

    def __init__(self, reuse: bool = False) -> None:
        self.reuse = reuse
        self.state = np.zeros(3, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.state[:] = seed % 1000, -1, 0
        self.state += 0, 1, 0
        self.state[2] = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        env, episode, step = (int(x) for x in self.state)
        self.state[2] += 1
        length, end = script(env, episode)
        ended = step + 1 == length
        reward = reward_of(env, episode, step, int(action))
        return self._observation(), reward, ended and end != "truncated", ended and end != "terminated", {}

    def _observation(self) -> np.ndarray:
        return self.state if self.reuse else self.state.copy()


class Broken(gym.Env):
    """Episodes of 4 steps, cut; the environment with seed 1 gives something that is not finite in its third."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(10)

    def __init__(self, what: str, value: float) -> None:
        self.what, self.value, self.faulty = what, value, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.faulty = self.faulty or seed == 1
        self.steps = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        obs, reward = np.zeros(2, dtype=np.float32), 0.0
        if self.faulty and self.what == "reward" and self.steps == 3:
            reward = self.value
        if self.faulty and self.steps == {"observation": 3, "final observation": 4}.get(self.what):
            obs[1] = self.value
        return obs, reward, False, self.steps == 4, {}


gym.register("tests/Script-v0", Script)
gym.register("tests/Broken-v0", Broken)


class ScriptedActor:
    """Its action follows from the observation; the environment gets it plus one."""

    policy_version = 7
    device = torch.device("cpu")

    def acting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return (obs.sum(-1) % 5).long(), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions + 1


@dataclass
class Row:
    """One row as the environment lives through it, worked out without the collector."""

    obs: tuple[int, int, int]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    valid: bool = True
    final_obs: tuple[int, int, int] | None = None


def expected_rows(env: int, mode: str) -> Iterator[Row]:
    for episode in count():
        length, end = script(env, episode)
        for step in range(length):
            row = Row((env, episode, step), reward_of(env, episode, step, (env + episode + step) % 5 + 1))
            if step == length - 1:
                row.terminated, row.truncated = end != "truncated", end != "terminated"
                if end == "truncated" and mode != "next_step":
                    row.final_obs = (env, episode, length)
            yield row
        if mode == "next_step":
            yield Row((env, episode, length), valid=False)


class PaysForResets(gym.vector.VectorWrapper):
    """Vectorised code that pays in the row of a reset, too."""

    ended = np.zeros(N, dtype=bool)

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        paid, self.ended = rewards + 99.0 * self.ended, terminated | truncated
        return obs, paid, terminated, truncated, infos


def collect(mode: str, backend: str = "sync", reuse: bool = False, wrap: Any = lambda env: env) -> list[Rollout]:
    env = wrap(make_vector_env("tests/Script-v0", N, {"reuse": reuse}, (), backend, mode))
    collector = RolloutCollector(env, T, list(range(N)), action_seed=0)
    rollouts = [collector.collect(ScriptedActor()) for _ in range(ROLLOUTS)]
    collector.close()
    return rollouts


CASES = [(mode, backend, reuse) for backend in ("sync", "async") for reuse in (False, True) for mode in MODES]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}{'-reused' * case[2]}")
def collected(request: pytest.FixtureRequest) -> tuple[str, list[Rollout]]:
    """Rollouts in every mode, in this process and in others, of envs that reuse their array and that do not."""
    mode, backend, reuse = request.param
    return mode, collect(mode, backend, reuse)


def columns(mode: str) -> list[list[Row]]:
    return [list(islice(expected_rows(n, mode), ROLLOUTS * T + 1)) for n in range(N)]


def expected(mode: str, name: str) -> Tensor:
    """`[ROLLOUTS * T, N, …]`."""
    return torch.tensor([[getattr(row, name) for row in column[:-1]] for column in columns(mode)]).transpose(0, 1)


def joined(rollouts: list[Rollout], name: str) -> Tensor:
    return torch.cat([getattr(rollout, name)[:T] for rollout in rollouts])


def test_observations_line_up_with_what_was_lived_through(collected: Any) -> None:
    mode, rollouts = collected
    assert torch.equal(joined(rollouts, "obs"), expected(mode, "obs").float())


def test_the_last_row_of_observations_is_the_first_of_the_next_rollout(collected: Any) -> None:
    mode, rollouts = collected
    for k, rollout in enumerate(rollouts):
        assert rollout.obs[T].tolist() == [list(column[(k + 1) * T].obs) for column in columns(mode)]


def test_actions_are_those_chosen_at_the_observation_of_their_row(collected: Any) -> None:
    _, rollouts = collected
    assert torch.equal(joined(rollouts, "actions"), joined(rollouts, "obs").sum(-1).long() % 5)


def test_rewards_are_those_of_the_action_that_the_environment_got(collected: Any) -> None:
    mode, rollouts = collected
    assert torch.equal(joined(rollouts, "rewards"), expected(mode, "reward"))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_ends_are_in_the_row_whose_action_caused_them(collected: Any, end: str) -> None:
    mode, rollouts = collected
    assert torch.equal(joined(rollouts, end), expected(mode, end))


def test_only_the_reset_row_of_next_step_autoreset_is_not_valid(collected: Any) -> None:
    mode, rollouts = collected
    assert torch.equal(joined(rollouts, "valid"), expected(mode, "valid"))


def test_a_reset_row_at_the_start_of_a_rollout_is_not_valid_and_other_first_rows_are() -> None:
    firsts = torch.stack([rollout.valid[0] for rollout in collect("next_step")])
    assert firsts.any()
    assert not firsts[1:].all()
    assert torch.equal(firsts, expected("next_step", "valid")[::T])


def test_what_is_paid_in_a_reset_row_counts_for_no_episode() -> None:
    plain, paying = collect("next_step"), collect("next_step", wrap=PaysForResets)
    assert torch.equal(joined(paying, "rewards"), joined(plain, "rewards"))
    for one, other in zip(plain, paying, strict=True):
        assert torch.equal(one.episode_returns, other.episode_returns)


def test_env_steps_are_the_rows_in_which_the_environment_moved(collected: Any) -> None:
    mode, rollouts = collected
    moves = expected(mode, "valid").reshape(ROLLOUTS, T * N).sum(1)
    assert [rollout.env_steps for rollout in rollouts] == moves.tolist()
    assert (int(moves.sum()) < ROLLOUTS * T * N) == (mode == "next_step")


def test_final_observations_of_truncated_episodes_are_kept_where_they_belong(collected: Any) -> None:
    mode, rollouts = collected
    kept = {}
    for k, rollout in enumerate(rollouts):
        for row, final in zip(rollout.final_rows.tolist(), rollout.final_obs.tolist(), strict=True):
            kept[k * T + row // N, row % N] = tuple(final)
    lived = {(t, n): row.final_obs for n, column in enumerate(columns(mode)) for t, row in enumerate(column[:-1])}
    assert kept == {key: final for key, final in lived.items() if final is not None}
    assert bool(kept) == (mode != "next_step")


def test_episodes_are_added_up_across_rollouts(collected: Any) -> None:
    mode, rollouts = collected
    ended: dict[int, list[tuple[float, int]]] = {}
    for n, column in enumerate(columns(mode)):
        total, length = 0.0, 0
        for t, row in enumerate(column[:-1]):
            total, length = total + row.reward, length + row.valid
            if row.terminated or row.truncated:
                ended.setdefault(t // T, []).append((total, length))
                total, length = 0.0, 0
        assert any(row.obs[2] > 0 for row in column[T:-1:T]), f"env {n} has no episode across a border"
    for k, rollout in enumerate(rollouts):
        found = zip(rollout.episode_returns.tolist(), rollout.episode_lengths.tolist(), strict=True)
        assert sorted(found) == sorted(ended[k])


def test_a_rollout_carries_the_version_of_the_policy_that_acted() -> None:
    assert collect("same_step")[0].policy_version == ScriptedActor.policy_version


def test_every_mode_lives_through_the_same_episodes_and_next_step_autoreset_takes_more_rows() -> None:
    lived = {}
    for mode in MODES:
        rollouts = collect(mode)
        obs, valid = joined(rollouts, "obs"), joined(rollouts, "valid")
        lived[mode] = {tuple(o) for o in obs[valid].tolist()}
    assert lived["next_step"] < lived["same_step"] == lived["disabled"]


class Recorder(PPO):
    """Keeps the rollouts it was given."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rollouts: list[Rollout] = []

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.rollouts.append(rollout)
        super().training_step(rollout, batch_idx)


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_environments_run_on_over_the_epochs_and_evaluations_of_a_training(fit: Any, mode: str, reload: int) -> None:
    data = {"num_envs": N, "num_steps": T, "total_steps": 10_000, "eval_every_steps": 20, "autoreset_mode": mode}
    epochs = {"max_epochs": 3, "limit_train_batches": 2, "reload_dataloaders_every_n_epochs": reload}
    rollouts = fit("tests/Script-v0", data, algorithm=Recorder, trainer=epochs, num_minibatches=1).rollouts
    assert len(rollouts) == 6
    rows = torch.cat([rollout.obs[:T] for rollout in rollouts] + [rollouts[-1].obs[T:]])
    for column in rows.unbind(1):
        env = int(column[0, 0])
        lived = [row.obs for row in islice(expected_rows(env, mode), len(rows))]
        assert [tuple(obs) for obs in column.tolist()] == lived


def seeds_of(run_seed: int, rank: int, env_steps: int = 0) -> list[int]:
    torch.manual_seed(run_seed)
    data = RolloutDataModule("tests/Script-v0", num_envs=16)
    module = SimpleNamespace(env_steps=env_steps, actor=None)
    ranks = {
        "global_rank": rank,
        "world_size": 4,
        "precision": "32-true",
        "strategy": SimpleNamespace(root_device="cpu"),
    }
    data.trainer = SimpleNamespace(lightning_module=module, **ranks)  # type: ignore[assignment]
    data.train_dataloader()
    seeds = [int(seed) for seed in data.collector.env.vector_env.np_random_seed]
    data.teardown("fit")
    return seeds


def test_no_two_environments_share_a_seed_over_runs_ranks_and_resumes() -> None:
    runs = [(run, rank, steps) for run in range(3) for rank in range(3) for steps in (0, 2048)]
    seeds = list(chain.from_iterable(seeds_of(*run) for run in runs))
    assert len(seeds) == len(runs) * 16
    assert len(set(seeds)) == len(seeds)


def test_the_same_run_gets_the_same_seeds() -> None:
    assert seeds_of(3, 1) == seeds_of(3, 1)


class Choking(ScriptedActor):
    """A policy that fails on a NaN before the collector has looked for one."""

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if not obs.isfinite().all():
            raise RuntimeError("probability tensor contains nan")
        return super().act(obs, generator)


@pytest.mark.parametrize(("what", "step"), [("observation", 2), ("reward", 2), ("final observation", 3)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("actor", [ScriptedActor(), Choking()])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_refused_naming_env_and_step(
    what: str, step: int, value: float, actor: Any, mode: str
) -> None:
    env = make_vector_env("tests/Broken-v0", 3, {"what": what, "value": value}, (), "sync", mode)
    # Under next-step autoreset the final observation is an observation like any other.
    what = "observation" if mode == "next_step" and what == "final observation" else what
    with pytest.raises(UserError, match=rf"non-finite {what} in env 1 at step {step}\b"):
        RolloutCollector(env, 8, [0, 1, 2], 0).collect(actor)


# Timesteps, memory and masks.


def steps_lived(mode: str) -> Tensor:
    """`[ROLLOUTS * T, N]` env steps that the episode of a row had before it; −1 in a reset row."""
    return torch.where(expected(mode, "valid"), expected(mode, "obs")[..., 2], -1)


def test_timesteps_count_the_steps_of_the_episode_across_rollouts(collected: Any) -> None:
    mode, rollouts = collected
    valid = joined(rollouts, "valid")
    assert torch.equal(joined(rollouts, "timesteps")[valid], steps_lived(mode)[valid])
    starts = torch.cat([rollout.starts for rollout in rollouts])
    assert torch.equal(starts, steps_lived(mode) == 0)


class Counter(ScriptedActor):
    """Its memory is the number of steps since it was empty, and so is its action."""

    def initial_state(self, num_envs: int) -> Tensor:  # type: ignore[override]
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


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_the_memory_lives_from_the_first_observation_of_an_episode_to_the_last(mode: str, backend: str) -> None:
    env = make_vector_env("tests/Script-v0", N, {}, (), backend, mode)  # type: ignore[arg-type]
    collector = RolloutCollector(env, T, list(range(N)), action_seed=0)
    rollouts = [collector.collect(Counter()) for _ in range(ROLLOUTS)]
    collector.close()
    # In a reset row the memory sees the final observation too.
    steps = expected(mode, "obs")[..., 2]
    assert torch.equal(joined(rollouts, "actions"), steps)
    firsts = torch.stack([rollout.state[:, 0].long() for rollout in rollouts])  # type: ignore[index]
    assert torch.equal(firsts, steps[::T])
    assert firsts[1:].any()
    assert not firsts[1:].all()


def test_a_policy_without_memory_has_no_state() -> None:
    assert all(rollout.state is None and rollout.action_mask is None for rollout in collect("same_step"))


class OneWay(Script):
    """Allows one action, which follows from the observation, and raises at any other."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return super().reset(seed=seed)[0], self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self._info()["action_mask"][action]:
            raise ValueError(f"{action} at {self.state}")
        return (*super().step(action)[:4], self._info())

    def _info(self) -> dict:
        return {"action_mask": np.eye(10, dtype=np.int8)[int(self.state.sum()) % 10]}


gym.register("tests/OneWay-v0", OneWay)


class Obedient(ScriptedActor):
    """Takes the first action that is allowed."""

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        assert action_mask is not None
        return action_mask.argmax(-1), None

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


@pytest.mark.parametrize("whole_episodes", [False, True], ids=["", "whole"])
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_the_mask_of_a_row_is_that_of_its_observation(mode: str, backend: str, whole_episodes: bool) -> None:
    env = make_vector_env("tests/OneWay-v0", N, {}, (), backend, mode)  # type: ignore[arg-type]
    collector = RolloutCollector(env, T, list(range(N)), 0, whole_episodes)
    rollouts = [collector.collect(Obedient()) for _ in range(ROLLOUTS)]
    collector.close()
    for rollout in rollouts:
        allowed = rollout.obs[:-1].sum(-1).long() % 10
        assert torch.equal(rollout.action_mask, torch.eye(10, dtype=torch.int8)[allowed])
        assert torch.equal(rollout.actions, allowed)


def test_an_error_of_the_environment_itself_is_not_hidden() -> None:
    env = make_vector_env("tests/Script-v0", 2)
    collector = RolloutCollector(env, 4, [0, 1], 0)
    env.envs[1].unwrapped.step = lambda action: 1 / 0
    with pytest.raises(UserError, match="env 1 failed in step 1: it raised ZeroDivisionError") as found:
        collector.collect(ScriptedActor())
    assert isinstance(found.value.__cause__, ZeroDivisionError)


class Fickle(OneWay):
    """Says in the first two steps of an episode what is allowed, and then no more."""

    def _info(self) -> dict:
        return super()._info() if self.state[2] < 2 else {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return (*Script.step(self, action)[:4], self._info())


gym.register("tests/Fickle-v0", Fickle)


def test_masks_in_some_steps_only_are_refused() -> None:
    env = make_vector_env("tests/Fickle-v0", 1)
    collector = RolloutCollector(env, T, [0], action_seed=0)
    with pytest.raises(UserError, match=r"action_mask.* in some steps only"):
        collector.collect(ScriptedActor())


class Listing(OneWay):
    """Gives its mask as a list."""

    def _info(self) -> dict:
        return {"action_mask": super()._info()["action_mask"].tolist()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return (*Script.step(self, action)[:4], self._info())


gym.register("tests/Listing-v0", Listing)


def test_masks_of_no_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.env_id: info\['action_mask'\] must be an array"):
        RolloutCollector(make_vector_env("tests/Listing-v0", N), T, list(range(N)), action_seed=0)


def test_masks_of_some_environments_only_are_refused() -> None:
    """Gymnasium fills in zeros for the others, and a mask of zeros allows everything."""
    env = make_vector_env("tests/OneWay-v0", N)
    collector = RolloutCollector(env, T, list(range(N)), action_seed=0)
    step = env.step

    def forgetful(actions: Any) -> Any:
        *outcome, infos = step(actions)
        infos["_action_mask"] = np.arange(N) > 0
        return *outcome, infos

    env.step = forgetful  # type: ignore[method-assign]
    with pytest.raises(UserError, match="from every environment"):
        collector.collect(Obedient())
