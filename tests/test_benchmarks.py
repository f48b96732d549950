"""The script for machines with a GPU runs to its end on one without; that for Elo on a short run; our part of TRL's."""

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
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


def test_text_beside_trl_without_trl(tmp_path):
    script = ROOT / "benchmarks/text_peers.py"
    shown = warm.run([script, "--help"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "--sizes" in shown.stdout
    if importlib.util.find_spec("trl") is None:
        done = warm.run([script], tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: trl is not installed; pip install ")


def test_losses_that_differ_from_those_of_trl_are_told(monkeypatch):
    """Ours stand in for TRL's: once with the same options, once with others."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import text_losses

    frozen = text_losses.freeze()
    lengths = [len(completion) for completion in frozen.completions]
    cut = [completion[-1] != frozen.tokenizer.eos_token_id for completion in frozen.completions]
    assert len(set(lengths)) > 3
    assert any(cut)
    assert not all(cut)
    found = {case.name: text_losses.ours(case, frozen) for case in text_losses.CASES}
    of_tokens, of_constant = (found[f"{kind}, scale_rewards group"] for kind in ("bnpo", "dr_grpo"))
    factor = sum(lengths) / (len(lengths) * text_losses.T)
    assert of_constant[0].item() == pytest.approx(factor * of_tokens[0].item(), rel=1e-5)
    assert torch.allclose(of_constant[1], factor * of_tokens[1], rtol=1e-4, atol=1e-6)
    gradients = [gradient for _, gradient in found.values()]
    closest = min((a - b).abs().max().item() for a, b in combinations(gradients, 2))
    assert closest > 1e-3, "two cases are the same"

    monkeypatch.setattr(text_losses, "theirs", lambda case, *_: found[case.name])
    assert all(row["agrees"] for row in text_losses.compare())
    others = dict(zip(found, [*found.values()][1:], strict=False))
    monkeypatch.setattr(text_losses, "theirs", lambda case, *_: others.get(case.name, found["RLOO"]))
    rows = text_losses.compare()
    assert not any(row["agrees"] for row in rows)
    assert text_losses.table(rows).count("DIFFERS") == len(rows)


def test_tokens_per_second_leave_the_warm_up_out(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from text_peers import Clock

    clock = Clock(tokens=[100, 30, 50], generation=[9.0, 1.0, 3.0], ends=[10.0, 14.0, 18.0])
    expected = {"tokens": 80, "seconds": 8.0, "generated": 20.0, "learned": 20.0, "both": 10.0}
    assert clock.report(warm_up=1) == expected
