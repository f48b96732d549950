"""The command line as the shell sees it: exit status, stderr, signals, more than one process."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points

import warm
from run_files import load, read_metrics

from pg_lightning.__main__ import main

COMMAND = [sys.executable, "-m", "pg_lightning"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_the_console_script_is_the_same_program():
    (script,) = entry_points(group="console_scripts", name="pg-lightning")
    assert script.load() is main


def test_a_mistake_is_one_line_on_stderr_and_status_2(tiny, tmp_path):
    arguments = ["fit", "--config", str(tiny), "--model.gama", "0.9"]
    finished = subprocess.run(COMMAND + arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "error: model.gama: unknown key; did you mean model.gamma?\n"
    assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_metrics_can_be_followed_and_an_interrupted_run_keeps_them_and_its_checkpoints(tiny, tmp_path):
    run = tmp_path / "runs/tiny/version_0"
    metrics = run / "metrics.csv"
    log = tmp_path / "log.txt"
    arguments = ["-m", "pg_lightning", "fit", "--config", tiny, "--data.total_steps", 100_000_000]
    process = warm.WarmProcess(arguments, tmp_path)
    try:
        for _ in range(1000):
            if process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") > 6):
                break
            time.sleep(0.1)
        assert metrics.is_file(), log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()
    evaluated = [row["step"] for row in read_metrics(run) if "val/return_mean" in row]
    assert evaluated[:2] == [256, 448]
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] >= evaluated[-1]
    assert load(run / "checkpoints/best.ckpt")["pg_lightning"]["env_steps"] in evaluated


def test_two_processes_share_the_budget_and_one_run_folder(tiny, tmp_path):
    """128 env steps a rollout: 64 each. What is decided, normalised and logged is alike on both, or they would hang."""
    model = ["--model.target_kl", "0.005", "--model.normalize_values", "true"]
    ranks = ["--trainer.devices", 2, "--trainer.log_every_n_steps", 4]
    finished = warm.run(["-m", "pg_lightning", "fit", "--config", tiny, *ranks, *model], tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and run not in path.parents] == []
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "learning_curve.png",
        "metrics.csv",
    ]
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 768
    rows = read_metrics(run)
    learned = [row for row in rows if "train/policy_loss" in row]
    assert [row["step"] for row in learned] == [512, 768]
    assert all({"train/approx_kl", "train/explained_variance", "rollout/return_mean"} <= row.keys() for row in learned)
    assert [row["step"] for row in rows if "val/return_mean" in row] == [256, 512, 640, 768]
    assert finished.stdout.count("run:   ") == 1


def test_processes_with_rollouts_of_other_sizes_end_together(tmp_path):
    """With whole episodes each rank has rows of its own number: none may go into a collective alone, or both wait."""
    script = """
from lightning.pytorch import Trainer, seed_everything
from pg_lightning.algorithms import REINFORCEBaseline
from pg_lightning.data import RolloutDataModule

for total_steps in (260, 400):
    seed_everything(1)
    shape = {"num_envs": 2, "num_steps": 1, "whole_episodes": True}
    data = RolloutDataModule("CartPole-v1", **shape, total_steps=total_steps, eval_episodes=2)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    module = REINFORCEBaseline(**spaces, total_steps=total_steps)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=-1, log_every_n_steps=1000, **quiet)
    trainer.fit(module, data)
    print("ended at", total_steps)
"""
    (tmp_path / "script.py").write_text(script)
    finished = warm.run(["script.py"], tmp_path)
    assert finished.stdout.count("ended at") == 2, finished.stderr
