"""Environments in processes that die and hang: they are replaced, their episode is cut, and nothing is left behind."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import odd_envs
import pytest
import torch
from run_files import load, read_metrics
from torch import Tensor

from pg_lightning.data import EvaluationDataset, RolloutCollector, RolloutDataModule
from pg_lightning.envs import env_seed, make_vector_env
from pg_lightning.envs.contract import RESTARTED
from pg_lightning.errors import UserError
from pg_lightning.processes import SHUTDOWN_GRACE_S, WorkerError
from pg_lightning.returns import gae, unfinished
from pg_lightning.rollout import Rollout

MODES = ("same_step", "next_step", "disabled")
SEEDS, VICTIM, NOBODY = [7, 8, 9], 8, -1
TIMEOUT = 1.5  # of those that hang: longer than a process takes to start on a machine that has other work to do
CAUSES = {
    "raises": r"raised OSError: the simulator is gone \(.*odd_envs.py:\d+\)",
    "leaves": r"called sys.exit\(\) \(.*odd_envs.py:\d+\)",
    "exits": "exited with code 3",
    "is killed": "was killed by SIGKILL",
    "hangs": "did not answer within data.env_timeout, 1.5 s",
    "hangs in C": "did not answer within data.env_timeout, 1.5 s",
    "is stopped": "did not answer within data.env_timeout, 1.5 s",
}


def faulty(mode: Any = "same_step", num_envs: int = 3, **kwargs: Any) -> Any:
    options = {name: kwargs.pop(name) for name in ("env_timeout", "max_env_restarts") if name in kwargs}
    fault = {"fault": "raises", "victim": VICTIM, **kwargs}
    return make_vector_env("Faulty-v0", num_envs, fault, (), "async", mode, **options)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Any:
    yield
    end = time.monotonic() + 2 * SHUTDOWN_GRACE_S
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.02)
    assert multiprocessing.active_children() == []


# The vector environment.


@pytest.mark.parametrize(
    ("fault", "mode", "step"),
    [(fault, mode, 3) for fault in ("raises", "is killed") for mode in MODES]
    + [("leaves", "same_step", 3), ("exits", "same_step", 3), ("raises", "same_step", 0), ("exits", "next_step", 0)]
    + [("hangs", "same_step", 3), ("hangs", "next_step", 0), ("hangs in C", "same_step", 3)]
    + [("is stopped", "disabled", 3)],
)
def test_what_breaks_is_replaced_and_the_others_notice_nothing(fault: str, mode: str, step: int, caplog: Any) -> None:
    """In the second episode of the victim, at a step or in the reset before it."""
    env = faulty(mode, fault=fault, episode=1, step=step, env_timeout=TIMEOUT)
    well = make_vector_env("Faulty-v0", 3, {"fault": fault, "victim": NOBODY}, (), "sync", mode)  # type: ignore[arg-type]
    obs, expected = env.reset(seed=SEEDS)[0], well.reset(seed=SEEDS)[0]
    assert np.array_equal(obs, expected)
    before = env.pids[1]
    others, broke_in = [0, 2], None
    for t in range(25):
        *outcome, infos = env.step(np.zeros(3, dtype=int))
        *expected, _ = well.step(np.zeros(3, dtype=int))
        for ours, theirs in zip(outcome, expected, strict=True):
            assert np.array_equal(ours[others], theirs[others])
        if RESTARTED in infos:
            assert broke_in is None
            broke_in = t
            assert infos[RESTARTED].tolist() == [False, True, False]
            obs, rewards, terminated, truncated = (array[1].tolist() for array in outcome)
            assert (obs, rewards, terminated, truncated) == ([0, 0], 0, False, False)
        for vector_env, (*_, terminated, truncated) in ((env, outcome), (well, expected)):
            if mode == "disabled" and (ended := terminated | truncated).any():
                vector_env.reset(options={"reset_mask": ended})
    assert broke_in == 9 + step + (mode == "next_step")
    assert env.restarts == 1
    assert env.pids[1] != before
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"data.backend async: env 1 (process {before}) ")
    assert re.search(CAUSES[fault], line)
    assert "\n" not in line
    env.close()


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_where_no_environment_can_be_reset_that_is_said_at_once(fault: str) -> None:
    env = faulty(fault=fault, victim=None, step=0, env_timeout=TIMEOUT)
    with pytest.raises(UserError, match=rf"^data.env_id: no environment can be reset: env 0 .*{CAUSES[fault]}$"):
        env.reset(seed=SEEDS)
    assert env.restarts == 0
    assert env.closed


def test_one_of_them_that_cannot_be_reset_is_replaced() -> None:
    env = faulty(step=0)
    assert env.reset(seed=SEEDS)[0].tolist() == [[0, 0]] * 3
    assert env.restarts == 1
    env.close()


@pytest.mark.parametrize("most", [0, 2])
def test_the_budget_of_restarts_ends_it_and_every_process(most: int) -> None:
    env = faulty(victim=None, step=4, max_env_restarts=most)
    env.reset(seed=SEEDS)
    for _ in range(3):
        env.step(np.zeros(3, dtype=int))
    with pytest.raises(WorkerError) as caught:
        env.step(np.zeros(3, dtype=int))
    assert str(caught.value).startswith(f"data.max_env_restarts: environments have failed more than {most} times")
    assert f"the last: env {most} (process " in str(caught.value)
    assert "raised OSError: the simulator is gone" in str(caught.value)
    assert (env.restarts, env.closed) == (most, True)


class ShowsSeed(odd_envs.Bandit):
    """Raises in its third step."""

    observation_space = gym.spaces.Box(0, 2**31, (1,), np.int64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed = seed or 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        assert self.steps < 2
        return (*super().step(action)[:2], False, False, {})

    def observation(self) -> Any:
        return np.array([self.seed])


gym.register("tests/ShowsSeed-v0", ShowsSeed)


def test_no_replacement_has_a_seed_that_there_was_before() -> None:
    env = make_vector_env("tests/ShowsSeed-v0", 2, backend="async")
    seen = env.reset(seed=[1, 2])[0].ravel().tolist()
    for _ in range(12):
        obs, *_, infos = env.step(np.zeros(2, dtype=int))
        if RESTARTED in infos:
            seen += obs.ravel().tolist()
    env.close()
    assert len(seen) == 10
    assert len(set(seen)) == 10


class Stubborn(odd_envs.Bandit):
    """Has a child and a thread, prints, and is not to be closed."""

    def __init__(self, folder: str, closes: bool) -> None:
        self.folder, self.closes = Path(folder), closes

    def reset(self, **kwargs: Any) -> Any:
        child = subprocess.Popen(["sleep", "1000"])
        (self.folder / f"{os.getpid()}").write_text(str(child.pid))
        print("a word", flush=True)
        torch.ones(200, 200) @ torch.ones(200, 200)
        return super().reset(**kwargs)

    def close(self) -> None:
        if hasattr(self, "steps"):
            (self.folder / f"closing {os.getpid()}").touch()
            time.sleep(0 if self.closes else 1000)


gym.register("tests/Stubborn-v0", Stubborn)


@pytest.mark.parametrize("closes", [True, False])
def test_closing_leaves_nothing_not_even_what_the_environments_started(tmp_path: Path, closes: bool) -> None:
    env: Any = make_vector_env("tests/Stubborn-v0", 2, {"folder": str(tmp_path), "closes": closes}, backend="async")
    env.reset(seed=[0, 1])
    pids = env.pids
    children = [int((tmp_path / f"{pid}").read_text()) for pid in pids]
    assert all(is_running(pid) for pid in [*pids, *children])
    env.close()
    assert all((tmp_path / f"closing {pid}").exists() for pid in pids)
    end = time.monotonic() + 5
    while any(map(is_running, [*pids, *children])) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_running, [*pids, *children]))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_methods_and_attributes_of_the_environments_can_be_asked_for() -> None:
    env = faulty()
    env.reset(seed=SEEDS)
    assert env.call("is_victim") == (False, True, False)
    assert [obs.tolist() for obs in env.call("observation")] == [[0, 0]] * 3
    with pytest.raises(WorkerError, match=r"data.backend async: nonsense: env 0 .* raised AttributeError"):
        env.call("nonsense")
    env.close()


# What is recorded of a break.


class Counter:
    """Acts by its memory: the number of steps that it has lived through."""

    policy_version = 0
    device = torch.device("cpu")

    def acting(self) -> Any:
        return torch.inference_mode()

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 1)

    def act(self, obs: Tensor, generator: Any, deterministic: bool = False, mask: Any = None, state: Any = None) -> Any:
        return state[:, 0].long(), state + 1

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions % 2


T = 6


def rollouts(mode: str, count: int, whole: bool = False, **kwargs: Any) -> list[Rollout]:
    collector = RolloutCollector(faulty(mode, **kwargs), T, SEEDS, 0, whole_episodes=whole)
    played = [collector.collect(Counter()) for _ in range(count)]
    collector.close()
    return played


def lived_through(mode: str, episode: int, step: int, count: int) -> list[tuple[int, str]]:
    """Of each of the victim's rows the step in its episode, and what is special about it."""
    rows: list[tuple[int, str]] = []
    episodes = breaks = 0
    while len(rows) < count:
        for t in range(10):
            if (episodes, t + 1, breaks) == (episode, step, 0):
                rows.append((t, "break"))
                breaks += 1
                break
            rows.append((t, "end" if t == 9 else ""))
        else:
            rows += [(0, "reset")] * (mode == "next_step")
        episodes += 1
    return rows[:count]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("episode", "step"), [(0, 1), (0, 4), (0, T), (0, T + 1), (1, 1), (1, 2)])
