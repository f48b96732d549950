"""Studies: which runs are made, what is said of their results, and that an interrupted one goes on."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import warm
import yaml

from pg_lightning import cli
from pg_lightning.commands import runs as runs_module
from pg_lightning.commands.results import Result, Run
from pg_lightning.commands.runs import Runs, claimed, make_run, raise_if_failed
from pg_lightning.commands.search import chosen, open_search, search, suggest
from pg_lightning.commands.study import grid, label_of
from pg_lightning.commands.verdict import report, verdict
from pg_lightning.errors import UserError

CONFIG = Path("ppo_cartpole.yaml")
STUDY = {
    "config": "ppo_cartpole",
    "vary": {"model.lr": [0.001, 0.01]},
    "overrides": {
        "model.num_epochs": 1,
        "model.hidden_sizes": [8],
        "data.total_steps": 3_000,
        "data.eval_every_steps": 1_000,
        "data.eval_episodes": 2,
        "data.eval_max_episode_steps": 20,
    },
    "seeds": [1, 2],
}


def results(**finals):
    return [Result(name, seed, 100, value, value / 2, 1.0) for name, of in finals.items() for seed, value in of.items()]


def a_run(folder, name="lr 0.001", seed=1, **settings):
    return Run(name, seed, ["fit"], settings, folder / name / str(seed))


class Played:
    """Runs that take no time: what each comes to, with which exit status it ends, and which have been called."""

    def __init__(self):
        self.statuses: dict[tuple[str, int], int] = {}
        self.calls: list[tuple[str, int]] = []
        self.stop_at: int | None = None

    def call(self, run):
        self.calls.append((run.name, run.seed))
        if len(self.calls) == self.stop_at:
            raise UserError("stopped")
        (run.folder / "log.txt").write_text("error: model.lr: too high\n")
        return self.statuses.get((run.name, run.seed), 0)


@pytest.fixture
def played(monkeypatch):
    made = Played()
    monkeypatch.setattr(Runs, "call", lambda self, run: made.call(run))
    monkeypatch.setattr(
        runs_module, "read_result", lambda run, _: Result(run.name, run.seed, 100, 10.0 * run.seed, 0.0, 1.0)
    )
    return made


def test_a_grid_is_every_combination():
    assert grid({"a": [1, 2], "b": [[3], [4, 5]]}) == [
        {"a": 1, "b": [3]},
        {"a": 1, "b": [4, 5]},
        {"a": 2, "b": [3]},
        {"a": 2, "b": [4, 5]},
    ]
    with pytest.raises(UserError, match=r"^vary\.a: give a list"):
        grid({"a": {"low": 1, "high": 2}})


def test_a_setting_is_called_by_its_last_names_unless_two_are_the_same():
    assert label_of({"model.lr": 0.1, "data.num_steps": 8}) == "lr 0.1, num_steps 8"
    assert label_of({"model.lr": 0.1, "critic.lr": 0.2}) == "model.lr 0.1, critic.lr 0.2"


def test_a_run_is_a_fit_with_the_keys_set_that_goes_on_where_it_was(tmp_path):
    run = make_run(tmp_path, "sizes [8, 8]", 3, CONFIG, {}, {"model.hidden_sizes": [8, 8], "model.head": "beta"})
    assert run.folder == tmp_path / "sizes-8-8" / "seed_3"
    pairs = dict(zip(run.command[1::2], run.command[2::2], strict=True))
    assert run.command[0] == "fit"
    assert pairs["--model.hidden_sizes"] == "[8, 8]"
    assert pairs["--model.head"] == "beta"
    assert pairs["--seed_everything"] == "3"
    assert pairs["--ckpt_path"] == "last"


def test_what_is_done_is_not_done_again(tmp_path, played):
    runs = [a_run(tmp_path, "a", seed) for seed in (1, 2)]
    for _ in range(2):
        with Runs("val/return_mean", 2, 2) as pool:
            assert [result.final for result in pool.all([runs])] == [10.0, 20.0]
    assert sorted(played.calls) == [("a", 1), ("a", 2)]


def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path, played):
    with Runs("val/return_mean", 1, 1) as pool:
        pool.all([[a_run(tmp_path, "a", overrides={"model.gamma": 0.9})]])
    with pytest.raises(UserError, match=r"^output: .*contains a run with other settings"), Runs("x", 1, 1) as pool:
        pool.all([[a_run(tmp_path, "a", overrides={"model.gamma": 0.8})]])


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, played):
    played.statuses["a", 1] = -9
    with Runs("val/return_mean", 1, 2) as pool:
        assert [result.seed for result in pool.all([[a_run(tmp_path, "a", seed) for seed in (1, 2)]])] == [2]
    assert pool.failed == ["a, seed 1"]
    with pytest.raises(UserError, match=r"^1 runs failed: a, seed 1; run the same command"):
        raise_if_failed(pool.failed)


def test_a_mistake_in_the_settings_ends_the_study_in_the_words_of_the_run(tmp_path, played):
    played.statuses["a", 1] = 2
    with pytest.raises(UserError, match=r"^a, seed 1: model\.lr: too high$"), Runs("x", 1, 1) as pool:
        pool.all([[a_run(tmp_path, "a")]])


def test_two_studies_do_not_work_in_one_folder(tmp_path):
    with (
        claimed(tmp_path / "x"),
        pytest.raises(UserError, match=r"^output: another study is running in"),
        claimed(tmp_path / "x"),
    ):
        pass
    with claimed(tmp_path / "x"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^output: cannot write .*file/x'"), claimed(tmp_path / "file/x"):
        pass


def test_the_verdict_tells_what_beats_what_over_pairs_of_seeds():
    text = verdict(
        ["a", "b", "c"],
        results(a={1: 10.0, 2: 60.0, 3: 110.0}, b={1: 1.0, 2: 50.0, 3: 99.0}, c={1: 9.0, 2: 99.0, 3: 1.0}),
        "val/return_mean",
    )
    at_the_end = text.splitlines()[:3]
    assert at_the_end[0] == "val/return_mean at 100 env steps: a is best, with 60.0."
    # Differences 9, 10, 11: mean 10, standard error 1/√3, times t(0.975, 2) = 4.303.
    assert at_the_end[1] == "  it beats b by 10.0 [7.5, 12.5]"
    assert at_the_end[2].startswith("  no significant difference from c: ahead by 23.7 [-")
    assert "on average over all evaluations: a is best, with 30.0." in text


def test_the_verdict_knows_equals_and_single_seeds():
    text = verdict(["a", "b"], results(a={1: 5.0, 2: 6.0}, b={1: 5.0, 2: 6.0}), "x")
    assert "  b is its equal with every seed" in text
    assert "fewer than two seeds" in verdict(["a", "b"], results(a={1: 5.0}, b={1: 4.0}), "x")


def test_a_search_draws_settings_and_takes_up_the_one_that_was_interrupted(tmp_path, played, monkeypatch):
    optuna = pytest.importorskip("optuna")
    vary = {"model.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.hidden_sizes": [[8], [8, 8]]}
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"

    def runs_of(values):
        return [make_run(tmp_path, label_of(values), seed, CONFIG, {}, values) for seed in (1, 2)]

    def by_rate(run, _):
        return Result(run.name, run.seed, 100, run.settings["overrides"]["model.lr"], 0.0, 1.0)

    def go_on():
        with Runs("val/return_mean", 1, 6) as pool:
            return search(vary, "tpe", 3, storage, "s", pool, 1, runs_of)

    monkeypatch.setattr(runs_module, "read_result", by_rate)
    played.stop_at = 4
    with pytest.raises(UserError, match="stopped"):
        go_on()
    settings, results = go_on()
    names = [label_of(values) for values in settings]
    assert played.calls[3] == played.calls[4]
    assert played.calls[3][0] in names
    assert [result.name for result in results] == [name for name in names for _ in (1, 2)]
    rates = [values["model.lr"] for values in settings]
    assert len(rates) == 3
    assert rates == sorted(rates, reverse=True)
    assert all(values["model.hidden_sizes"] in ([8], [8, 8]) for values in settings)
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 4
    assert go_on() == (settings, results)
    assert len(played.calls) == 7
    tmp_path = tmp_path / "another machine"  # for `runs_of`
    assert go_on() == (settings, results)
    assert not tmp_path.exists()


def test_a_storage_that_is_none_is_one_line(monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"^storage: Optuna cannot use 'sqlite:////nowhere/x.db': "):
        open_search("sqlite:////nowhere/x.db", "x")


def test_a_picture_shows_what_is_known_of_runs_on_other_machines(tmp_path):
    settings = {"lr 1": {"model.lr": 1}, "lr 2": {"model.lr": 2}}
    found = [*results(**{"lr 1": {1: 5.0, 2: 6.0}}), *results(**{"lr 2": {1: 7.0, 2: 8.0}})]
    report(settings, lambda values: [a_run(tmp_path, label_of(values))], found, "val/return_mean", tmp_path)
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "lr 2 is best" in (tmp_path / "verdict.txt").read_text()


def test_a_range_that_is_none_is_named():
    with pytest.raises(UserError, match=r"^vary\.model\.lr: give a list, or low, high"):
        suggest(None, "model.lr", {"low": 1})
    assert chosen(0.00123456, {}) == 0.00123
    assert chosen(7, {}) == 7


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "study: give a file, such as configs/studies/lr_cartpole.yaml, or --help"),
        (["nowhere"], "config: no file 'nowhere'; shipped: "),
        (["lr_cartpole", "--seeds", "[1, 1]"], "seeds: give at least one seed, and no seed twice"),
        (["lr_cartpole", "--workers", "0"], "workers: must be at least 1, got 0"),
        (["lr_cartpole", "--config", "ppo_carpole"], "config: no file 'ppo_carpole'"),
        (["lr_cartpole", "--sampler", "cma"], "sampler: expected one of 'grid', 'random', 'tpe', got 'cma'"),
    ],
)
def test_bad_input_is_one_line(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pg-lightning", "study", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_interrupted_goes_on_and_comes_to_an_end(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    command = ["-m", "pg_lightning", "study", "tiny.yaml", "--workers", "2"]
    folder = tmp_path / "studies/tiny"
    first = warm.WarmProcess(command, tmp_path)
    while first.poll() is None and not list(folder.glob("runs/*/*/result.json")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(60) == 143
    said = (tmp_path / "log.txt").read_text()
    done = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/result.json")}
    assert said.splitlines()[-1] == "stopped by SIGTERM"
    assert 1 <= len(done) < 4
    second = warm.run(command, tmp_path)
    assert second.returncode == 0, second.stderr
    assert done == {file: file.stat().st_mtime_ns for file in done}
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["model.lr"], row["seed"]) for row in rows) == [
        (lr, seed) for lr in ("0.001", "0.01") for seed in "12"
    ]
    assert (folder / "verdict.txt").read_text() in second.stdout + "\n"
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"<!-- lr {lr} -->" in (folder / "study.svg").read_text() for lr in ("0.001", "0.01"))
    assert len(list(folder.glob("runs/*/*/ppo_cartpole/version_*"))) == 4
