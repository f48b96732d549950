"""A process plays the next rollout while the Trainer learns from the last: one update late, corrected, and no mess."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from doubles import WatchedActor
from gymnasium import spaces
from odd_envs import Bandit
from torch import Tensor, nn
from warm import WarmProcess

from pg_lightning.algorithms import A2C, PPO
from pg_lightning.data import RolloutDataModule
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.envs import BACKENDS
from pg_lightning.errors import EnvironmentFailed, UserError
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.processes import WorkerError
from pg_lightning.rollout import Rollout
from pg_lightning.strategies import HogwildStrategy

MASKED = "pg_lightning.envs.tasks.toy:pg_lightning/MaskedReward-v0"
OVERLAP = {"overlap": True}


class Picture(Bandit):
    """Bytes to look at, and enough of them that a rollout does not fit into a pipe."""

    length = 5
    observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)

    def observation(self) -> Any:
        return self.np_random.integers(0, 256, (1, 36, 36), np.uint8)


class Dies(Bandit):
    """Does something terrible in its 100th step."""

    def __init__(self, what: Any = None, closed: Any = None) -> None:
        self.what = what
        self.closed = closed
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == 100 and self.what is not None:
            self.what()
        return super().step(action)

    def close(self) -> None:
        if self.closed is not None:
            Path(self.closed).touch()


for _class in (Picture, Dies):
    gym.register(f"{_class.__name__}-v0", entry_point=_class)


class Checked(WatchedActor):
    """In the process: holds log-probabilities against those at acting time."""

    def log_probs(self, rollout: Rollout) -> Tensor:
        log_probs, acted = super().log_probs(rollout), torch.stack(self.acted)
        self.acted.clear()
        torch.testing.assert_close(log_probs, acted * rollout.valid, rtol=1e-5, atol=1e-5)
        return log_probs


class Recorder(PPO):
    """Keeps every rollout, the policy's version when it came, and the network of every version."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rollouts: list[Rollout] = []
        self.versions: list[tuple[int, int]] = []
        self.networks: dict[int, nn.Module] = {}
        self.actor = Checked(self.actor)
        with torch.no_grad():
            self.network.actor_head.linear.weight *= 100  # far from uniform, so that an error in the features shows

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.rollouts.append(rollout)
        self.versions.append((rollout.policy_version, self.policy_version))
        self.networks[self.policy_version] = copy.deepcopy(self.network)
        super().training_step(rollout, batch_idx)


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    """No process, no shared memory."""
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    yield
    assert multiprocessing.active_children() == []
    assert not os.path.isdir("/dev/shm") or set(os.listdir("/dev/shm")) <= shared


@pytest.mark.parametrize("trainer", [{}, {"max_epochs": 3, "limit_train_batches": 2}, {"limit_train_batches": 3}])
def test_every_rollout_but_the_first_is_one_update_old_and_the_log_says_so(fit: Any, trainer: dict[str, int]) -> None:
    data = {**OVERLAP, "total_steps": 640, "eval_every_steps": 128}
    module = fit("CartPole-v1", data, algorithm=Recorder, trainer={"log_every_n_steps": 1, **trainer})
    updates = 6 if "max_epochs" in trainer else 10
    assert module.versions == [(max(0, k - 1), k) for k in range(updates)]
    assert module.trainer.callback_metrics["train/policy_lag"] == 1


