"""`fit --ckpt_path last`: a run that was interrupted ends as if it had not been, byte for byte."""

import json
import os
import shutil
import warnings

import pytest
import torch
import warm
from compilations import without_inductor
from interruptions import Interrupted, differences, interrupt_at
from run_files import load, read_metrics

TOY = "pg_lightning.envs.tasks.toy:pg_lightning/"
STACK = {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 3}}
COUNTING = {"class_path": "odd_envs.CountsResets"}
LAST = ("--ckpt_path", "last")
SHORT = ("--data.total_steps", 320, "--data.eval_every_steps", 128, "--data.eval_episodes", 1)


def algorithm(name):
    config = {"class_path": f"pg_lightning.algorithms.{name}", "init_args": {"hidden_sizes": [8], "lr": 1e-3}}
    return "--model", json.dumps(config)


# Beside the config itself: PPO in CartPole with two normalisers, and linear schedules.
KINDS = {
    "A2C, next step": (*algorithm("A2C"), "--data.autoreset_mode", "next_step", "--data.num_steps", 5),
    "REINFORCE, whole episodes": (*algorithm("REINFORCE"), "--data.whole_episodes", "true"),
    "REINFORCEBaseline, plateau": (
        *(*algorithm("REINFORCEBaseline"), "--data.whole_episodes", "true"),
        *("--model.lr_schedule", "plateau", "--model.normalize_values", "true"),
    ),
    "actor-critic, disabled": (
        *algorithm("OneStepActorCritic"),
        "--data.autoreset_mode",
        "disabled",
        "--data.num_steps",
        5,
    ),
    "async, next step": ("--data.backend", "async", "--data.num_envs", 2, "--data.autoreset_mode", "next_step"),
    "vector": ("--data.backend", "vector", "--data.num_steps", 13, "--model.num_minibatches", 1),
    "device": ("--data.backend", "device", "--data.env_kwargs", "{max_episode_steps: 60}"),
    "device, compiled": ("--data.backend", "device", "--model.compile", "true", "--data.num_steps", 16),
    "gymnax": ("--data.backend", "gymnax", "--data.env_kwargs", "{max_steps_in_episode: 60}"),
    "LSTM": ("--model.memory", "lstm", "--model.kl_penalty", 1, "--model.target_kl", 0.01),
    "GRU, next step, cue": (
        *("--data.env_id", f"{TOY}Recall-v0", "--model.memory", "gru", "--model.shared_torso", "true"),
        *("--data.autoreset_mode", "next_step", "--data.num_steps", 7, "--model.num_minibatches", 2),
    ),
    "action masks": ("--data.env_id", f"{TOY}MaskedReward-v0"),
    "wrappers, time limit, bfloat16": (
        *("--data.wrappers", json.dumps([STACK]), "--data.env_kwargs", "{max_episode_steps: 30}"),
        *("--trainer.precision", "bf16-mixed"),
    ),
    "self-play": (
        *("--data.env_id", "TicTacToe-v1", "--data.num_envs", 5, "--data.num_steps", 10, "--model.memory", "gru"),
        *("--data.self_play", json.dumps({"both_seats": 0.6, "snapshot_every_steps": 60, "sampling": "hard"})),
    ),
    "self-play, whole games": (
        *("--data.env_id", "KuhnPoker-v0", "--data.whole_episodes", "true", "--data.num_envs", 5),
        *("--data.self_play", json.dumps({"both_seats": 1.0}), "--data.overlap", "true"),
    ),
    "Box2D, epochs": ("--data.env_id", "LunarLander-v3", "--trainer.limit_train_batches", 3),
    "MuJoCo": ("--data.env_id", "Hopper-v5", "--model.normalize_values", "true"),
}
NEEDS = {"gymnax": "gymnax", "Box2D, epochs": "Box2D", "MuJoCo": "mujoco"}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_differs(kind, train, tmp_path, monkeypatch):
    """Evaluations, and so checkpoints, come every 128 env steps: there is one from before the interruption."""
    if "compiled" in kind:
        without_inductor(monkeypatch)
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    kinds = (*SHORT, *KINDS[kind])
    whole = train(tmp_path / "whole", *kinds)
    updates = load(whole / "checkpoints/last.ckpt")["pg_lightning"]["policy_version"]
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(stopped, *kinds, *interrupt_at(max(2, updates - 1)))
    assert load(stopped / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["policy_version"] < updates
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be restored")
        resumed = train(stopped, *kinds, *LAST)
    assert resumed == stopped / "runs/tiny/version_0"
    assert differences(whole, resumed) == []


# Of the 11 updates of the config, evaluations come after the 4th, 7th and 10th, and after the last.
@pytest.mark.parametrize(
    ("updates", "overlap"), [([2, 3], "false"), ([5], "true"), ([7], "false"), ([11], "true")], ids=str
)
def test_a_checkpoint_may_be_of_any_update_and_before_its_evaluation(updates, overlap, run, train, tmp_path):
    options = ("--data.overlap", overlap)
    whole = run if overlap == "false" else train(tmp_path / "whole", *options)
    stopped = tmp_path / "stopped"
    for update, more in zip(updates, [(), LAST], strict=False):
        with pytest.raises(Interrupted):
            train(stopped, *options, *more, *interrupt_at(update, save=True))
    assert differences(whole, train(stopped, *options, *LAST)) == []


def test_from_a_path_it_goes_on_as_exactly_in_a_folder_of_its_own(run, train, tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, *interrupt_at(5, save=True))
    left = tmp_path / "runs/tiny/version_0"
    kept = shutil.copytree(left, tmp_path / "kept")
    resumed = train(tmp_path, "--ckpt_path", left / "checkpoints/last.ckpt")
    assert resumed == tmp_path / "runs/tiny/version_1"
    ours, theirs = (load(folder / "checkpoints/last.ckpt") for folder in (run, resumed))
    for part in ("state_dict", "optimizer_states", "pg_lightning", "RolloutDataModule"):
        assert str(ours[part]) == str(theirs[part])
    assert all(torch.equal(x, theirs["state_dict"][name]) for name, x in ours["state_dict"].items())
    steps = load(left / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"]
    wall_clock = "time/steps_per_second"
    rows, expected = (
        [{**row, wall_clock: 0} for row in read_metrics(folder) if row["step"] > steps] for folder in (resumed, run)
    )
    assert rows == expected
    for path in kept.rglob("*.*"):
        assert path.read_bytes() == (left / path.relative_to(kept)).read_bytes()


def test_the_best_stays_the_best_though_its_folder_is_named_from_elsewhere(run, train, tmp_path):
    """And though it has moved. Evaluations of one step are worse."""
    moved = shutil.copytree(run, tmp_path / "moved/tiny/version_0")
    worse = ("--data.total_steps", 800, "--data.eval_max_episode_steps", 1)
    assert train(tmp_path, *worse, "--trainer.default_root_dir", tmp_path / "moved", *LAST) == moved
    assert (moved / "checkpoints/best.ckpt").read_bytes() == (run / "checkpoints/best.ckpt").read_bytes()
    assert load(moved / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] > 700


def test_two_processes(tmp_path, tiny):
    """Each has its own episodes and generators in the one checkpoint that there is."""
    plain = ("--model.normalize_obs", "false", "--model.scale_rewards", "false", *SHORT)
    ranks = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.num_envs", 2, "--data.eval_episodes", 2)

    def fit(folder, *arguments):
        folder.mkdir(exist_ok=True)
        command = ["-m", "pg_lightning", "fit", "--config", tiny, *plain, *ranks, *arguments]
        return warm.run(command, folder)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert fit(whole).returncode == 0
    assert "Interrupted" in fit(stopped, *interrupt_at(3)).stderr
    finished = fit(stopped, *LAST)
    assert finished.returncode == 0, finished.stderr
    version_0 = "runs/tiny/version_0"
    assert differences(whole / version_0, stopped / version_0) == []
    ranks = load(stopped / version_0 / "checkpoints/last.ckpt")["RolloutDataModule"]["ranks"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["obs"], ranks[1]["obs"])


# Where it cannot be exact: one line, and training goes on.


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (("--data.num_envs", 8), "data.num_envs was 4 and is 8; new episodes start"),
        (
            ("--data.env_kwargs", "{max_episode_steps: 9}"),
            "data.env_kwargs was None and is {'max_episode_steps': 9}; new episodes start",
        ),
        (("--seed_everything", 2), "seed_everything was 1 and is 2; new episodes start"),
    ],
)
def test_a_setting_that_forbids_it_is_named(changed, line, run, train, tmp_path, caplog):
    resumed = train(tmp_path, "--ckpt_path", run / "checkpoints/last.ckpt", "--data.total_steps", 1400, *changed)
    assert [x.getMessage() for x in caplog.records if "new episodes" in x.getMessage()] == [f"ckpt_path: {line}"]
    assert load(resumed / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] >= 1400


