"""`fit --ckpt_path`: a run goes on where it was left, in a folder of its own."""

import shutil

import numpy as np
import pytest
import torch
from run_files import assert_same_weights, load, read_metrics

from pg_lightning.data import RolloutCollector

ROLLOUT, FIRST, SECOND = 64, 704, 1408  # env steps of a rollout, of the shared run, and after resuming it
RESUME = ("--data.total_steps", 1400)


@pytest.fixture(scope="module")
def resumed(run, train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("resumed"), "--ckpt_path", run / "checkpoints/last.ckpt", *RESUME)


def test_counters_go_on(resumed):
    counters = load(resumed / "checkpoints/last.ckpt")["pg_lightning"]
    assert counters["env_steps"] == SECOND
    assert counters["policy_version"] == SECOND // ROLLOUT


def test_optimizers_go_on(resumed):
    for optimizer in load(resumed / "checkpoints/last.ckpt")["optimizer_states"]:
        steps = {int(state["step"]) for state in optimizer["state"].values()}
        assert steps == {SECOND // ROLLOUT * 2 * 2}  # 2 epochs of 2 minibatches


def test_every_env_step_is_in_the_running_statistics_once(run, resumed):
    for folder, env_steps in ((run, FIRST), (resumed, SECOND)):
        weights = load(folder / "checkpoints/last.ckpt")["state_dict"]
        counts = {name: int(tensor) for name, tensor in weights.items() if name.endswith(".count")}
        assert set(counts.values()) == {env_steps}
        assert len(counts) == 2


def test_metrics_and_evaluations_go_on_along_the_axis(resumed):
    rows = read_metrics(resumed)
    assert min(row["step"] for row in rows) > FIRST
    assert [row["step"] for row in rows if "val/return_mean" in row] == [832, 1024, 1216, SECOND]


def test_the_linear_schedule_is_a_function_of_env_steps_and_the_new_budget(resumed):
    rows = [row for row in read_metrics(resumed) if "train/learning_rate" in row]
    assert rows
    for row in rows:
        assert row["train/learning_rate"] == pytest.approx(1e-3 * (1 - (row["step"] - ROLLOUT) / 1400))


def test_the_weights_are_those_of_the_checkpoint(run, train, tmp_path):
    """With a learning rate of 0 they stay what they were."""
    still = train(tmp_path, "--ckpt_path", run / "checkpoints/last.ckpt", "--model.lr", 0, *RESUME)
    before, after = (load(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (run, still))
    parameters = [name for name in before if name.endswith(("weight", "bias"))]
    assert len(parameters) == 8
    assert all(torch.equal(before[name], after[name]) for name in parameters)


def test_the_run_that_was_left_is_not_touched(run, train, tmp_path):
    left = shutil.copytree(run, tmp_path / "left")
    train(tmp_path, "--ckpt_path", left / "checkpoints/last.ckpt", *RESUME)
    for path in left.rglob("*.*"):
        assert path.read_bytes() == (run / path.relative_to(left)).read_bytes()


def test_the_episodes_of_the_first_part_are_not_played_again(run, train, tmp_path, monkeypatch):
    first_observations, action_seeds = [], []

    class Watched(RolloutCollector):
        def __init__(self, env, num_steps, seeds, action_seed, *rest):
            super().__init__(env, num_steps, seeds, action_seed, *rest)
            first_observations.append(self.rows.now)
            action_seeds.append(action_seed)

    monkeypatch.setattr("pg_lightning.data.environments.RolloutCollector", Watched)
    train(tmp_path, "--data.total_steps", ROLLOUT)
    train(tmp_path, "--ckpt_path", run / "checkpoints/last.ckpt", *RESUME)
    fresh, resumed = first_observations
    assert not any(np.array_equal(one, other) for one in fresh for other in resumed)
    assert action_seeds[0] != action_seeds[1]


def test_a_checkpoint_alone_brings_its_config_along(run, resumed, cli, tmp_path):
    finished = cli(tmp_path, "fit", "--ckpt_path", run / "checkpoints/last.ckpt", *RESUME)
    assert finished.returncode == 0
    assert_same_weights(resumed / "checkpoints/last.ckpt", tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")


def test_the_best_checkpoint_can_be_resumed_too(run, train, tmp_path):
    best = run / "checkpoints/best.ckpt"
    resumed = train(tmp_path, "--ckpt_path", best, *RESUME)
    assert read_metrics(resumed)[0]["step"] > load(best)["pg_lightning"]["env_steps"]
    assert load(resumed / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == SECOND


def test_a_plateau_is_remembered(train, tmp_path):
    """The first evaluation is the best for ever, so the 6th is the 5th in a row that is no better: the rate halves."""
    flat = ["--data.env_id", "odd_envs:Flat-v0", "--data.eval_episodes", 1, "--data.eval_every_steps", ROLLOUT]
    flat += ["--model.lr_schedule", "plateau", "--trainer.log_every_n_steps", 1]
    first = train(tmp_path, *flat, "--data.total_steps", 5 * ROLLOUT)
    last = first / "checkpoints/last.ckpt"
    second = train(tmp_path, *flat, "--data.total_steps", 10 * ROLLOUT, "--ckpt_path", last)
    rows = [row for row in read_metrics(second) if "train/learning_rate" in row]
    rates = {row["step"] / ROLLOUT: row["train/learning_rate"] for row in rows}
    assert rates == {6: 1e-3, 7: 5e-4, 8: 5e-4, 9: 5e-4, 10: 5e-4}


@pytest.mark.parametrize("budget", [FIRST, 100])
def test_a_spent_budget_is_one_clear_line(run, cli, tmp_path, budget):
    checkpoint = run / "checkpoints/last.ckpt"
    finished = cli(tmp_path, "fit", "--ckpt_path", checkpoint, "--data.total_steps", budget)
    assert finished.returncode == 2
    assert finished.stderr == (
        f"error: data.total_steps: the checkpoint has trained for {FIRST} env steps already; "
        f"set --data.total_steps above that (it is {budget})\n"
    )


def test_a_resumed_run_may_ask_for_another_learning_rate(train, tmp_path):
    constant = ("--model.lr_schedule", "constant", "--data.eval_episodes", 1)
    first = train(tmp_path, *constant, "--data.total_steps", ROLLOUT)
    more = ("--ckpt_path", first / "checkpoints/last.ckpt", "--model.lr", 5e-5, "--data.total_steps", 2 * ROLLOUT)
    rates = {
        row["train/learning_rate"]
        for row in read_metrics(train(tmp_path, *constant, *more))
        if "train/learning_rate" in row
    }
    assert rates == {5e-5}


def test_the_moments_of_another_optimizer_are_refused(run, cli, tmp_path):
    finished = cli(
        tmp_path, "fit", "--ckpt_path", run / "checkpoints/last.ckpt", "--model.optimizer", "rmsprop", *RESUME
    )
    assert finished.returncode == 2
    assert "model.optimizer: the checkpoint was trained with adam" in finished.stderr
