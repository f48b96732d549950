"""Games of PettingZoo train and are evaluated through the command line; needs the real package."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from run_files import read_metrics

pytest.importorskip("pettingzoo")

RESULTS = ("win", "draw", "loss")
CONFIG = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "log_every_n_steps": 2, "enable_progress_bar": False},
    "model": {"class_path": "pg_lightning.algorithms.PPO", "init_args": {"num_minibatches": 2, "hidden_sizes": [16]}},
    "data": {"num_envs": 4, "num_steps": 16, "total_steps": 400, "eval_every_steps": 200, "eval_episodes": 8},
}


@pytest.mark.parametrize("name", ["connect_four_v3", "tictactoe_v3"])
def test_a_game_trains_and_resumes(name, cli, tmp_path):
    snapshots = {"both_seats": 0.5, "snapshot_every_steps": 100}
    config = {**CONFIG, "data": {**CONFIG["data"], "env_id": f"pettingzoo.classic:{name}", "self_play": snapshots}}
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(config))
    finished = cli(tmp_path, "fit", "--config", "game.yaml")
    assert finished.returncode == 0, finished.stderr
    last = read_metrics(tmp_path / "runs/game/version_0")[-1]
    shares = [float(last[f"val/{result}_rate/random/{seat}"]) for seat in ("first", "second") for result in RESULTS]
    assert sum(shares[:3]) == sum(shares[3:]) == 1
    assert float(last["val/win_rate"]) == (shares[0] + shares[3]) / 2
    ckpt = "runs/game/version_0/checkpoints/last.ckpt"
    tested = cli(tmp_path, "test", "--ckpt_path", ckpt)
    assert tested.returncode == 0, tested.stderr
    resumed = cli(tmp_path, "fit", "--ckpt_path", ckpt, "--data.total_steps", 600)
    assert resumed.returncode == 0, resumed.stderr
    assert "cannot be restored" not in resumed.stderr


def test_nothing_is_printed_by_its_imports():
    code = "from pg_lightning.games import make_games; make_games('pettingzoo.classic:tictactoe_v3', 1, None, 'sync')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert finished.stdout == ""