def test_the_row_of_a_break_is_no_sample_and_the_row_before_ends_a_truncated_episode(
    mode: str, episode: int, step: int
) -> None:
    """Also in the first row of a rollout, whose last has bootstrapped already, and in the first of an episode."""
    played = rollouts(mode, 4, episode=episode, step=step)
    valid, truncated, timesteps, rewards, actions = (
        torch.cat([getattr(rollout, name) for rollout in played])[:, 1]
        for name in ("valid", "truncated", "timesteps", "rewards", "actions")
    )
    expected = lived_through(mode, episode, step, 4 * T)
    at = [what for _, what in expected].index("break")
    assert timesteps.tolist() == [t for t, _ in expected]
    assert valid.tolist() == [what in ("", "end") for _, what in expected]
    assert torch.equal(rewards, valid.float())
    is_cut = [what in ("end", "break") for _, what in expected]
    is_cut[at - 1] |= step > 1 and at % T > 0
    assert truncated.tolist() == is_cut
    # An episode begins with an empty memory.
    assert torch.equal(actions[valid], timesteps[valid])
    returns = torch.cat([rollout.episode_returns for rollout in played])
    assert returns.tolist() == [10.0] * (4 + sum(what == "end" for _, what in expected))
    assert [rollout.env_restarts for rollout in played] == [int(at < (k + 1) * T) for k in range(4)]