def test_another_number_of_processes_is_named(run, train, tmp_path, caplog):
    checkpoint = load(run / "checkpoints/last.ckpt")
    for part in (checkpoint["RolloutDataModule"], checkpoint["pg_lightning"], checkpoint["callbacks"]["RandomStates"]):
        part["ranks"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    train(tmp_path, "--ckpt_path", "two.ckpt", "--data.total_steps", 800)
    lines = [x.getMessage() for x in caplog.records if "new episodes" in x.getMessage()]
    assert lines == ["ckpt_path: the checkpoint was saved by 2 processes, this run has 1; new episodes start"]


@pytest.mark.parametrize(
    "odd",
    [("--data.wrappers", json.dumps([COUNTING])), ("--data.env_id", "odd_envs:Fading-v0")],
    ids=["observations", "rewards"],
)
def test_an_environment_that_does_not_repeat_itself_is_named_once(odd, train, tmp_path):
    """One whose observations depend on episodes that are over, and one whose rewards do, in the midst of episodes."""
    options = (*odd, "--data.num_steps", 15, "--model.num_minibatches", 1)
    with pytest.raises(Interrupted):
        train(tmp_path, *options, *interrupt_at(5, save=True))
    with warnings.catch_warnings(record=True) as caught:
        train(tmp_path, *options, *LAST)
    lines = [str(x.message) for x in caught if "cannot be restored" in str(x.message)]
    assert len(lines) == 1
    name = "Fading-v0" if "Fading" in odd[1] else "CartPole-v1"
    assert f"{name} with data.backend sync cannot be restored to its state in the checkpoint" in lines[0]
    assert "the same actions lead to another state" in lines[0]


# The word `last`.


def test_the_newest_of_several_runs_is_taken(run, cli, tmp_path, tiny):
    for k, seconds in ((1, 200), (2, 300), (10, 100)):
        copy = shutil.copytree(run, tmp_path / f"runs/tiny/version_{k}")
        os.utime(copy / "checkpoints/last.ckpt", (seconds, seconds))
    finished = cli(tmp_path, "fit", "--config", tiny, *LAST, "--data.total_steps", 800)
    assert "run:   runs/tiny/version_2\n" in finished.stdout
    finished = cli(tmp_path, "test", "--config", tiny, *LAST)
    assert "written to runs/tiny/version_2/test.json" in finished.stdout


def test_without_a_checkpoint_training_starts_afresh_and_says_so(train, tmp_path, caplog):
    fresh = train(tmp_path, *SHORT, *LAST)
    assert "ckpt_path: no last.ckpt in runs/tiny yet, so training starts from the beginning" in caplog.text
    assert fresh == tmp_path / "runs/tiny/version_0"


def test_a_run_that_is_done_is_left_alone(run, cli, tmp_path, tiny, caplog):
    """The job that was killed while it closed its environments, and is put into the queue again, has not failed."""
    done = shutil.copytree(run, tmp_path / "runs/tiny/version_0")
    before = {path: path.read_bytes() for path in done.rglob("*.*")}
    finished = cli(tmp_path, "fit", "--config", tiny, *LAST)
    assert finished.returncode == 0
    assert "runs/tiny/version_0 has used its data.total_steps of 700; there is nothing left to do" in caplog.text
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.*")} == before


def test_last_is_of_a_config(cli, tmp_path):
    finished = cli(tmp_path, "fit", *LAST)
    assert finished.returncode == 2
    assert finished.stderr == "error: ckpt_path: last is the newest checkpoint of a config; give --config too\n"
