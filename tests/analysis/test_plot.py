"""Learning curves of many runs: which runs make a group, what is drawn of them, and what is said of bad input."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from pg_lightning import cli
from pg_lightning.analysis.curves import Curve, find_runs, group_of, read_curve, seconds_of
from pg_lightning.analysis.intervals import summary
from pg_lightning.analysis.plots import BEHIND, MAX_LINES, blank, draw_groups, grid_of
from pg_lightning.errors import UserError

CONFIG = {
    "seed_everything": 1,
    "model": {"class_path": "pg_lightning.algorithms.A2C", "init_args": {"lr": 0.01}},
    "data": {"env_id": "CartPole-v1", "num_envs": 8},
}


def make_run(folder: Path, returns, config=CONFIG):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "time/steps_per_second", "val/return_mean"])
        writer.writeheader()
        for i, value in enumerate(returns, start=1):
            writer.writerow({"step": 100 * i, "time/steps_per_second": 50.0})
            writer.writerow({"step": 100 * i, "val/return_mean": value})
    return folder


def curve(x, values):
    return Curve(Path("run"), CONFIG, np.array(x, float), np.array(values, float))


def test_runs_are_found_at_and_below_a_path(tmp_path):
    runs = [make_run(tmp_path / "a2c" / f"version_{i}", [1.0]) for i in range(2)]
    assert find_runs([tmp_path]) == runs
    assert find_runs([runs[1], tmp_path]) == runs[::-1]


def test_a_curve_is_the_rows_that_have_the_metric(tmp_path):
    read = read_curve(make_run(tmp_path / "run", [5.0, 7.0]), "val/return_mean", "env_steps")
    assert read.x.tolist() == [100, 200]
    assert read.values.tolist() == [5, 7]


def test_seconds_add_up_what_each_stretch_took(tmp_path):
    read = read_curve(make_run(tmp_path / "run", [5.0, 7.0]), "val/return_mean", "seconds")
    assert read.x.tolist() == [2, 4]  # at 50 steps per second
    rows = [{"step": step, "time/steps_per_second": speed} for step, speed in (("10", "10"), ("30", "5"), ("30", ""))]
    assert [x.tolist() for x in seconds_of(rows)] == [[0, 10, 30], [0, 1, 5]]


def test_a_run_without_a_speed_has_no_seconds(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/return_mean\n10,1.0\n")
    assert read_curve(tmp_path, "val/return_mean", "env_steps").values.tolist() == [1]
    with pytest.raises(UserError, match=r"^x: .* has no 'time/steps_per_second'"):
        read_curve(tmp_path, "val/return_mean", "seconds")


@pytest.mark.parametrize(
    ("by", "name"),
    [
        ("algorithm", "A2C"),
        ("run", "a2c_cartpole/version_0"),
        ("model.lr", "lr 0.01"),
        ("model.init_args.lr", "lr 0.01"),
        ("data.num_envs", "num_envs 8"),
        ("seed_everything", "seed_everything 1"),
    ],
)
def test_a_group_is_named_by_what_its_runs_share(by, name):
    assert group_of(Curve(Path("runs/a2c_cartpole/version_0"), CONFIG, np.zeros(1), np.zeros(1)), by) == name


def test_runs_are_compared_where_all_have_been():
    grid, middle, low, high = summary([curve([0, 10, 20], [0, 10, 20]), curve([5, 15], [1, 1])], "mean")
    assert grid.tolist() == [5, 10, 15]
    assert middle.tolist() == [3, 5.5, 8]
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    curves = [curve([0, 1], [value, value]) for value in (0, 10, 20, 1000)]
    assert summary(curves, "iqm")[1].tolist() == [15, 15]
    assert summary(curves, "mean")[1].tolist() == [257.5, 257.5]


def test_the_band_is_as_wide_as_runs_differ():
    wide, narrow = ([curve([0, 1], [100 + step * i] * 2) for i in range(5)] for step in (10, 1))
    (_, _, low, high), (_, _, lower, higher) = summary(wide, "mean"), summary(narrow, "mean")
    assert ((high - low) > 5 * (higher - lower)).all()
    assert (high - low < 40).all()
    _, middle, low, high = summary([curve([0, 1], [1, 2])], "mean")
    assert low.tolist() == middle.tolist() == high.tolist() == [1, 2]


def test_the_command_writes_png_and_svg(tmp_path, monkeypatch, capsys):
    for i in range(3):
        make_run(tmp_path / f"a2c/version_{i}", [1.0 + i, 2.0])
    ppo = {**CONFIG, "model": {"class_path": "pg_lightning.algorithms.PPO", "init_args": {"lr": 0.02}}}
    make_run(tmp_path / "ppo/version_0", [3.0, 4.0], ppo)
    picture = tmp_path / "pictures/curves.svg"
    monkeypatch.setattr("sys.argv", ["pg-lightning", "plot", str(tmp_path), "--output", str(picture)])
    cli.main()
    assert capsys.readouterr().out.split() == [str(picture.with_suffix(".png")), str(picture)]
    assert picture.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = picture.read_text()
    said = "IQM over seeds (their number), 95 % interval"
    for label in ("A2C (3)", "PPO (1)", "CartPole-v1", "env steps", "val/return_mean", said):
        assert f"<!-- {label} -->" in text


def drawn(count, seeds=2, levels=None):
    """The panels of a figure with a number of groups, and all of its text."""
    figure = blank(8, 4.8)
    groups = {f"group {i}": [curve([0, 10], [i, i + seed]) for seed in range(seeds)] for i in range(count)}
    draw_groups(figure, groups, "val/return_mean", "env_steps", "mean", levels or {})
    legends = [text.get_text() for legend in figure.legends for text in (legend.get_title(), *legend.get_texts())]
    return figure.axes, "\n".join([figure.get_suptitle(), *legends])


def test_a_few_groups_share_a_panel_with_a_legend_that_says_what_is_shown():
    (panel,), text = drawn(4)
    assert len({line.get_color() for line in panel.lines}) == len(panel.collections) == 4
    assert text.splitlines() == ["", "mean over 2 seeds, 95 % interval", *(f"group {i}" for i in range(4))]


def test_many_groups_have_a_panel_each_with_the_others_in_grey():
    panels, text = drawn(6, levels={"random policy": 0.5})
    assert [panel.get_title() for panel in panels] == [f"group {i}" for i in range(6)]
    for i, panel in enumerate(panels):
        own = [line for line in panel.lines if line.get_label() == f"group {i}"]
        assert [line.get_ydata().tolist() for line in own] == [[i, i + 0.5]]
        behind = [line.get_ydata()[0] for line in panel.lines if line.get_color() == BEHIND]
        assert behind == [j for j in range(6) if j != i]
        assert len(panel.collections) == 1  # one band
        assert sum(line.get_linestyle() == "--" for line in panel.lines) == 1
    assert text == "CartPole-v1\nmean over 2 seeds, 95 % interval; grey: the others; dashed: random policy"


def test_one_run_each_has_no_interval():
    assert "one seed each" in drawn(2, seeds=1)[1]


@pytest.mark.parametrize("count", [1, 5, 7, 8, 9, 13, 30])
def test_every_group_has_a_place(count):
    rows, columns = grid_of(count)
    assert (rows, columns) == (1, 1) if count <= MAX_LINES else rows * columns >= count > (rows - 1) * columns
    assert len(drawn(count)[0]) == (1 if count <= MAX_LINES else count)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "runs: no metrics.csv in 'nowhere' or below; give folders of runs"),
        (["RUN", "--metric", "x"], "metric: 'RUN' has no 'x'; it has time/steps_per_second, val/return_mean"),
        (["RUN", "--by", "model.gamma"], "by: the config of 'RUN' has no key 'model.gamma'"),
        (["RUN", "--estimate", "median"], "estimate: expected one of 'mean', 'iqm', got 'median'"),
        (["RUN", "--output", "RUN/metrics.csv/x.png"], "output: cannot write 'RUN/metrics.csv/x.png'"),
        ([], "the following arguments are required: runs"),
    ],
)
def test_bad_input_is_one_line(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(Path("RUN"), [1.0])
    monkeypatch.setattr("sys.argv", ["pg-lightning", "plot", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_missing_key_raises_where_python_asks():
    with pytest.raises(UserError, match="has no key"):
        group_of(curve([0], [0]), "model.class_path.x")
