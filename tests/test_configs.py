"""Every shipped config can be read and trains."""

from pathlib import Path

import pytest
import yaml
from run_files import load, read_metrics

from pg_lightning.envs import make_env
from pg_lightning.errors import UserError
from pg_lightning.games import make_games

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def case(path):
    """With a mark for `make test-envpool`."""
    marks = [pytest.mark.envpool] if "backend: envpool" in path.read_text() else []
    return pytest.param(path, id=path.stem, marks=marks)


def test_there_are_configs():
    assert {"ppo_cartpole", "ppo_acrobot", "ppo_pendulum"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", map(case, CONFIGS))
def test_a_shipped_config_fixes_its_seed_and_trains_for_a_rollout(cli, tmp_path, path):
    config = yaml.safe_load(path.read_text())
    assert isinstance(config["seed_everything"], int)
    data = config["data"]
    for callback in config["trainer"].get("callbacks", []):  # shortens what comes before the first rollout
        if callback["class_path"].endswith("SupervisedStart"):
            callback["init_args"]["steps"] = 2
            path = tmp_path / path.name
            path.write_text(yaml.safe_dump(config))
    try:
        if "prompts" in data:
            pytest.importorskip("transformers")
        elif "self_play" in data:
            make_games(data["env_id"], 1, data.get("env_kwargs"), data.get("backend", "sync")).close()
        else:
            wrappers = data.get("wrappers", ())
            make_env(data["env_id"], data.get("env_kwargs"), wrappers, data.get("backend", "sync")).close()
    except UserError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise
    finished = cli(tmp_path, "fit", "--config", path, "--data.total_steps", 1, "--data.eval_episodes", 1)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs" / path.stem / "version_0"
    assert load(run / "checkpoints/last.ckpt")["pg_lightning"]["policy_version"] == 1
    assert "val/return_mean" in read_metrics(run)[-1]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in config["model"]["init_args"].items():
        assert saved["model"]["init_args"][key] == value