def test_without_overlap_there_is_no_lag_and_no_log_probs(fit: Any) -> None:
    module = fit("CartPole-v1", algorithm=Recorder, trainer={"log_every_n_steps": 1})
    assert module.versions == [(k, k) for k in range(4)]
    assert all(rollout.log_probs is None for rollout in module.rollouts)
    assert "train/policy_lag" not in module.trainer.callback_metrics


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_rollout_of_any_other_policy_is_refused(fit: Any, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    collect = CollectorProcess.collect

    def stale(self: Any, actor: Any) -> Rollout:
        rollout = collect(self, actor)
        rollout.policy_version += shift * (actor.policy_version == 2)
        return rollout

    monkeypatch.setattr(CollectorProcess, "collect", stale)
    with pytest.raises(RuntimeError, match="off-policy data"):
        fit("CartPole-v1", OVERLAP)


CASES = [
    ("CartPole-v1", {}, {}),
    ("CartPole-v1", {"autoreset_mode": "next_step"}, {"normalize_obs": True, "scale_rewards": True}),
    ("CartPole-v1", {"autoreset_mode": "disabled"}, {"memory": "lstm", "normalize_obs": True}),
    ("CartPole-v1", {"autoreset_mode": "next_step"}, {"memory": "gru", "shared_torso": True}),
    ("CartPole-v1", {"whole_episodes": True, "num_steps": 1}, {}),
    ("CartPole-v1", {"backend": "async", "autoreset_mode": "next_step"}, {}),
    ("Pendulum-v1", {}, {"head": "squashed_gaussian", "normalize_obs": True, "normalize_values": True}),
    (MASKED, {}, {}),
    (MASKED, {"autoreset_mode": "next_step"}, {"memory": "lstm"}),
    ("Picture-v0", {}, {"torso": "nature_cnn", "lr": 1e-4}),
    ("odd_envs:Privileged-v0", {"autoreset_mode": "next_step"}, {"normalize_obs": True}),
    ("odd_envs:Privileged-v0", {"env_kwargs": {"masked": True}}, {"memory": "lstm"}),
]


@pytest.mark.parametrize(("env_id", "data", "model"), CASES)
def test_log_probs_are_those_of_the_policy_that_acted(fit: Any, env_id: str, data: Any, model: Any) -> None:
    module = fit(env_id, {**OVERLAP, **data}, algorithm=Recorder, **{"lr": 1e-2, **model})
    assert len(module.rollouts) >= 3
    moved = []
    for rollout, (_, version) in zip(module.rollouts, module.versions, strict=True):
        now, then = (replayed(module, rollout, v) for v in (version, rollout.policy_version))
        torch.testing.assert_close(rollout.log_probs, then, rtol=1e-5, atol=1e-5)
        moved.append((now - then).abs().max() > 1e-3)
    assert not moved[0]
    assert all(moved[1:])
    if env_id == "Picture-v0":
        assert {rollout.obs.dtype for rollout in module.rollouts} == {torch.uint8}


def replayed(module: PPO, rollout: Rollout, version: int) -> Tensor:
    return PolicyActor(module.networks[version], module.progress).log_probs(rollout)


def test_the_ratio_starts_from_the_policy_that_acted(fit: Any) -> None:
    """With one gradient step per update it would start, and stay, at 1 if π_old were the learner's own."""
    metrics = [
        fit("CartPole-v1", data, lr=1e-2, num_epochs=1, num_minibatches=1, trainer={"log_every_n_steps": 1}).trainer
        for data in (OVERLAP, {})
    ]
    lagging, current = (float(trainer.callback_metrics["train/approx_kl"]) for trainer in metrics)
    assert lagging > 1e-5
    assert abs(current) < 1e-7


def test_half_precision_memories_travel_too(fit: Any) -> None:
    module = fit("CartPole-v1", OVERLAP, algorithm=Recorder, trainer={"precision": "bf16-true"}, memory="gru", lr=0.0)
    assert {rollout.state.dtype for rollout in module.rollouts} == {torch.bfloat16}


@pytest.mark.parametrize("autoreset_mode", ["same_step", "next_step", "disabled"])
def test_without_updates_the_rollouts_are_those_without_overlap(fit: Any, autoreset_mode: str) -> None:
    data = {"total_steps": 1024, "autoreset_mode": autoreset_mode}

    def run(overlap: bool) -> Any:
        torch.manual_seed(0)
        return fit("CartPole-v1", {**data, "overlap": overlap}, algorithm=Recorder, lr=0.0)

    one, other = run(False), run(True)
    assert one.env_steps == other.env_steps
    assert len(one.rollouts) == len(other.rollouts) >= 16
    for a, b in zip(one.rollouts, other.rollouts, strict=True):
        for field in fields(Rollout):
            if field.name not in ("policy_version", "log_probs"):
                torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights_to_the_byte(fit: Any) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        module = fit("CartPole-v1", {**OVERLAP, "total_steps": 640}, normalize_obs=True, lr=1e-2)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_rollouts_without_a_valid_row_are_passed_over_and_the_budget_is_kept(fit: Any) -> None:
    data = {**OVERLAP, "num_envs": 1, "num_steps": 1, "autoreset_mode": "next_step", "total_steps": 60}
    module = fit("Lottery-v0", data, algorithm=Recorder, num_minibatches=1)
    assert 0 in [rollout.env_steps for rollout in module.rollouts]
    assert module.env_steps == module.policy_version == 60
    assert len(module.rollouts) == sum(rollout.env_steps == 0 for rollout in module.rollouts) + 60


def test_the_rollout_under_way_at_the_end_does_not_count(fit: Any) -> None:
    assert fit("CartPole-v1", {**OVERLAP, "total_steps": 130}).env_steps == 192


@pytest.fixture
def _no_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pg_lightning.data.environments.make_vector_env", lambda *_: pytest.fail("an environment"))


@pytest.mark.usefixtures("_no_environments")
def test_an_algorithm_of_the_current_policy_only_refuses(fit: Any) -> None:
    with pytest.raises(UserError, match=r"^data\.overlap: A2C learns from .* current policy only; set it to false$"):
        fit("CartPole-v1", OVERLAP, algorithm=A2C)


@pytest.mark.usefixtures("_no_environments")
def test_hogwild_refuses(fit: Any, tmp_path: Path) -> None:
    trainer = {"strategy": HogwildStrategy.strategy_name, "devices": 1, "default_root_dir": tmp_path}
    with pytest.raises(UserError, match=r"^data\.overlap: .*hogwild.*; set it to false$"):
        fit("CartPole-v1", OVERLAP, trainer=trainer)


@pytest.mark.usefixtures("_no_environments")
def test_a_system_without_fork_refuses(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UserError, match=r"^data\.overlap: .*does not support; set it to false$"):
        fit("CartPole-v1", OVERLAP)


@pytest.mark.usefixtures("_no_environments")
@pytest.mark.parametrize("field", ["data.overlap", "trainer.strategy"])
def test_a_back_end_that_would_hang_in_a_forked_process_is_refused(
    field: str, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "sync", replace(BACKENDS["sync"], forks=False))
    trainer = {"strategy": HogwildStrategy.strategy_name, "devices": 1, "default_root_dir": tmp_path}
    options: dict[str, Any] = {"data": OVERLAP} if field == "data.overlap" else {"trainer": trainer}
    with pytest.raises(
        UserError, match=rf"^{field}: forks a process, in which data\.backend sync would wait forever; "
    ):
        fit("CartPole-v1", **options)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_mistake_of_the_users_is_raised_as_what_it_is(fit: Any, what: str) -> None:
    messages = []
    for overlap in (False, True):
        with pytest.raises(UserError) as caught:
            fit("BreaksDown-v0", {"overlap": overlap, "env_kwargs": {"what": what}, "total_steps": 10_000})
        messages.append(str(caught.value))
    assert "non-finite" in messages[0]
    assert messages[0] == messages[1]


def divide_by_zero() -> None:
    _ = 1 / 0


def leave_a_child_and_die() -> None:
    """The child holds the pipe open."""
    if os.fork() == 0:
        time.sleep(12)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            divide_by_zero,
            r"it raised ZeroDivisionError: division by zero \(\S+test_overlap.py:\d+\); PG_\w+=1 shows the",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL$"),
        (leave_a_child_and_die, "was killed by SIGKILL$"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV$"),
        (lambda: os._exit(3), "exited with code 3 before training ended$"),
        (lambda: sys.exit(4), r"it called sys.exit\(4\) \(\S+test_overlap.py:\d+\); PG_\w+=1 shows the"),
    ],
    ids=["exception", "SIGKILL", "SIGKILL with a child", "SIGSEGV", "_exit", "sys.exit"],
)
def test_the_death_of_the_process_ends_the_run_and_is_explained(fit: Any, what: Any, message: str) -> None:
    start = time.monotonic()
    subject = r"data.env_id: env \d failed in step 100:" if "it " in message else "data.overlap: the process that plays"
    with pytest.raises((EnvironmentFailed, WorkerError), match=f"^{subject} (the rollouts )?{message}"):
        fit("Dies-v0", {**OVERLAP, "env_kwargs": {"what": what}, "total_steps": 10**6})
    assert time.monotonic() - start < 8


