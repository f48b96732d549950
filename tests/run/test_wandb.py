"""Weights & Biases: a mirror of `metrics.csv`, against env steps, that cannot stop or delay a run."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_files import assert_same_weights, load, read_metrics
from wandb_server import WandbServer, read_offline

import pg_lightning
from pg_lightning.run import FaultTolerantWandbLogger

wandb = pytest.importorskip("wandb")

pytestmark = pytest.mark.filterwarnings("ignore:There is a wandb run already:UserWarning")
KEY = "0123456789abcdef" * 3
SWEEP = Path(__file__).parents[2] / "configs" / "sweeps" / "ppo_cartpole.yaml"
SHORT = ("--data.total_steps", 64, "--data.eval_episodes", 1)
ON = ("--trainer.logger", "wandb")
NUMBERS = ("rollout/", "train/", "val/", "time/env_steps")  # not `time/steps_per_second`


def metrics(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k.startswith(NUMBERS)} for row in read_metrics(run)]


def mirrored(history: list[dict]) -> list[dict[str, float]]:
    rows = [{k: v for k, v in row.items() if k.startswith(NUMBERS)} for row in history]
    return [row for row in rows if len(row) > 1]  # a picture's line has the x-axis only


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A W&B that is online as far as its settings say, with a key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        quiet = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "HOME": str(home)}
        for name, value in {**quiet, "WANDB_API_KEY": KEY, "no_proxy": "127.0.0.1"}.items():
            patch.setenv(name, value)
        yield patch


@pytest.fixture(scope="module")
def mirror(online, train):
    """Trains with W&B in this process, with more variables set, and ends W&B as the end of the process would."""

    def run(folder, *arguments, **variables):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            try:
                return train(folder, *ON, *arguments)
            finally:
                wandb.finish()
                wandb.teardown()

    return run


@pytest.fixture(scope="module")
def offline_run(mirror, tmp_path_factory):
    """Started in a git repository, with the run's folder somewhere else."""
    folder = tmp_path_factory.mktemp("offline")
    repository = folder / "repository"
    repository.mkdir()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (repository / "code.py").touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run(git + command, cwd=repository, check=True)
    program = repository / ".git/program"
    program.write_text(f"#!/bin/sh\ntouch {folder}/CODE_RAN\n")
    program.chmod(0o755)
    for key in ("core.fsmonitor", "filter.evil.clean", "diff.external"):
        subprocess.run([*git, "config", key, str(program)], cwd=repository, check=True)
    (repository / ".gitattributes").write_text("* filter=evil\n")
    (repository / "code.py").write_text("changed")
    root = ("--trainer.default_root_dir", folder / "runs")
    variables = {"WANDB_MODE": "offline", "WANDB_SAVE_CODE": "true"}  # W&B saves the code with `git diff`
    return mirror(repository, *root, "--trainer.logger.log_model", "true", **variables)


def test_every_metric_is_mirrored_against_env_steps(offline_run, run):
    history, records = read_offline(offline_run)
    assert mirrored(history) == metrics(offline_run) == metrics(run)
    axes = [r.metric.step_metric for r in records if r.HasField("metric") and r.metric.glob_name == "*"]
    assert axes[-1] == "time/env_steps"
    summary = {}
    for record in records:
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    last = {key: value for row in metrics(run) for key, value in row.items()}
    assert {key: summary[key] for key in last} == last


def test_the_config_is_that_of_config_yaml_with_the_version_of_the_code(offline_run):
    _, records = read_offline(offline_run)
    config = {item.key: json.loads(item.value_json) for r in records for item in r.config.update}
    saved = yaml.safe_load((offline_run / "config.yaml").read_text())
    assert {key: config[key] for key in saved} == saved
    assert config["pg_lightning"]["version"] == pg_lightning.__version__
    (head,) = [record.run for record in records if record.HasField("run")]
    repository = offline_run.parents[2] / "repository"
    assert not (offline_run.parents[2] / "CODE_RAN").exists()  # what the repository's own configuration names
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert head.git.commit == commit.stdout.strip()
    assert (head.project, head.display_name) == ("pg_lightning", "tiny/version_0")


def test_the_learning_curve_and_the_best_checkpoint_are_attached(offline_run):
    history, records = read_offline(offline_run)
    (picture,) = [row for row in history if "learning_curve/filenames" in row]
    assert picture["time/env_steps"] == 704
    (file,) = offline_run.glob(f"wandb/offline-run-*/files/{picture['learning_curve/filenames'][0]}")
    assert file.read_bytes() == (offline_run / "learning_curve.png").read_bytes()
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert "best" in artifact.aliases
    best = max(row["val/return_mean"] for row in read_metrics(offline_run) if "val/return_mean" in row)
    assert json.loads(artifact.metadata) == {"val/return_mean": pytest.approx(best)}
    (content,) = artifact.manifest.contents
    assert Path(content.local_path).read_bytes() == (offline_run / "checkpoints/best.ckpt").read_bytes()


