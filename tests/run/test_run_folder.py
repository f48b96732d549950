"""What `fit` leaves behind: `<root>/<config name>/version_K/` and everything in it."""

import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
import yaml
from matplotlib.image import imread
from run_files import assert_same_weights, complaint, load, read_metrics, without_speed

from pg_lightning.analysis.plots import COLORS
from pg_lightning.data import RolloutDataModule, environments
from pg_lightning.run import metrics_file

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ROLLOUT, TOTAL_STEPS, EVAL_EVERY = 64, 700, 200  # of the tiny config


def test_a_run_is_a_folder_with_config_metrics_checkpoints_and_a_picture(run):
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert files == [
        "checkpoints/best.ckpt",
        "checkpoints/best.previous.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/last.previous.ckpt",
        "config.yaml",
        "learning_curve.png",
        "metrics.csv",
    ]
    assert run.parts[-3:] == ("runs", "tiny", "version_0")


def test_versions_count_up_and_another_root_starts_anew(train, tmp_path):
    short = ("--data.total_steps", 64, "--data.eval_episodes", 1)
    first, second = train(tmp_path, *short), train(tmp_path, *short)
    elsewhere = train(tmp_path, *short, "--trainer.default_root_dir", "elsewhere")
    assert [str(run.relative_to(tmp_path)) for run in (first, second, elsewhere)] == [
        "runs/tiny/version_0",
        "runs/tiny/version_1",
        "elsewhere/tiny/version_0",
    ]
    assert (elsewhere / "config.yaml").is_file()


SHORT = ("--data.total_steps", 64, "--data.eval_episodes", 1)


def test_of_runs_that_start_at_the_same_moment_each_has_a_folder(train, tmp_path, monkeypatch):
    """Each looks before another has made its folder."""
    monkeypatch.setattr(metrics_file, "next_free_version", lambda root: 0)
    folders = [train(tmp_path, *SHORT, *more).name for more in ((), ("--trainer.logger", "tensorboard"), ())]
    assert folders == ["version_0", "version_1", "version_2"]
    for name in folders:
        assert len(read_metrics(tmp_path / "runs/tiny" / name)) == 2
    assert [path.parent.name for path in tmp_path.rglob("events.out*")] == ["version_1"]