def test_a_process_that_died_after_its_last_rollout_costs_no_checkpoint(fit: Any) -> None:
    states: list[Any] = []

    class Watched(RolloutDataModule):
        def teardown(self, stage: str) -> None:
            if isinstance(self.collector, CollectorProcess) and self.collector.worker is not None:
                assert self.collector.state_dict() is not None  # the rollout is here
                os.kill(self.collector.worker.pid, signal.SIGKILL)
                states.append(self.collector.state_dict())
            super().teardown(stage)

    fit("Dies-v0", OVERLAP, datamodule=Watched)
    assert states == [None]


@pytest.mark.parametrize("env_id", ["Dies-v0", "Picture-v0"])
def test_the_process_closes_its_environments_and_ends_at_once(fit: Any, tmp_path: Path, env_id: str) -> None:
    """Also if its last rollout is more than a pipe holds and nobody takes it."""
    ends: list[tuple[int | None, float]] = []

    class Watched(RolloutDataModule):
        def teardown(self, stage: str) -> None:
            assert isinstance(self.collector, CollectorProcess)
            worker, start = self.collector.worker, time.monotonic()
            time.sleep(0.3)
            super().teardown(stage)
            assert worker is not None
            ends.append((worker.exitcode, time.monotonic() - start - 0.3))

    closed = tmp_path / "closed"
    kwargs = {"closed": closed} if env_id == "Dies-v0" else None
    model = {"torso": "nature_cnn"} if env_id == "Picture-v0" else {}
    fit(env_id, {**OVERLAP, "num_steps": 64, "env_kwargs": kwargs}, datamodule=Watched, num_epochs=1, **model)
    ((exitcode, seconds),) = ends
    assert exitcode == 0
    assert seconds < 2
    assert closed.exists() == (env_id == "Dies-v0")


