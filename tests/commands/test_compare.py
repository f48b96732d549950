"""Comparisons: one budget and one way to evaluate for all, and what they are held against."""

import csv
import json

import pytest
import yaml

from pg_lightning.commands import compare as compare_module
from pg_lightning.commands.compare import compare, table
from pg_lightning.commands.reference import reference
from pg_lightning.commands.results import Result
from pg_lightning.errors import UserError


def test_methods_of_different_budgets_or_environments_are_refused(tmp_path):
    paths = []
    for name, steps in (("a", 100), ("b", 200)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"data": {"env_id": "CartPole-v1", "total_steps": steps}}))
        paths.append(path)
    with pytest.raises(UserError, match=r"^overrides: data\.total_steps is 100 in a and 200 in b; give one for all"):
        compare("x", paths, output=tmp_path / "studies")
    assert not (tmp_path / "studies").exists()


def test_the_table_has_the_best_first_and_intervals_over_seeds():
    results = [Result("a", seed, 100, value, value, 3.0) for seed, value in enumerate((1.0, 2.0, 3.0))]
    results += [Result("b", seed, 90, 9.0, 8.0, 5.0) for seed in range(3)]
    results += [Result("random policy", seed, 100, 0.5, 0.5, 0.0) for seed in range(3)]
    lines = table(["random policy", "a", "b"], results).splitlines()
    assert lines[0].startswith("| method | return at 90 env steps [95 %] |")
    # Mean 2, standard error 1/√3, times t(0.975, 2) = 4.303.
    assert lines[2:] == [
        "| b | 9.0 | 8.0 | 5 |",
        "| a | 2.0 [-0.5, 4.5] | 2.0 [-0.5, 4.5] | 3 |",
        "| random policy | 0.5 | 0.5 | – |",
    ]


def test_a_comparison_runs_the_methods_and_what_they_are_held_against(tmp_path, monkeypatch, capsys):
    """Through the runs as they are made, with a process's work done here."""
    done = []

    def call(self, run):
        done.append((run.name, run.seed, run.command[0]))
        (run.folder / "log.txt").write_text("")
        folder = run.folder / "version_0"
        options = dict(zip(run.command[1::2], run.command[2::2], strict=True))
        if run.command[0] == "reference" and options["--method"] == "random":
            data = json.loads(options["--data"])
            assert data["total_steps"] == 300
            reference("random", data, run.seed, run.folder, {})
            return 0
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"env_id": "CartPole-v1"}}))
        rows = [f"{step},100,{step / 10 + run.seed}" for step in (150, 300)]
        (folder / "metrics.csv").write_text("\n".join(["step,time/steps_per_second,val/return_mean", *rows]) + "\n")
        return 0

    monkeypatch.setattr(compare_module.Runs, "call", call)
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump({"data": {"env_id": "CartPole-v1", "eval_episodes": 2}}))
    compare("x", [path], {"dqn": {}}, overrides={"data.total_steps": 300}, seeds=[1, 2], output=tmp_path / "studies")
    assert [name for name, *_ in done] == ["ppo", "DQN", "random policy"] * 2
    folder = tmp_path / "studies/x"
    text = (folder / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| ppo | 31.5 [25.1, 37.9] | 24.0 [17.6, 30.4] | 3 |" in text
    steps, seconds = ((folder / f"curves_{x}.svg").read_text() for x in ("env_steps", "seconds"))
    assert all(f"<!-- {label} -->" in steps for label in ("ppo", "DQN"))
    assert "<!-- IQM over 2 seeds, 95 % interval; dashed: random policy -->" in steps
    assert "<!-- seconds of training -->" in seconds
    with (folder / "results.csv").open(newline="") as file:
        finals = [float(row["final"]) for row in csv.DictReader(file) if row["name"] == "ppo"]
    assert finals == [31.0, 32.0]