def test_two_processes_know_one_folder(tiny, tmp_path):
    """The second starts when the first has made it."""
    tell = ("--trainer.callbacks", "[interruptions.TellFolder]", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    command = ["-m", "pg_lightning", "fit", "--config", tiny, *tell, "--data.total_steps", 64]
    finished = warm.run(command, tmp_path)
    assert finished.returncode == 0, finished.stderr
    told = sorted(line for line in finished.stdout.splitlines() if line.startswith("rank "))
    assert told == ["rank 0: runs/tiny/version_0", "rank 1: runs/tiny/version_0"]
    assert os.listdir(tmp_path / "runs/tiny") == ["version_0"]


@pytest.mark.parametrize("arguments", ["--model.gamma 2", "--trainer.gradient_clip_val 1"])
@pytest.mark.parametrize("logger", ["true", "tensorboard"])
def test_a_mistake_leaves_no_folder_of_a_run(cli, tiny, tmp_path, arguments, logger):
    finished = cli(tmp_path, "fit", "--config", tiny, "--trainer.logger", logger, *arguments.split())
    assert finished.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_before_anything_starts(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "spaces_of", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    for root, folder in (("file", "file/tiny"), ("file/below", "file/below/tiny"), ("/proc/none", "/proc/none/tiny")):
        said = complaint(cli(tmp_path, "fit", "--config", tiny, "--trainer.default_root_dir", root))
        assert re.fullmatch(
            f"trainer.default_root_dir: cannot write '{folder}': "
            "(Not a directory|No such file or directory); give a writable folder",
            said,
        )


def test_a_folder_that_takes_no_file_is_named_before_environments_start(run, cli, tiny, tmp_path, monkeypatch):
    """As where a job is put back into the queue on a full disk: `config.yaml` stays."""
    stopped = shutil.copytree(run, tmp_path / "runs/tiny/version_0")
    before = (stopped / "config.yaml").read_bytes()
    monkeypatch.setattr(RolloutDataModule, "train_dataloader", lambda _: pytest.fail("too late"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        finished = cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last", "--data.total_steps", 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert finished.stderr.splitlines()[-1] == (
        "error: trainer.default_root_dir: cannot write 'runs/tiny/version_0/config.yaml': File too large; "
        "give a writable folder"
    )
    assert (stopped / "config.yaml").read_bytes() == before
    assert sorted(os.listdir(stopped)) == ["checkpoints", "config.yaml", "learning_curve.png", "metrics.csv"]


def test_a_folder_that_cannot_be_locked_is_named(run, cli, tiny, tmp_path):
    (shutil.copytree(run, tmp_path / "runs/tiny/version_0") / ".lock").unlink(missing_ok=True)
    (tmp_path / "runs/tiny/version_0/.lock").mkdir()
    said = complaint(cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last", "--data.total_steps", 1000))
    assert said == (
        "trainer.default_root_dir: cannot write 'runs/tiny/version_0': Is a directory; give a writable folder"
    )


def test_config_yaml_holds_every_key(run, cli, tiny, tmp_path):
    printed = yaml.safe_load(cli(tmp_path, "fit", "--config", tiny, "--print_config").stdout)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert set(saved) == {"seed_everything", "trainer", "model", "data"}
    assert saved == {key: printed[key] for key in saved}


def test_config_yaml_repeats_the_run_byte_for_byte(run, cli, tmp_path):
    finished = cli(tmp_path, "fit", "--config", run / "config.yaml")
    again = tmp_path / "runs/tiny/version_0"
    assert finished.returncode == 0
    assert_same_weights(run / "checkpoints/last.ckpt", again / "checkpoints/last.ckpt")
    assert without_speed(run) == without_speed(again)


def test_a_run_without_a_seed_writes_down_the_one_it_drew(train, cli, tmp_path):
    short = ("--seed_everything", "true", "--data.total_steps", 128)
    run = train(tmp_path, *short)
    seed = yaml.safe_load((run / "config.yaml").read_text())["seed_everything"]
    assert seed is not True
    assert type(seed) is int
    cli(tmp_path, "fit", "--config", run / "config.yaml")
    assert_same_weights(run / "checkpoints/last.ckpt", tmp_path / "runs/tiny/version_1/checkpoints/last.ckpt")


def test_another_seed_is_another_run(run, train, tmp_path):
    other = train(tmp_path, "--seed_everything", 2)
    weights = [load(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (run, other)]
    assert not any(torch.equal(weights[0][k], weights[1][k]) for k in weights[0] if k.endswith("linear.weight"))
    assert without_speed(run) != without_speed(other)


def test_the_step_column_counts_env_steps_and_only_grows(run):
    rows = read_metrics(run)
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert steps == [row["time/env_steps"] for row in rows]
    updates = [row["step"] / ROLLOUT for row in rows if "train/policy_loss" in row]
    assert updates == [2, 4, 6, 8, 10, 11]  # log_every_n_steps: 2, and the end


def test_the_documented_metrics_are_those_logged(run):
    documented = set(
        re.findall(
            r"`((?:rollout|train|val|time)/\w+)`",
            "".join(line for line in DOCS.read_text().splitlines() if line.startswith("### ")),
        )
    )
    # Of other algorithms and options.
    documented -= {"train/staleness", "train/kl_penalty", "train/policy_lag", "train/bootstrap_is_approximate"}
    documented -= {"train/ent_coef", "train/kl_to_reference", "train/ratio_mean", "train/ratio_deviation"}
    documented -= {
        "rollout/truncated",
        "train/rho",
        "train/line_search_steps",
        "val/win_rate",
        "val/draw_rate",
        "val/loss_rate",
    }
    logged = {key for row in read_metrics(run) for key in row} - {"step"}
    assert logged == documented
    assert len(logged) >= 16


def test_every_metric_is_a_finite_number(run):
    assert all(np.isfinite(value) for row in read_metrics(run) for value in row.values())


def test_training_stops_at_the_first_rollout_boundary_past_the_budget(run):
    end = -(-TOTAL_STEPS // ROLLOUT) * ROLLOUT
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == end
    assert read_metrics(run)[-1]["step"] == end


def test_a_budget_of_whole_rollouts_is_not_overrun(train, tmp_path):
    run = train(tmp_path, "--data.total_steps", 2 * ROLLOUT)
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 2 * ROLLOUT


def test_evaluations_come_at_the_first_boundary_past_every_multiple_and_at_the_end(run):
    evaluated = [row["step"] for row in read_metrics(run) if "val/return_mean" in row]
    assert evaluated == [256, 448, 640, 704]


def test_multiples_that_one_rollout_jumps_over_are_evaluated_once(train, tmp_path):
    run = train(tmp_path, "--data.total_steps", 3 * ROLLOUT, "--data.eval_every_steps", 10)
    assert [row["step"] for row in read_metrics(run) if "val/return_mean" in row] == [64, 128, 192]


def test_training_is_the_same_however_often_it_is_evaluated(run, train, tmp_path):
    seldom = train(tmp_path, "--data.eval_every_steps", 10_000, "--data.eval_episodes", 1)
    assert_same_weights(run / "checkpoints/last.ckpt", seldom / "checkpoints/last.ckpt")


@pytest.mark.parametrize("batches", [3, 0.001])
def test_epochs_do_not_disturb_the_evaluations(run, train, tmp_path, batches):
    in_epochs = train(tmp_path, "--trainer.limit_train_batches", batches)
    assert without_speed(in_epochs) == without_speed(run)


def test_schedules_fall_with_env_steps(run):
    for row in read_metrics(run):
        if "train/learning_rate" in row:
            left = 1 - (row["step"] - ROLLOUT) / TOTAL_STEPS  # what was left when the rollout was collected
            assert row["train/learning_rate"] == pytest.approx(1e-3 * left)
            assert row["train/clip_range"] == pytest.approx(0.2 * left)


def test_checkpoints_load_without_trust_and_hold_the_optimizers_and_counters(run):
    checkpoint = load(run / "checkpoints/last.ckpt")
    updates = 704 // ROLLOUT
    assert checkpoint["pg_lightning"]["policy_version"] == updates
    assert len(checkpoint["optimizer_states"]) == 1
    for state in checkpoint["optimizer_states"]:
        assert {int(parameter["step"]) for parameter in state["state"].values()} == {updates * 2 * 2}


def test_the_best_checkpoint_is_the_one_of_the_best_evaluation(run):
    rows = [row for row in read_metrics(run) if "val/return_mean" in row]
    best = max(rows, key=lambda row: row["val/return_mean"])
    assert load(run / "checkpoints/best.ckpt")["pg_lightning"]["env_steps"] == best["step"]


def test_the_learning_curve_shows_both_curves(run):
    picture = imread(run / "learning_curve.png")
    assert min(picture.shape[:2]) > 300
    for colour in (COLORS[6], COLORS[0]):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(picture[..., :3] - rgb).max(-1) < 0.02).sum() > 100