@pytest.mark.parametrize(("overlap", "backend"), [(True, "sync"), (True, "async"), (False, "async")])
def test_an_exception_ends_every_process_and_one_may_fit_again(quiet_trainer: Any, overlap: bool, backend: Any) -> None:
    """Processes of environments would be waited for at the interpreter's end, and not hear SIGTERM."""
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=16, total_steps=256, overlap=overlap, backend=backend)
    spaces_ = {"observation_space": data.observation_space, "action_space": data.action_space}

    class FailsOnce(PPO):
        def training_step(self, rollout: Rollout, batch_idx: int) -> None:
            if self.policy_version == 2 and not hasattr(self, "failed"):
                self.failed = True
                raise KeyError("learner")
            super().training_step(rollout, batch_idx)

    module = FailsOnce(**spaces_, total_steps=256)
    with pytest.raises(KeyError):
        quiet_trainer().fit(module, datamodule=data)
    assert multiprocessing.active_children() == []
    quiet_trainer().fit(module, datamodule=data)
    assert module.policy_version == 4


ENDLESS = """
from pathlib import Path
from test_overlap import *
from lightning.pytorch import Trainer

class Module(PPO):
    def training_step(self, rollout, batch_idx):
        super().training_step(rollout, batch_idx)
        if batch_idx == 2:
            Path("ready").touch()

def stuck():
    Path("ready").touch()
    time.sleep(STUCK)

env = ("Dies-v0", {"what": stuck}) if STUCK else ("CartPole-v1",)
data = RolloutDataModule(*env, total_steps=10**9, overlap=True, eval_every_steps=10**9, backend=BACKEND)
module = Module(observation_space=data.observation_space, action_space=data.action_space, total_steps=10**9)
Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False).fit(module, datamodule=data)
"""