def test_training_is_what_it_would_be_without(offline_run, run):
    assert_same_weights(offline_run / "checkpoints/last.ckpt", run / "checkpoints/last.ckpt")


def test_all_of_it_lies_in_the_folder_of_the_run_and_no_secret_in_it(offline_run):
    root = offline_run.parents[2]
    files = [path for path in root.rglob("*") if path.is_file() and root / "repository" not in path.parents]
    assert [path for path in files if offline_run not in path.parents] == []
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_the_workers_of_a3c_are_one_run(online, cli, tmp_path, monkeypatch):
    """Worker 0 is a fork, which ends without the hooks that would send what is left."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    short = ("--data.total_steps", 1000, "--data.eval_episodes", 1, "--trainer.log_every_n_steps", 1)
    finished = cli(tmp_path, "fit", "--config", "a3c_cartpole", *ON, *short, "--trainer.devices", 2)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs/a3c_cartpole/version_0"
    assert mirrored(read_offline(run)[0]) == metrics(run)
    assert len(metrics(run)) > 1


def test_a_run_that_is_resumed_goes_on_in_the_same_wandb_run_without_repeating_itself(offline_run, mirror, tmp_path):
    """As if the first part had been killed at 1000 env steps, its latest checkpoint being of 704."""
    state = offline_run / "wandb/run.json"
    first = json.loads(state.read_text())
    assert first["env_steps"] == 704
    state.write_text(json.dumps({**first, "env_steps": 1000}))
    more = ("--data.total_steps", 1200, "--ckpt_path", offline_run / "checkpoints/last.ckpt")
    spelt_out = ("--trainer.logger.notes", "one key, and every other comes as null")
    second = mirror(tmp_path, *spelt_out, *more, WANDB_MODE="offline")
    state.write_text(json.dumps(first))
    history, records = read_offline(second)
    assert [r.run.run_id for r in records if r.HasField("run")] == [first["id"]]
    assert [r.run.resume for r in records if r.HasField("run")] == [True]
    kept = [row for row in metrics(second) if row["time/env_steps"] >= 1000]
    assert mirrored(history) == kept
    assert len(kept) < len(metrics(second))
    assert json.loads((second / "wandb/run.json").read_text())["id"] == first["id"]


def test_the_best_from_before_a_kill_is_attached_at_the_end_too(run, mirror, tmp_path):
    """Though none of the second part is better; evaluations of one step are worse."""
    shutil.copytree(run, tmp_path / "runs/tiny/version_0")
    worse = ("--data.total_steps", 800, "--data.eval_max_episode_steps", 1)
    options = ("--trainer.logger.log_model", "true", "--ckpt_path", "last")
    resumed = mirror(tmp_path, *worse, *options, WANDB_MODE="offline")
    (artifact,) = [record.artifact for record in read_offline(resumed)[1] if record.HasField("artifact")]
    (content,) = artifact.manifest.contents
    assert Path(content.local_path).read_bytes() == (run / "checkpoints/best.ckpt").read_bytes()


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_run_that_branches_off_is_another_wandb_run(offline_run, mirror, tmp_path, checkpoint):
    """The best checkpoint is not where the run was left; and the agent of a sweep gives every run an id of its own."""
    more = ("--data.total_steps", 800, "--ckpt_path", offline_run / f"checkpoints/{checkpoint}.ckpt")
    agent = {"WANDB_RUN_ID": "given"} if checkpoint == "last" else {}
    branch = mirror(tmp_path, *more, WANDB_MODE="offline", **agent)
    first, second = (json.loads((folder / "wandb/run.json").read_text())["id"] for folder in (offline_run, branch))
    assert first != second
    assert second == agent.get("WANDB_RUN_ID", second)
    assert mirrored(read_offline(branch)[0]) == metrics(branch)


def fit(config, folder, *arguments, **variables):
    command = [sys.executable, "-m", "pg_lightning", "fit", "--config", str(config), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)


def test_a_server_that_accepts_and_never_answers_costs_one_line(online, tiny, tmp_path, run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = fit(tiny, tmp_path, *ON, WANDB_BASE_URL=url)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "Traceback" not in out
    (line,) = [line for line in out.splitlines() if "Weights & Biases: " in line]
    assert f"{url} does not answer" in line
    assert "wandb sync runs/tiny/version_0/wandb" in line
    ours = tmp_path / "runs/tiny/version_0"
    assert mirrored(read_offline(ours)[0]) == metrics(ours) == metrics(run)


@pytest.mark.parametrize("status", [None, 500])
def test_a_server_that_is_gone_or_broken_costs_one_warning(online, mirror, tmp_path, status):
    server = WandbServer(status or 200)
    if status is None:
        server.close()
    reason = f"{server.url} " + ("does not answer" if status is None else "answers 500")
    with pytest.warns(UserWarning, match=f"Weights & Biases: {reason}.*offline.*wandb sync") as caught:
        ours = mirror(tmp_path, *SHORT, WANDB_BASE_URL=server.url)
    assert sum("Weights & Biases" in str(warning.message) for warning in caught) == 1
    assert mirrored(read_offline(ours)[0]) == metrics(ours)


def test_a_server_that_dies_does_not_hold_up_the_end(online, mirror, tiny, tmp_path):
    """It answers until the second part of a run has begun, in the W&B run of the first, and then never again."""
    server = WandbServer()
    first = mirror(tmp_path, WANDB_BASE_URL=server.url)
    run_id = json.loads((first / "wandb/run.json").read_text())["id"]
    assert mirrored(server.history[run_id]) == metrics(first)

    server.has_run.clear()
    more = ("--data.total_steps", 1000, "--ckpt_path", first / "checkpoints/last.ckpt")
    process = fit(tiny, tmp_path, *ON, *more, WANDB_BASE_URL=server.url, WANDB_FINISH_TIMEOUT="2")
    assert server.has_run.wait(timeout=300)
    server.status = 0
    try:
        out, _ = process.communicate(timeout=200)  # without a bound it would wait for ever
    finally:
        process.kill()
    assert process.returncode == 0, out
    second = tmp_path / "runs/tiny/version_1"
    assert read_metrics(second)[-1]["step"] == 1024
    assert json.loads((second / "wandb/run.json").read_text()) == {"id": run_id, "env_steps": 1024}
    assert len(list(second.glob("wandb/run-*/run-*.wandb"))) == 1  # for `wandb sync`
    server.close()


@pytest.mark.parametrize(("key", "reason"), [(KEY, "401"), (None, "No API key")], ids=["refused", "missing"])
def test_a_key_that_is_refused_or_missing_costs_one_warning(online, mirror, tmp_path, monkeypatch, key, reason):
    server = WandbServer(401)
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY")
    own_id = ("--trainer.logger.id", "own")  # which the run that could not start must not keep
    with pytest.warns(UserWarning, match=f"Weights & Biases: .*{reason}.*offline") as caught:
        ours = mirror(tmp_path, *own_id, *SHORT, WANDB_BASE_URL=server.url)
    assert sum("Weights & Biases" in str(warning.message) for warning in caught) == 1
    assert mirrored(read_offline(ours)[0]) == metrics(ours)
    server.close()


class Broken:
    """A W&B run of which everything fails, as on a full disk; it counts the attempts."""

    id = "broken"

    def __init__(self):
        self.attempts = 0

    def __getattr__(self, name):
        self.attempts += 1
        raise OSError(28, "No space left on device")


def test_what_fails_in_the_run_is_one_warning_and_is_tried_ever_less_often(online, train, run, tmp_path, monkeypatch):
    broken = Broken()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(FaultTolerantWandbLogger, "begin", lambda *_: broken)
    with pytest.warns(UserWarning, match="Weights & Biases: .*No space left on device") as caught:
        ours = train(tmp_path, *ON)
    assert sum("Weights & Biases" in str(warning.message) for warning in caught) == 1
    assert metrics(ours) == metrics(run)
    calls = 1 + len(metrics(run)) + 2  # the config, the metrics, the picture and the end
    assert broken.attempts == sum(1 for k in range(20) if 2**k + k - 1 <= calls - 1)


def test_where_nothing_can_be_recorded_the_run_goes_on_without(online, mirror, tmp_path, monkeypatch):
    def fail(**arguments):
        if arguments.get("mode") != "disabled":
            raise OSError(30, "Read-only file system")
        return init(**arguments)

    init = wandb.init
    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match="Read-only file system; nothing is recorded there") as caught:
        ours = mirror(tmp_path, *SHORT, WANDB_MODE="offline")
    assert sum("Weights & Biases" in str(warning.message) for warning in caught) == 1
    assert metrics(ours)[-1]["time/env_steps"] == 64


def test_without_wandb_it_is_one_clear_line_before_anything_starts(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    finished = cli(tmp_path, "fit", "--config", tiny, *ON)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: trainer.logger: wandb cannot be imported")
    assert finished.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_a_sweep_runs_as_its_agent_composes_it(online, cli, tmp_path, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["metric"]["name"] == "val/return_mean"
    args = {
        name: {"value": parameter.get("min", parameter.get("values", [None])[-1])}
        for name, parameter in sweep["parameters"].items()
    }
    flags = create_sweep_command_args({"args": args})["args"]
    command = create_sweep_command(sweep["command"])
    command[command.index("${args}")] = None
    command = [part for chunk in command for part in (flags if chunk is None else [chunk])]
    assert command[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
    assert sweep["program"] == "pg_lightning"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "swept")
    monkeypatch.setenv("WANDB_RUN_ID", "byagent")
    short = ("--data.total_steps=1", "--data.eval_episodes=1")
    finished = cli(tmp_path, *command[4:], *short)
    wandb.finish()
    wandb.teardown()
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs/ppo_cartpole/version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in args.items():
        section, _, key = name.partition(".")
        part = saved[section]["init_args"] if section == "model" else saved[section]
        assert (part[key] if key else part) == value["value"]
    _, records = read_offline(run)
    assert [(r.run.run_id, r.run.sweep_id) for r in records if r.HasField("run")] == [("byagent", "swept")]
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["policy_version"] == 1
