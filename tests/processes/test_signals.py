"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: whatever is being done, the run ends with a checkpoint of a rollout boundary."""

import copy
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interruptions import sends
from run_files import assert_same_weights, load, read_metrics
from warm import WarmProcess

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.envs.autoreset import Disabled
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.processes import signals

ROLLOUT = 64
NUMBERS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]


@pytest.fixture(autouse=True)
def _nothing_left():
    """No process, no handler."""
    before = [signal.getsignal(signum) for signum, _ in NUMBERS]
    # Where this runs in the background of a shell, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert [signal.getsignal(signum) for signum, _ in NUMBERS[1:]] == before[1:]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before[0])
    assert multiprocessing.active_children() == []
    assert not signals.are_held()


@pytest.fixture
def boundaries(monkeypatch):
    """What a checkpoint of each rollout boundary has to hold, by env steps."""
    states = {}
    learn = PPO.training_step

    def training_step(self, *args):
        learn(self, *args)
        (optimizer,) = self.learner.rates.optimizers
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        states[self.env_steps] = copy.deepcopy((self.state_dict(), self.policy_version, moments))

    monkeypatch.setattr(PPO, "training_step", training_step)
    return states


def interrupted(finished, folder, status):
    """The last checkpoint of a run that a signal ended, loaded."""
    assert finished.returncode == status, finished.stderr
    assert f"stopped by {signal.Signals(status - 128 if status > 128 else signal.SIGUSR1).name}\n" in finished.stderr
    assert "Traceback" not in finished.stderr
    return load(folder / "runs/tiny/version_0/checkpoints/last.ckpt")


def assert_boundary(checkpoint, boundaries, env_steps):
    counters = checkpoint["pg_lightning"]
    weights, policy_version, moments = boundaries[env_steps]
    assert (counters["env_steps"], counters["policy_version"]) == (env_steps, policy_version)
    assert all(torch.equal(checkpoint["state_dict"][name], weights[name]) for name in weights)
    saved = checkpoint["optimizer_states"][0]["state"]
    assert all(torch.equal(saved[i]["exp_avg"], moment) for i, moment in enumerate(moments))


def interrupts(signum, at):
    return "--data.env_id", "odd_envs:Interrupts-v0", "--data.env_kwargs", f"{{signum: {int(signum)}, at: {at}}}"


@pytest.mark.parametrize(("signum", "status"), NUMBERS)
def test_a_rollout_is_given_up_and_the_boundary_before_it_saved(cli, tiny, tmp_path, boundaries, signum, status):
    """Each of 4 environments takes 16 steps a rollout: the 40th is in the third."""
    start = time.monotonic()
    finished = cli(tmp_path, "fit", "--config", tiny, *interrupts(signum, 40))
    assert time.monotonic() - start < 40  # the environment would have slept for 60
    assert_boundary(interrupted(finished, tmp_path, status), boundaries, 2 * ROLLOUT)
    assert max(boundaries) == 2 * ROLLOUT
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = "runs/tiny/version_0"
    command = f"fit --ckpt_path {run}/checkpoints/last.ckpt --config {run}/config.yaml"  # the module is not installed
    assert f"saved: 128 env steps\nnext:  python -m pg_lightning {command}\n" in finished.stdout
    assert last == tmp_path / run / "checkpoints/last.ckpt"
    resumed = cli(tmp_path, *command.split(), *NEVER)
    assert resumed.returncode == 0, resumed.stderr


NEVER = ("--data.env_kwargs", "{signum: 15, at: -1}")


def test_before_the_first_update_there_is_nothing_to_save(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, *interrupts(signal.SIGTERM, 5))
    assert (finished.returncode, finished.stderr.count("stopped by SIGTERM")) == (143, 1)
    assert list(tmp_path.rglob("*.ckpt")) == []
    assert "saved" not in finished.stdout


