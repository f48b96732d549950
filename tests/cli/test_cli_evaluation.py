"""`validate`, `test` and `predict`: whole episodes, and what is written down of them."""

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from run_files import read_metrics

from pg_lightning.callbacks import EvaluationReport

KEYS = [
    "env_id",
    "episodes",
    "deterministic",
    "seed",
    "env_steps",
    "return_mean",
    "return_std",
    "return_ci95",
    "length_mean",
    "returns",
    "lengths",
]


@pytest.fixture
def evaluate(run, cli, tmp_path):
    """Evaluates a copy of the shared run in a folder of this test; returns the report."""

    def call(command, *arguments):
        copy = tmp_path / "run"
        shutil.copytree(run, copy, dirs_exist_ok=True)
        finished = cli(tmp_path, command, "--ckpt_path", "run/checkpoints/last.ckpt", *arguments)
        assert finished.returncode == 0, finished.stderr
        assert f"written to run/{command}" in finished.stdout
        return json.loads((copy / f"{command}.json").read_text()) if command != "predict" else copy / "predict"

    return call


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_report_holds_the_documented_keys_and_exactly_the_episodes_asked_for(evaluate, command):
    report = evaluate(command, "--data.eval_episodes", 7)
    assert list(report) == KEYS
    assert all(key in str(EvaluationReport.__doc__) for key in KEYS)
    assert report["episodes"] == len(report["returns"]) == len(report["lengths"]) == 7
    assert report["returns"] == report["lengths"]  # CartPole pays 1 a step
    assert report["return_mean"] == pytest.approx(np.mean(report["returns"]))
    assert report["return_std"] == pytest.approx(np.std(report["returns"]))
    assert report["return_ci95"][0] < report["return_mean"] < report["return_ci95"][1]
    known = {"env_id": "CartPole-v1", "deterministic": True, "seed": 1, "env_steps": 704}
    assert {key: report[key] for key in known} == known


def test_validate_repeats_the_evaluation_of_the_training(evaluate, run):
    assert evaluate("validate")["return_mean"] == pytest.approx(read_metrics(run)[-1]["val/return_mean"])


def test_the_same_command_gives_the_same_report_and_test_plays_other_episodes_than_validate(evaluate):
    validated = evaluate("validate", "--data.eval_episodes", 5)
    assert evaluate("validate", "--data.eval_episodes", 5) == validated
    assert evaluate("test", "--data.eval_episodes", 5)["returns"] != validated["returns"]


def test_sampled_actions_give_other_returns_than_the_mode(evaluate):
    sampled = evaluate("test", "--data.eval_deterministic", "false", "--data.eval_episodes", 5)
    assert sampled["deterministic"] is False
    assert sorted(sampled["returns"]) != sorted(evaluate("test", "--data.eval_episodes", 5)["returns"])


def test_the_number_of_environments_does_not_favour_short_episodes(train, cli, tmp_path):
    run = train(tmp_path, "--data.env_id", "odd_envs:Lottery-v0", "--data.total_steps", 64)
    reports = []
    for num_envs in (1, 5, 32):
        arguments = ("--config", run / "config.yaml", "--data.eval_episodes", 16, "--data.num_envs", num_envs)
        assert cli(tmp_path, "test", "--ckpt_path", run / "checkpoints/last.ckpt", *arguments).returncode == 0
        reports.append(sorted(json.loads((run / "test.json").read_text())["lengths"]))
    assert set(reports[0]) == {1, 40}
    assert reports[0] == reports[1] == reports[2]


def test_a_single_episode_has_an_interval_of_one_point(evaluate):
    report = evaluate("test", "--data.eval_episodes", 1)
    assert report["return_ci95"] == [report["returns"][0]] * 2


def test_an_evaluation_started_beside_the_checkpoint_writes_into_the_run(run, cli, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    finished = cli(copy / "checkpoints", "test", "--ckpt_path", "best.ckpt", "--data.eval_episodes", 1)
    assert finished.returncode == 0
    assert (copy / "test.json").is_file()


def test_an_evaluation_makes_no_run_of_its_own(evaluate, tmp_path):
    evaluate("validate", "--data.eval_episodes", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_predict_writes_trajectories_that_belong_together(evaluate):
    files = sorted(evaluate("predict", "--data.eval_episodes", 6).glob("*"))
    assert [path.name for path in files] == [f"episode_{i:04d}.npz" for i in range(6)]
    for path in files:
        episode = dict(np.load(path, allow_pickle=False))
        assert set(episode) == {"obs", "actions", "rewards", "terminated", "truncated"}
        length = len(episode["rewards"])
        assert episode["rewards"].sum() == length  # CartPole pays 1 a step
        assert episode["obs"].shape == (length + 1, 4)
        assert episode["actions"].shape == episode["terminated"].shape == episode["truncated"].shape == (length,)
        ended = episode["terminated"] | episode["truncated"]
        assert ended[-1]
        assert not ended[:-1].any()
        assert bool(episode["truncated"][-1]) == (length == 500)
        assert_follows_the_dynamics(episode)


def assert_follows_the_dynamics(episode):
    env = gym.make("CartPole-v1").unwrapped
    env.reset()
    for t in range(min(20, len(episode["rewards"]))):
        env.state = tuple(episode["obs"][t].astype(np.float64))
        env.steps_beyond_terminated = None
        obs, _, terminated, _, _ = env.step(int(episode["actions"][t]))
        np.testing.assert_allclose(obs, episode["obs"][t + 1], atol=1e-4)
        assert terminated == episode["terminated"][t]


def test_the_trajectories_are_those_of_the_policy_and_the_seed(evaluate):
    def lengths(*arguments):
        folder = evaluate("predict", "--data.eval_episodes", 4, *arguments)
        return sorted(len(np.load(path)["rewards"]) for path in folder.glob("*.npz"))

    first = lengths()
    assert lengths() == first
    assert lengths("--data.eval_deterministic", "false") != first
    assert lengths("--seed_everything", 2) != first


def test_an_episode_without_end_is_stopped_and_says_so(evaluate):
    with pytest.warns(UserWarning, match="eval_max_episode_steps = 5"):
        folder = evaluate("predict", "--data.eval_max_episode_steps", 5)
    episode = np.load(folder / "episode_0000.npz")
    assert len(episode["rewards"]) == 5
    assert not (episode["terminated"] | episode["truncated"]).any()
