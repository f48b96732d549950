"""What Lightning users expect of `--trainer.…` holds here too."""

import pytest
import torch
from run_files import assert_same_weights, load, read_metrics

ROLLOUT = 64
SHORT = ("--data.total_steps", 2 * ROLLOUT, "--data.eval_episodes", 1)
FADING = ("--data.env_id", "odd_envs:Fading-v0", "--data.eval_every_steps", ROLLOUT)


def test_early_stopping_sees_the_evaluations(train, tmp_path):
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/return_mean")
    stopping = (*stopping, "--trainer.callbacks.mode", "max", "--trainer.callbacks.patience", 2)
    run = train(tmp_path, *FADING, *stopping)
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 3 * ROLLOUT


def test_the_last_checkpoint_is_the_newest_even_if_the_first_was_the_best(train, tmp_path):
    run = train(tmp_path, *FADING)
    env_steps = {name: load(run / f"checkpoints/{name}.ckpt")["pg_lightning"]["env_steps"] for name in ("best", "last")}
    assert env_steps == {"best": ROLLOUT, "last": 11 * ROLLOUT}


def test_a_checkpoint_of_the_users_own_may_monitor_the_same(train, tmp_path):
    own = ("--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/return_mean")
    own = (*own, "--trainer.callbacks.mode", "max", "--trainer.callbacks.save_top_k", 2)
    run = train(tmp_path, *FADING, *own, "--trainer.callbacks.filename", "{step}")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "last.previous.ckpt", "step=4.ckpt", "step=8.ckpt"]


def test_callbacks_and_loggers_come_from_a_yaml(cli, tiny, tmp_path):
    (tmp_path / "more.yaml").write_text(
        """
trainer:
  callbacks:
  - class_path: LearningRateMonitor
  - class_path: EarlyStopping
    init_args: {monitor: val/return_mean, mode: max, patience: 1}
  logger:
  - class_path: CSVLogger
    init_args: {save_dir: elsewhere, name: "", version: ""}
  - class_path: TensorBoardLogger
    init_args: {save_dir: .}
"""
    )
    arguments = ("--config", "more.yaml", *FADING, "--data.eval_episodes", 1)
    finished = cli(tmp_path, "fit", "--config", tiny, *arguments)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert [row["step"] for row in read_metrics(run) if "val/return_mean" in row] == [64, 128]
    assert (tmp_path / "elsewhere/metrics.csv").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    again = cli(tmp_path, "fit", "--config", run / "config.yaml")
    assert again.returncode == 0, again.stderr
    assert list((tmp_path / "runs/tiny/version_1").glob("events.out.tfevents.*"))


def test_a_fast_dev_run_tries_everything_once_and_leaves_nothing(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, "--trainer.fast_dev_run", "true")
    assert finished.returncode == 0
    assert finished.stdout.startswith("64/700 env steps")
    assert "val" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_barebones_leaves_nothing(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, "--trainer.barebones", "true")
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_checkpoints_the_metrics_are_still_there(train, tmp_path):
    run = train(tmp_path, *SHORT, "--trainer.enable_checkpointing", "false")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "learning_curve.png", "metrics.csv"]


def test_without_another_logger_the_metrics_are_still_there(train, tmp_path):
    assert read_metrics(train(tmp_path, *SHORT, "--trainer.logger", "false"))


def test_without_progress_the_output_is_only_where_the_run_lies(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, *SHORT, "--trainer.enable_progress_bar", "false")
    assert finished.stdout.lstrip().startswith("run:   runs/tiny/version_0\nbest:  evaluation return ")
    assert finished.stderr == ""


def test_a_progress_bar_of_the_users_own_replaces_ours(cli, tiny, tmp_path):
    finished = cli(tmp_path, "fit", "--config", tiny, *SHORT, "--trainer.callbacks", "TQDMProgressBar")
    assert finished.returncode == 0
    assert "env steps" not in finished.stdout


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
def test_precision_is_that_of_the_weights(train, tmp_path, precision, dtype):
    run = train(tmp_path, *SHORT, "--trainer.precision", precision)
    weights = load(run / "checkpoints/last.ckpt")["state_dict"]
    assert {tensor.dtype for name, tensor in weights.items() if name.endswith("weight")} == {dtype}


@pytest.mark.parametrize(
    "arguments",
    [("--trainer.profiler", "simple"), ("--trainer.detect_anomaly", "true"), ("--trainer.num_sanity_val_steps", 1)],
)
def test_what_only_watches_changes_nothing(run, train, tmp_path, arguments):
    watched = train(tmp_path, *arguments)
    assert_same_weights(run / "checkpoints/last.ckpt", watched / "checkpoints/last.ckpt")
    assert [row["step"] for row in read_metrics(watched)] == [row["step"] for row in read_metrics(run)]


@pytest.mark.parametrize(
    ("limit", "end"),
    [
        (("--trainer.max_steps", 3 * 4), 3),  # optimizer steps: 2 epochs, 2 minibatches
        (("--trainer.max_epochs", 2, "--trainer.limit_train_batches", 2), 4),
    ],
)
def test_the_trainers_own_limits_end_with_an_evaluation_and_a_checkpoint(train, tmp_path, limit, end):
    run = train(tmp_path, *limit, "--data.eval_every_steps", 10_000)
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == end * ROLLOUT
    assert [row["step"] for row in read_metrics(run) if "val/return_mean" in row] == [end * ROLLOUT]


def test_no_logging_between_start_and_end_if_so_wished(train, tmp_path):
    run = train(tmp_path, "--trainer.log_every_n_steps", 0)
    assert [row["step"] for row in read_metrics(run) if "train/policy_loss" in row] == [704]


@pytest.mark.parametrize("name", ["ppo_cartpole", "configs/ppo_cartpole.yaml"])
def test_a_shipped_config_is_found_by_name_from_anywhere(cli, tmp_path, name):
    short = (*SHORT, "--data.num_envs", 4, "--data.num_steps", 16)
    assert cli(tmp_path, "fit", "--config", name, *short).returncode == 0
    assert (tmp_path / "runs/ppo_cartpole/version_0/config.yaml").is_file()


def test_an_option_may_be_joined_to_its_value(cli, tiny, tmp_path):
    arguments = (f"--config={tiny}", "--trainer.logger=tensorboard", "--data.total_steps=64", "--data.eval_episodes=1")
    finished = cli(tmp_path, "fit", *arguments)
    assert finished.returncode == 0
    assert list((tmp_path / "runs/tiny/version_0").glob("events.out.tfevents.*"))