@pytest.mark.parametrize("option", ["--data.overlap", "--data.backend"])
def test_processes_that_play_are_gone(cli, tiny, tmp_path, monkeypatch, boundaries, option):
    act = PolicyActor.act
    if option == "--data.backend":
        monkeypatch.setattr(PolicyActor, "act", sends(signal.SIGTERM, act, at=40))
    else:
        monkeypatch.setattr(PPO, "update", sends(signal.SIGTERM, PPO.update, at=2))
    value = "true" if option == "--data.overlap" else "async"
    finished = cli(tmp_path, "fit", "--config", tiny, option, value)
    boundary = 2 if option == "--data.overlap" else 3  # the third rollout comes to its end
    assert_boundary(interrupted(finished, tmp_path, 143), boundaries, boundary * ROLLOUT)


@pytest.mark.parametrize(
    ("owner", "name", "at"), [(PolicyActor, "act", 40), (PPO, "update", 3), (Disabled, "begin", 1)]
)
def test_a_run_goes_on_as_if_no_signal_had_come(cli, tiny, tmp_path, monkeypatch, run, owner, name, at):
    """In a rollout, in an update, in an evaluation."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sends(signal.SIGTERM, getattr(owner, name), at=at))
        assert cli(tmp_path, "fit", "--config", tiny).returncode == 143
    resumed = cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    ends = [folder / "checkpoints/last.ckpt" for folder in (run, tmp_path / "runs/tiny/version_0")]
    assert_same_weights(*ends)
    assert load(ends[1])["pg_lightning"]["env_steps"] == load(ends[0])["pg_lightning"]["env_steps"]


def test_after_a_rollout_that_was_given_up_episodes_start_afresh(cli, tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(signals, "BOUNDARY_PATIENCE_S", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(PolicyActor, "act", sends(signal.SIGTERM, PolicyActor.act, at=40, sleep=60))
        assert cli(tmp_path, "fit", "--config", tiny).returncode == 143
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    assert load(last)["pg_lightning"]["env_steps"] == 2 * ROLLOUT
    assert cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last").returncode == 0
    assert caplog.text.count("during a rollout; new episodes start") == 1
    assert load(last)["pg_lightning"]["env_steps"] == 11 * ROLLOUT


@pytest.mark.parametrize("owner", [RolloutCollector, CollectorProcess])
def test_a_rollout_that_ends_too_late_to_be_learned_from_is_given_up_too(
    cli, tiny, tmp_path, monkeypatch, caplog, owner
):
    """The environments have gone on without the policy: what is resumed must not go on from there."""
    overlap = ("--data.overlap", owner is CollectorProcess)
    monkeypatch.setattr(signals, "BOUNDARY_PATIENCE_S", 1.0)
    update = PPO.update
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", lambda *args: time.sleep(1.1) or update(*args))
        patch.setattr(owner, "collect", sends(signal.SIGTERM, owner.collect, at=3))
        assert cli(tmp_path, "fit", "--config", tiny, *overlap).returncode == 143
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    assert load(last)["pg_lightning"]["env_steps"] == 2 * ROLLOUT
    assert cli(tmp_path, "fit", "--config", tiny, *overlap, "--ckpt_path", "last").returncode == 0
    assert caplog.text.count("during a rollout; new episodes start") == 1


def test_a_save_does_not_wait_for_a_rollout_that_takes_long(cli, tiny, tmp_path, monkeypatch):
    """The other process is stuck in the fifth, while the policy learns from the fourth."""
    start = time.monotonic()
    monkeypatch.setattr(PPO, "update", sends(signal.SIGTERM, PPO.update, at=4))
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.overlap", "true", *interrupts(0, 70))
    assert time.monotonic() - start < 40  # the environment would have slept for 60
    checkpoint = interrupted(finished, tmp_path, 143)
    assert checkpoint["pg_lightning"]["env_steps"] == 4 * ROLLOUT
    assert checkpoint["RolloutDataModule"]["ranks"] == [None]


@pytest.mark.parametrize(("signum", "status"), NUMBERS)
def test_an_update_comes_to_its_end(cli, tiny, tmp_path, monkeypatch, boundaries, signum, status):
    monkeypatch.setattr(PPO, "update", sends(signum, PPO.update, at=3))
    finished = cli(tmp_path, "fit", "--config", tiny)
    assert_boundary(interrupted(finished, tmp_path, status), boundaries, 3 * ROLLOUT)
    rows = read_metrics(tmp_path / "runs/tiny/version_0")
    assert [row["step"] for row in rows] == [128]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_update_that_takes_too_long_is_given_up(cli, tiny, tmp_path, monkeypatch, boundaries, signum, status):
    monkeypatch.setattr(signals, "BOUNDARY_PATIENCE_S", 0.2)
    monkeypatch.setattr(PPO, "update", sends(signum, PPO.update, at=6, sleep=60))
    finished = cli(tmp_path, "fit", "--config", tiny)
    assert_boundary(interrupted(finished, tmp_path, status), boundaries, 256)
    assert "saved: 256 env steps" in finished.stdout


def test_an_evaluation_is_given_up(cli, tiny, tmp_path, monkeypatch, boundaries):
    """The second; each resets its one environment once."""
    monkeypatch.setattr(Disabled, "reset", sends(signal.SIGTERM, Disabled.reset, at=2, sleep=60))
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.eval_episodes", 1)
    assert_boundary(interrupted(finished, tmp_path, 143), boundaries, 448)
    rows = [row for row in read_metrics(tmp_path / "runs/tiny/version_0") if "val/return_mean" in row]
    assert [row["step"] for row in rows] == [256]


@pytest.mark.parametrize(
    ("owner", "name"), [(RolloutDataModule, "setup"), (RolloutCollector, "__init__"), (PPO, "configure_optimizers")]
)
def test_before_training_begins_there_is_nothing_to_save(cli, tiny, tmp_path, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, sends(signal.SIGTERM, getattr(owner, name), at=1, sleep=60))
    finished = cli(tmp_path, "fit", "--config", tiny)
    assert (finished.returncode, finished.stderr.count("stopped by SIGTERM")) == (143, 1)
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_end_too(cli, run, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Disabled, "begin", sends(signal.SIGINT, Disabled.begin, at=1, sleep=60))
    best = shutil.copytree(run, tmp_path / "run") / "checkpoints/best.ckpt"
    finished = cli(tmp_path, command, "--ckpt_path", best, "--data.num_envs", 1)
    assert (finished.returncode, finished.stderr.count("stopped by SIGINT")) == (130, 1)


def test_a_picture_is_drawn_of_what_there_is(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(PPO, "update", sends(signal.SIGTERM, PPO.update, at=6))
    interrupted(cli(tmp_path, "fit", "--config", tiny), tmp_path, 143)
    assert (tmp_path / "runs/tiny/version_0/learning_curve.png").is_file()


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(cli, tiny, tmp_path, monkeypatch):
    """What a shell does for programs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(PPO, "update", sends(signal.SIGINT, PPO.update, at=2))
    assert cli(tmp_path, "fit", "--config", tiny).returncode == 0
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_process_that_dies_of_the_same_signal_first_is_no_failure(cli, tiny, tmp_path, monkeypatch, boundaries):
    """One of an environment's, when a signal goes to the whole group."""

    def dies(*_):
        signals.threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        raise EOFError

    collect, calls = RolloutCollector.collect, iter(range(100))
    monkeypatch.setattr(RolloutCollector, "collect", lambda *args: (dies if next(calls) == 2 else collect)(*args))
    finished = cli(tmp_path, "fit", "--config", tiny)
    assert_boundary(interrupted(finished, tmp_path, 143), boundaries, 2 * ROLLOUT)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of one task; `scontrol` writes down what it is called with."""
    script = tmp_path / "bin/scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    task = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in (task | {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train"}).items():
        monkeypatch.setenv(name, value)
    return script


def test_sigusr1_has_slurm_put_the_job_back_into_its_queue(cli, tiny, tmp_path, monkeypatch, slurm, boundaries):
    monkeypatch.setattr(PPO, "update", sends(signal.SIGUSR1, PPO.update, at=2))
    finished = cli(tmp_path, "fit", "--config", tiny)
    assert_boundary(interrupted(finished, tmp_path, 75), boundaries, 2 * ROLLOUT)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert "requeued job 17\n" in finished.stderr


def test_a_task_of_an_array_is_put_back_alone(cli, tiny, tmp_path, monkeypatch, slurm):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    cli(tmp_path, "fit", "--config", tiny, *interrupts(signal.SIGUSR1, 20))
    assert (tmp_path / "asked").read_text() == "requeue 16_3\n"


def test_a_job_that_slurm_does_not_take_back_is_reported(cli, tiny, tmp_path, slurm):
    slurm.write_text("#!/bin/sh\necho not permitted >&2\nexit 1\n")
    finished = cli(tmp_path, "fit", "--config", tiny, *interrupts(signal.SIGUSR1, 20))
    assert finished.returncode == 75
    assert "warning: scontrol requeue 17 failed: not permitted\n" in finished.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_slurm_is_asked_for_nothing_after_other_signals(cli, tiny, tmp_path, slurm, signum):
    cli(tmp_path, "fit", "--config", tiny, *interrupts(signum, 20))
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("launch", ["Popen", "fork"])
def test_processes_of_a_run_are_waited_for_whoever_started_them(launch):
    """As `ddp` starts them, and as `ddp_fork` does."""
    if launch == "Popen":
        process = subprocess.Popen(["sleep", "0.2"])
    else:
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.2,))
        process.start()
    signals.launches(SimpleNamespace(procs=[process], kill=lambda _: None))
    signals.join()
    signals.launches(None)
    assert (process.returncode if launch == "Popen" else process.exitcode) == 0


# What a signal does in each phase of a run.

ALONE = SimpleNamespace(world_size=1)


@pytest.fixture
def listening(monkeypatch):
    """Signals are handled as in a run."""
    monkeypatch.setattr(signals, "BOUNDARY_PATIENCE_S", 0.2)
    assert signals.listen()
    yield
    signals.forget()


def sigterm(seconds=0.0):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    return "done"


def take_effect(function, *args, **kwargs):
    """What a function returns, or whether the `Stopped` that it raised is consistent."""
    try:
        return function(*args, **kwargs)
    except signals.Stopped as stop:
        return "consistent" if stop.consistent else "inconsistent"


@pytest.mark.parametrize(
    ("hold", "play", "seconds", "effect"),
    [
        (None, None, 0, "inconsistent"),
        (None, {"patience": 0.2}, 0, "inconsistent"),
        ({"patience": 0.2}, None, 0, "done"),
        ({"patience": 0.2}, None, 60, "inconsistent"),
        ({"patience": None}, None, 0.6, "done"),
        ({"patience": 0.2}, {"patience": 0.2}, 0, "done"),
        ({"patience": 0.2}, {"patience": 0.2}, 60, None),
        ({"patience": None}, {"patience": 0.2}, 60, None),
        ({"patience": 60.0}, {"patience": 0.0}, 60, None),
    ],
    ids=[
        "open",
        "open, playing",
        "held",
        "held for long",
        "held for ever",
        "plays on",
        "long",
        "with ranks",
        "gives up",
    ],
)
@pytest.mark.usefixtures("listening")
def test_what_a_signal_does_depends_on_the_phase(hold, play, seconds, effect):
    if hold:
        signals.hold(**hold)
    assert signals.are_held() == bool(hold)
    begin = time.monotonic()
    if play is None:
        assert take_effect(sigterm, seconds) == effect
    else:
        assert take_effect(signals.unless_stopped, sigterm, seconds, **play) == effect
    assert time.monotonic() - begin < 5
    if effect == "inconsistent":
        assert sigterm() == "done"  # the run is ending already
    else:
        assert signals.are_held()
        assert take_effect(signals.unless_stopped, lambda: "played") is None
        assert take_effect(signals.raise_if_stopped, ALONE) == "consistent"
    signals.release()
    assert sigterm() == "done"
    assert not signals.are_held()


@pytest.mark.parametrize("patience", [0.0, 0.2])
@pytest.mark.usefixtures("listening")
def test_a_signal_after_a_rollout_waits_for_its_update(patience):
    signals.hold()
    assert signals.unless_stopped(lambda: "played", patience=patience) == "played"
    assert take_effect(sigterm) == "done"
    signals.release()


@pytest.mark.usefixtures("listening")
def test_a_signal_after_training_raises_at_once_again():
    signals.hold()
    assert signals.unless_stopped(lambda: "played") == "played"
    signals.release()
    assert take_effect(sigterm) == "inconsistent"


@pytest.mark.parametrize(("seconds", "effect"), [(0.0, True), (60.0, "consistent")])
@pytest.mark.usefixtures("listening")
def test_a_rollout_is_learned_from_if_there_is_time(seconds, effect):
    signals.hold()
    assert signals.agree(ALONE, False, 60.0) is False
    sigterm()
    assert take_effect(signals.agree, ALONE, False, seconds) == effect
    signals.release()


# In processes of their own.


def start(folder, tiny, *arguments):
    return WarmProcess(["-m", "pg_lightning", "fit", "--config", tiny, *arguments], folder)


def in_session(leader):
    """Processes that are alive, by /proc, those that others started last."""
    found = []
    for stat_ in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat_.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if session == str(leader) and state != "Z":
            found.append(int(stat_.parent.name))
    return sorted(found)


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


ENDLESS = ("--data.total_steps", 10**9, "--model.lr_schedule", "constant", "--data.eval_every_steps", 1000)
A3C = ("--model", "A3C", "--config", "a3c_cartpole", "--trainer.devices", 2)
DDP = ("--trainer.strategy", "ddp", "--trainer.devices", 2)
ASYNC = ("--data.backend", "async", "--data.env_id", "odd_envs:Slow-v0", "--data.env_kwargs", "{seconds: 0.001}")


@pytest.mark.parametrize(
    ("arguments", "send", "signum", "status"),
    [
        (ASYNC, "group", signal.SIGTERM, 143),
        (A3C, "main", signal.SIGINT, 130),
        (DDP, "other", signal.SIGTERM, 143),
    ],
    ids=["async, all", "A3C, main", "DDP, rank 1"],
)
def test_a_run_of_several_processes_ends_as_one(tiny, tmp_path, arguments, send, signum, status):
    process = start(tmp_path, tiny, *arguments, *ENDLESS)
    log = tmp_path / "log.txt"
    try:
        wait_until(lambda: list(tmp_path.rglob("last.ckpt")) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        if send == "group":
            os.killpg(process.pid, signum)
        else:
            os.kill(process.pid if send == "main" else in_session(process.pid)[1], signum)
        assert process.wait(60) == status, log.read_text()
        wait_until(lambda: not in_session(process.pid), 30)
    finally:
        if in_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.count("stopped by ") == said.count("saved: ") == 1
    (last,) = tmp_path.rglob("last.ckpt")
    counters = load(last)["pg_lightning"]
    assert f"saved: {counters['env_steps']:,} env steps" in said
    rows = read_metrics(last.parents[1])
    assert rows[-1]["step"] <= counters["env_steps"]


def test_a_second_ctrl_c_leaves_at_once(tiny, tmp_path):
    """The environments' processes are stuck, and closing them would wait for ever."""
    stuck = f"{{seconds: 1000, started: {tmp_path}/started}}"
    process = start(tmp_path, tiny, *ASYNC[:-1], stuck)
    log = tmp_path / "log.txt"
    try:
        wait_until(lambda: (tmp_path / "started").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 130, log.read_text()
        wait_until(lambda: not in_session(process.pid), 10)
    finally:
        if in_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Traceback" not in log.read_text()
