"""The script for machines with a GPU runs to its end on one without; that for Elo on a short run."""

import json
from pathlib import Path

import numpy as np
import warm

ROOT = Path(__file__).parents[1]


def test_the_gpu_check_runs_on_a_cpu_and_every_row_passes(tmp_path):
    script = [ROOT / "benchmarks/gpu.py", "--device", "cpu", "--small"]
    files = ["--json", tmp_path / "gpu.json", "--markdown", tmp_path / "gpu.md"]
    done = warm.run([*script, "--only", "equal", "sync", "precision", "speed", *files], tmp_path, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["check"] for row in rows} == {"equal", "sync", "precision", "speed"}
    assert all(row["passed"] for row in rows)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(rows) + 4


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = warm.run([ROOT / "benchmarks/gpu.py"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --device: there is no GPU here; give --device cpu\n")


def test_elo_of_a_run(tmp_path, cli):
    keep = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_top_k", -1]
    keep += ["--trainer.callbacks.filename", "{step}"]
    data = {"env_id": "TicTacToe-v1", "self_play": "{}", "num_envs": 4, "num_steps": 16, "total_steps": 300}
    data |= {"eval_every_steps": 100, "eval_episodes": 2}
    given = [part for name, value in data.items() for part in (f"--data.{name}", value)]
    trained = cli(tmp_path, "fit", "--config", "ppo_cartpole", *given, *keep)
    assert trained.returncode == 0, trained.stderr
    minimax = "pg_lightning.games.perfect.TicTacToeMinimax"
    run = tmp_path / "runs/ppo_cartpole/version_0"
    done = warm.run([ROOT / "benchmarks/elo.py", run, "--games", 20, "--opponents", "random", minimax], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((run / "elo.json").read_text())
    assert found["players"][:2] == ["random", "minimax"]
    assert found["elo"][0] == 0
    assert found["elo"][1] == max(found["elo"]) > 100
    steps = found["env_steps"][2:]
    assert len(steps) == 3
    assert found["players"][2:] == [f"{step} steps" for step in steps]
    assert np.sum(found["results"]) == 20 * 5 * 4 / 2
    assert (run / "elo.md").read_text().count("\n") == 7
    assert (run / "elo.png").exists()
    assert (run / "elo.svg").exists()
    alone = warm.run([ROOT / "benchmarks/elo.py", run.parent, "--games", 20], tmp_path)
    assert (alone.returncode, alone.stderr.count("\n")) == (1, 1)
    assert alone.stderr.startswith("error: no config.yaml in ")