@pytest.mark.parametrize("mode", MODES)
def test_advantages_before_a_break_bootstrap_from_the_last_observation_and_nothing_leaks_over_it(mode: str) -> None:
    """Rewards are 1, V is 100 in the first episode and 1000 in the one after the break, in row 3."""
    (rollout,) = rollouts(mode, 1, episode=0, step=4)
    values = torch.full((T + 1, 3), 100.0)
    values[4:, 1] = 1000.0
    values[3, 1] = 500.0  # of the observation that was acted on when it broke
    gamma, lam = 0.5, 0.5
    advantages = gae(
        rollout.rewards,
        values[:-1],
        values[1:],
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma,
        lam,
    )
    last = 1 + gamma * 500 - 100
    within, after = 1 + gamma * 100 - 100, 1 + gamma * 1000 - 1000
    decay = gamma * lam
    before = [within + decay * (within + decay * last), within + decay * last, last]
    assert advantages[:, 1].tolist() == pytest.approx([*before, 0.0, after * (1 + decay), after])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_whole_episodes_are_played_on_after_a_break(mode: str, step: int) -> None:
    """One that breaks at or after the last row that there must be is not begun anew."""
    (rollout,) = rollouts(mode, 1, whole=True, episode=0, step=step)
    assert not unfinished(rollout.done, rollout.valid).any()
    assert rollout.valid[:, [0, 2]].sum(0).tolist() == [10, 10]
    assert rollout.valid[:, 1].sum() == (step - 1 + 10 if step < T else step - 1)
    assert rollout.episode_returns.tolist() == [10.0] * (3 if step < T else 2)


