"""`plot`, `study` and `compare` say in one line what is wrong with a file, and write through nobody's links."""

import json
import os
import time

import pytest
from files import CONFIGS, DRAWN, HEADER, METRICS, RESULTS, STORAGES
from run_files import complaint

from pg_lightning.commands.results import Run, known
from pg_lightning.errors import UserError
from pg_lightning.run.config_file import write_config
from pg_lightning.run.files import write_file

SECONDS = 10.0  # on a machine that does other things too
GOOD = HEADER + "1,1,3\n2,2,3\n"


@pytest.fixture
def working(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    yield tmp_path
    assert not (tmp_path / "CODE_RAN").exists()


def ended(cli, *arguments):
    """The end of a command: in time, without a traceback."""
    begin = time.perf_counter()
    finished = cli(arguments[0], *arguments[1:])
    assert time.perf_counter() - begin < SECONDS
    return finished


def refusal(finished):
    finished.stdout = finished.stdout.strip()  # the progress bar leaves an empty line
    said = complaint(finished)
    assert len(said) < 2000
    assert "root:" not in said  # of /etc/passwd
    return said


@pytest.mark.parametrize("name", METRICS)
def test_plot_says_what_is_wrong_with_a_metrics_file(cli, working, name):
    METRICS[name](working / "run/metrics.csv")
    refusal(ended(cli, working, "plot", "run"))
    refusal(ended(cli, working, "plot", "run", "--x", "seconds"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DRAWN)
def test_plot_draws_what_is_odd_but_can_be_drawn(cli, working, name):
    DRAWN[name](working / "run/metrics.csv")
    assert ended(cli, working, "plot", "run").returncode == 0
    assert (working / "curves.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_plot_says_what_is_wrong_with_a_config_or_draws_without_it(cli, working, name):
    (working / "run/metrics.csv").write_text(GOOD)
    CONFIGS[name](working / "run/config.yaml")
    for by in ("algorithm", "model.lr", "data.env_id"):
        finished = ended(cli, working, "plot", "run", "--by", by)
        if finished.returncode:
            refusal(finished)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_is_none_is_named(working, name):
    RESULTS[name](working / "run/result.json")
    run = Run("lr 1", 1, [], {}, working / "run")
    if name == "loop":  # is nothing
        assert known(run) is None
        return
    with pytest.raises(UserError, match=r"^output: .*result\.json'"):
        known(run)


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_is_none_is_named(cli, working, name):
    pytest.importorskip("optuna")
    STORAGES[name](working / "x.db")
    study = {"config": "ppo_cartpole", "vary": {"model.lr": [0.1]}, "sampler": "tpe", "storage": "sqlite:///x.db"}
    (working / "s.yaml").write_text(json.dumps(study))
    assert refusal(ended(cli, working, "study", "s.yaml")).startswith("storage: ")


@pytest.mark.parametrize("results", [None, 3, [], [3], [{}], [{"name": 1}], "x", {"a": 1}], ids=json.dumps)
@pytest.mark.parametrize("params", [{}, {"model.lr": "0.1"}, {"model.lr": "x"}], ids=json.dumps)
@pytest.mark.filterwarnings("ignore")
def test_a_storage_with_trials_of_others_is_one_line(cli, working, params, results):
    """Without results there is nothing to report, and the study ends."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = optuna.create_study(storage="sqlite:///x.db", study_name="s", direction="maximize")
    choices = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in params.items()}
    attributes = {} if results is None else {"results": results}
    found.add_trial(optuna.create_trial(value=1.0, params=params, distributions=choices, user_attrs=attributes))
    study = {"config": "ppo_cartpole", "vary": {"model.lr": [0.1]}, "sampler": "tpe", "storage": "sqlite:///x.db"}
    (working / "s.yaml").write_text(json.dumps({**study, "trials": 1}))
    finished = ended(cli, working, "study", "s.yaml")
    if params == {"model.lr": "0.1"} and results == []:
        assert finished.returncode == 0
    else:
        assert refusal(finished).startswith("storage: ")


@pytest.mark.parametrize(
    "study",
    [
        {"config": "other.yaml"},
        {"config": "fifo"},
        {"config": 3},
        {"vary": []},
        {"vary": {"model.lr": {}}},
        {"vary": {"model.lr": 3}},
        {"seeds": ["x"]},
        {"seeds": []},
        {"workers": -1},
        {"name": "a/../../b", "config": "nope"},
        {"stranger": 1},
        {"storage": "nonsense://", "sampler": "tpe"},
    ],
    ids=json.dumps,
)
def test_a_study_that_is_none_is_one_line(cli, working, study):
    os.mkfifo(working / "fifo")
    (working / "other.yaml").write_bytes(b"\xff")
    (working / "s.yaml").write_text(json.dumps({"config": "ppo_cartpole", "vary": {"model.lr": [0.1]}, **study}))
    refusal(ended(cli, working, "study", "s.yaml"))


@pytest.mark.parametrize("content", ["data: [1]\n", "data: x\n", "model: 1\ndata: null\n"])
def test_a_comparison_of_configs_that_are_none_is_one_line(cli, working, content):
    (working / "a.yaml").write_text(content)
    (working / "b.yaml").write_text("data: {env_id: x}\n")
    (working / "c.yaml").write_text("methods: [a.yaml, b.yaml]\n")
    refusal(ended(cli, working, "compare", "c.yaml"))


def test_output_into_a_folder_is_written_there(cli, working):
    (working / "run/metrics.csv").write_text(GOOD)
    (working / "figures").mkdir()
    assert ended(cli, working, "plot", "run", "--output", "figures").returncode == 0
    assert sorted(os.listdir(working / "figures")) == ["curves.png", "curves.svg"]
    (working / "figures/curves.png").unlink()
    (working / "figures/curves.png").mkdir()
    assert refusal(ended(cli, working, "plot", "run", "--output", "figures")).startswith("output: cannot write")


def test_nothing_is_written_through_a_link(cli, working):
    """A link in a received folder is replaced by a file; what it points at stays as it is."""
    victim = working / "victim"
    victim.write_text("content")
    for name in ("curves.png", "curves.svg", "run/config.yaml", "run/a.txt", "run/.a_txt.partial"):
        (working / name).symlink_to(victim)
    (working / "run/metrics.csv").write_text(GOOD)
    write_file(working / "run/a.txt", "new")
    write_config(working / "run", "seed_everything: 1\n")
    (working / "run/config.yaml").unlink()
    assert ended(cli, working, "plot", "run").returncode == 0
    assert victim.read_text() == "content"
    assert (working / "run/a.txt").read_text() == "new"
    assert not (working / "curves.png").is_symlink()


TARGETS = ["metrics.csv", "config.yaml", ".lock", "learning_curve.png", "checkpoints/last.previous.ckpt"]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_run_that_goes_on_in_a_received_folder_writes_through_nothing(cli, run, tiny, tmp_path, name, kind):
    import shutil

    got = shutil.copytree(run, tmp_path / "runs/tiny/version_0")
    victim = tmp_path / "victim"
    victim.write_text("content")
    (got / name).unlink(missing_ok=True)
    if kind == "link":
        (got / name).symlink_to(victim)
    else:
        os.mkfifo(got / name)
    finished = cli(tmp_path, "fit", "--config", tiny, "--ckpt_path", "last", "--data.total_steps", 800)
    assert victim.read_text() == "content"
    assert finished.returncode in (0, 2), finished.stderr
    assert "Traceback" not in finished.stderr
