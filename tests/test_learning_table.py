"""The table of results: the best checkpoint, the last one, and sampled actions."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/learning.py"


@pytest.fixture(scope="module")
def learning():
    spec = importlib.util.spec_from_file_location("learning", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["learning"]


def result(learning, seed, best, **others):
    return learning.Result("ppo_cartpole", seed, "CartPole-v1", 100, 50, 3.0, best, [best, best], **others)


def test_a_row_has_the_last_checkpoint_and_sampled_actions_beside_the_best(learning):
    lasts, sampled = (100.0, 480.0, 490.0, 500.0), (70.0, 400.0, 420.0, 440.0)
    rows = zip(range(4), lasts, sampled, strict=True)
    results = [result(learning, seed, 500.0, last_mean=last, sampled_mean=drawn) for seed, last, drawn in rows]
    header, _, row = learning.table(results).splitlines()
    assert header.split(" | ")[4:6] == ["last checkpoint (worst seed)", "sampled actions (worst seed)"]
    cells = row.strip("| ").split(" | ")
    assert cells[2:6] == ["500.0", "500.0, 500.0, 500.0, 500.0", "485.0 (100.0)", "410.0 (70.0)"]


def test_what_was_not_measured_is_a_dash(learning):
    cells = learning.table([result(learning, 1, 500.0)]).splitlines()[2].strip("| ").split(" | ")
    assert cells[4:6] == ["–", "–"]


def test_a_run_is_tested_with_both_checkpoints_and_with_samples(learning, tmp_path, monkeypatch):
    tested = []

    def call(command, environment):
        options = dict(zip(command[4::2], command[5::2], strict=True))
        if command[3] == "fit":
            run = Path(options["--trainer.default_root_dir"]) / "ppo_cartpole/version_0"
            run.mkdir(parents=True)
            (run / "metrics.csv").write_text("step,val/return_mean\n100,1\n")
            return
        checkpoint = Path(options["--ckpt_path"])
        tested.append((checkpoint.name, options.get("--data.eval_deterministic")))
        value = {("best.ckpt", None): 3.0, ("last.ckpt", None): 2.0, ("best.ckpt", "false"): 1.0}[tested[-1]]
        report = {"env_id": "CartPole-v1", "env_steps": 50, "return_mean": value, "return_ci95": [value, value]}
        (checkpoint.parents[1] / "test.json").write_text(json.dumps(report))

    monkeypatch.setattr(learning, "_call", call)
    found = learning.run("ppo_cartpole", 1, tmp_path, 10, 1)
    assert (found.return_mean, found.last_mean, found.sampled_mean) == (3.0, 2.0, 1.0)
    assert len(tested) == 3