@pytest.mark.parametrize(
    ("number", "send", "backend", "stuck", "status"),
    [
        (signal.SIGINT, os.killpg, "sync", 1000, 1),
        (signal.SIGTERM, os.killpg, "sync", 0.2, 0),
        (signal.SIGKILL, os.kill, "sync", 1000, -9),
        (signal.SIGKILL, os.kill, "async", 0, -9),
    ],
    ids=["SIGINT to the group, stuck", "SIGTERM to the group, slow", "SIGKILL, stuck", "SIGKILL, async"],
)
def test_a_signal_to_the_main_process_leaves_nothing(
    number: int, send: Any, backend: str, stuck: float, status: int, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(ENDLESS.replace("BACKEND", repr(backend)).replace("STUCK", str(stuck)))
    log = tmp_path / "log.txt"
    process = WarmProcess(["script.py"], tmp_path)
    try:
        wait_until(lambda: (tmp_path / "ready").exists() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        send(process.pid, number)
        assert process.wait(60) == status, log.read_text()
        wait_until(lambda: not in_session(process.pid), 30)
    finally:
        if in_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Traceback" not in log.read_text()


def in_session(leader: int) -> list[str]:
    """Processes that are alive, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if session == str(leader) and state != "Z":
            found.append(stat.parent.name)
    return found


def wait_until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


@pytest.mark.parametrize("overlap", [False, True])
def test_it_learns(fit: Any, overlap: bool) -> None:
    data = {"overlap": overlap, "num_envs": 8, "num_steps": 64, "total_steps": 15_000, "eval_every_steps": 15_000}
    torch.manual_seed(1)
    module = fit("CartPole-v1", data, lr=3e-3, lr_schedule="linear", num_epochs=8, gamma=0.98, gae_lambda=0.9)
    assert module.evaluation[0].mean() > 150


class Acts(Bandit):
    """Takes actions of some space; cuts episodes, so that there are final observations."""

    SPACES: ClassVar[dict[str, Any]] = {
        "discrete": spaces.Discrete(3, start=-1),
        "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 2]]),
        "multi_binary": spaces.MultiBinary([2, 3]),
        "box": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    }

    def __init__(self, kind: str) -> None:
        self.action_space = self.SPACES[kind]

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        obs, reward, ends, _, info = super().step(action)
        return obs, reward, False, ends, info


gym.register("Acts-v0", entry_point=Acts)
EARLIER = ("--data.num_envs", 2, "--data.num_steps", 8, "--data.eval_every_steps", 32, "--data.overlap", "true")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--data.env_id", "Acts-v0", "--data.env_kwargs", f"{{kind: {kind}}}") for kind in Acts.SPACES),
        ("--data.env_id", MASKED),
        ("--data.env_id", MASKED, "--data.env_kwargs", "{action: multi_discrete}"),
        ("--data.env_id", "Picture-v0"),
        ("--data.env_id", "CartPole-v1", "--model.memory", "gru"),
        ("--data.env_id", "CartPole-v1", "--trainer.precision", "64-true"),
        ("--data.env_id", "CartPole-v1", "--data.whole_episodes", "true", "--data.num_steps", 1),
        ("--data.env_id", "CartPole-v1", "--data.autoreset_mode", "next_step"),
        ("--data.env_id", "CartPole-v1", "--model.class_path", "VTrace"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[1:])),
)
def test_a_rollout_ahead_of_any_kind_is_that_of_its_checkpoint(
    arguments: Any, cli: Any, tiny: Path, tmp_path: Path, caplog: Any
) -> None:
    """It is checked when the run goes on: none that a run has saved may be refused."""
    for steps in (32, 64):
        budget = ("--data.total_steps", steps, "--ckpt_path", "last", "--trainer.enable_progress_bar", "false")
        finished = cli(tmp_path, "fit", "--config", tiny, *EARLIER, *arguments, *budget)
        assert finished.returncode == 0, finished.stderr
        assert "ew episodes start" not in caplog.text