class MaskedFaulty(odd_envs.Faulty):
    """Allows the action that its number of steps says."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], self.mask()

    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], self.mask())

    def mask(self) -> Any:
        return {"action_mask": np.eye(11, dtype=np.int8)[self.steps]}


gym.register("tests/MaskedFaulty-v0", MaskedFaulty)


def test_a_mask_comes_with_the_first_observation_after_a_break() -> None:
    env = make_vector_env("tests/MaskedFaulty-v0", 3, {"fault": "raises", "victim": VICTIM, "step": 4}, (), "async")
    collector = RolloutCollector(env, T, SEEDS, 0)
    rollout = collector.collect(Counter())
    collector.close()
    assert rollout.action_mask is not None
    assert torch.equal(rollout.action_mask.argmax(-1), rollout.obs[:-1, :, 1].long())
    assert rollout.obs[:-1, 1, 1].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("record", [False, True])
def test_an_evaluation_episode_that_breaks_is_played_anew(record: bool) -> None:
    env = faulty("disabled", num_envs=2, step=5)
    seeds = [7, VICTIM, 10, 11]
    episodes = list(EvaluationDataset(env, Counter(), seeds, 0, True, 100, record))
    env.close()
    assert env.restarts == 1
    assert [float(episode.episode_return) for episode in episodes] == [10.0] * 4
    for episode in episodes if record else ():
        assert episode.trajectory["obs"][:, 1].tolist() == list(range(11))
        assert episode.trajectory["actions"].tolist() == [0, 1] * 5


# Through the Trainer.

FIT, RUN = ("fit", "--config"), "runs/tiny/version_0"


def breaking(fault: str, episode: int) -> list[str]:
    kwargs = f"{{fault: {fault}, episode: {episode}, step: 3}}"
    return ["--data.backend", "async", "--data.env_id", "odd_envs:Faulty-v0", "--data.env_kwargs", kwargs]


@pytest.mark.parametrize(("env_id", "mode"), [*(("CartPole-v1", mode) for mode in MODES), ("Pendulum-v1", None)])
def test_training_is_that_of_sync_to_the_last_bit(fit: Any, env_id: str, mode: str) -> None:
    weights = []
    for backend in ("sync", "async"):
        torch.manual_seed(3)
        data = {"backend": backend, "autoreset_mode": mode, "num_envs": 2, "num_steps": 32, "eval_episodes": 2}
        weights.append(fit(env_id, data, normalize_obs=True).state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("overlap", [False, True])
def test_restarts_are_counted_in_the_metrics(cli: Any, tiny: Path, tmp_path: Path, overlap: bool) -> None:
    """Every environment breaks in the third step of its second episode: in every 13th row of 4 rollouts of 16."""
    options = ("--data.overlap", overlap, "--data.total_steps", 200)
    finished = cli(tmp_path, *FIT, tiny, *breaking("exits", 1), *options)
    assert finished.returncode == 0, finished.stderr
    last = [row for row in read_metrics(tmp_path / RUN) if "env/restarts" in row][-1]
    assert last["env/restarts"] == 4 * (4 * 16 // 13)
    assert last["time/env_steps"] == 4 * 4 * 16 - last["env/restarts"]


def test_restarts_are_counted_on_where_a_run_is_resumed(cli: Any, tiny: Path, tmp_path: Path) -> None:
    for steps in (200, 400):
        finished = cli(tmp_path, *FIT, tiny, *breaking("exits", 1), "--data.total_steps", steps, "--ckpt_path", "last")
        assert finished.returncode == 0, finished.stderr
    counts = [row["env/restarts"] for row in read_metrics(tmp_path / RUN) if "env/restarts" in row]
    assert counts == sorted(counts)
    assert 4 * (4 * 16 // 13) in counts
    assert counts[-1] > 4 * (4 * 16 // 13)
    assert load(tmp_path / RUN / "checkpoints/last.ckpt")["pg_lightning"]["env_restarts"] == counts[-1]


def test_restarts_of_all_workers_are_counted(cli: Any, tiny: Path, tmp_path: Path) -> None:
    """The one environment that breaks, in its third step, is another's than that of the worker that logs."""
    a3c = {"class_path": "pg_lightning.algorithms.A3C", "init_args": {"hidden_sizes": [8]}}
    victim = env_seed(1, 0, 1, 0, 2)  # run, training environments, worker, env steps, environment
    kwargs = f"{{fault: exits, victim: {victim}, step: 3}}"
    faulty = ("--data.backend", "async", "--data.env_id", "odd_envs:Faulty-v0", "--data.env_kwargs", kwargs)
    long = ("--data.total_steps", 6000, "--data.eval_every_steps", 6000, "--trainer.log_every_n_steps", 10)
    workers = ("--model", json.dumps(a3c), "--trainer.strategy", "hogwild", "--trainer.devices", 2)
    finished = cli(tmp_path, *FIT, tiny, *workers, *faulty, *long)
    assert finished.returncode == 0, finished.stderr
    counts = [row["env/restarts"] for row in read_metrics(tmp_path / RUN) if "env/restarts" in row]
    assert counts[-1] == 1
    assert load(tmp_path / RUN / "checkpoints/last.ckpt")["pg_lightning"]["env_restarts"] == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_a_spent_budget_is_one_line_and_leaves_the_last_checkpoint(
    cli: Any, tiny: Path, tmp_path: Path, overlap: bool
) -> None:
    """Every environment breaks in its 13th episode of 10 steps: in the 8th rollout, and evaluated was after the 7th."""
    budget = ("--data.max_env_restarts", 0, "--data.overlap", overlap)
    finished = cli(tmp_path, *FIT, tiny, *breaking("is killed", 12), *budget)
    assert finished.returncode == 2
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: data.max_env_restarts: environments have failed more than 0 times, the last: env 0 ")
    assert last.endswith("was killed by SIGKILL")
    assert "Traceback" not in finished.stderr
    checkpoint = load(tmp_path / RUN / "checkpoints/last.ckpt")
    assert checkpoint["pg_lightning"]["env_steps"] == 448


@pytest.mark.parametrize(("name", "value"), [("env_timeout", 0.0), ("max_env_restarts", -1)])
def test_bad_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^data.{name}: must be at least"):
        RolloutDataModule("CartPole-v1", **{name: value})  # type: ignore[arg-type]
