"""Secrets in options are neither written to a file nor repeated in a message."""

import pytest
import yaml
from run_files import complaint

from pg_lightning.errors import UserError
from pg_lightning.run.secrets import HIDDEN, refuse_hidden, without_secrets, without_secrets_in

SECRET = "hunter2"
SECRETS = [
    ({"trainer": {"logger": {"init_args": {"settings": {"api_key": SECRET}}}}}, "trainer.logger.init_args"),
    ({"data": {"env_kwargs": {"key": SECRET}}}, "data"),
    ({"data": {"env_kwargs": {"deep": {"key": SECRET}}}}, "data"),
    ({"data": {"env_kwargs": {"deep": [{"auth_token": SECRET}]}}}, "data"),
    ({"data": {"train_env_kwargs": {"db_password": SECRET, "client-secret": SECRET}}}, "data"),
    ({"storage": f"postgresql://me:{SECRET}@host/db"}, ""),
    ({"base_url": f"https://host/x?a=1&api_key={SECRET}&b=2"}, ""),
    ({"wrappers": [{"init_args": {"token": SECRET}}]}, ""),
]


@pytest.mark.parametrize(("options", "_"), SECRETS, ids=lambda x: "" if isinstance(x, str) else None)
def test_a_secret_is_hidden_wherever_it_is(options, _):
    hidden = without_secrets(options)
    assert SECRET not in str(hidden)
    assert HIDDEN in str(hidden)
    assert SECRET in str(options)
    assert SECRET not in without_secrets_in(str(options).replace("'key'", "'api_key'"))


@pytest.mark.parametrize(("options", "_"), SECRETS, ids=lambda x: "" if isinstance(x, str) else None)
def test_what_was_hidden_is_refused_wherever_it_is(options, _):
    refuse_hidden(options)
    with pytest.raises(UserError, match=r"^[\w.-]+: \*\*\* is a secret that was not saved; give its value again$"):
        refuse_hidden(without_secrets(options))


@pytest.mark.parametrize(
    "options",
    [
        {"model": {"tokenizer": "x", "max_tokens": 5, "token": 3, "monkey": "x", "keyboard": "y"}},
        {"data": {"wrappers": [{"init_args": {"key": "image"}}]}},
        {"url": "https://host:80/x?page=2", "env_id": "module:Env-v0", "lr": 0.1, "none": None, "yes": True},
    ],
    ids=str,
)
def test_what_is_no_secret_stays(options):
    assert without_secrets(options) == options
    refuse_hidden(options)


@pytest.mark.parametrize(
    "message",
    [
        f"data.env_kwargs.token: expected int, got '{SECRET}'",
        f"data: unexpected {{'password': '{SECRET}', 'a': 1}}",
        f"storage: Optuna cannot use 'postgresql://me:{SECRET}@host/db': no",
        f"trainer.logger: settings(api_key={SECRET}) is not valid",
        f'x: "secret": "{SECRET}"',
    ],
)
def test_a_message_repeats_no_secret(message):
    said = without_secrets_in(message)
    assert SECRET not in said
    assert HIDDEN in said


def test_a_message_without_secrets_stays():
    for message in (
        "data.env_kwargs.token: expected int",
        "data.num_envs: expected int, got 'x'",
        "model.gama: unknown key; did you mean model.gamma?",
        "config: 'a.yaml' is not YAML: line 2: found unexpected end of stream",
        "give --data.env_kwargs.key='x'".replace("='x'", ""),
    ):
        assert without_secrets_in(message) == message


def test_no_file_of_a_run_holds_a_secret(cli, tiny, tmp_path, caplog):
    options = ("--data.total_steps", 64, "--data.eval_episodes", 1, "--data.env_id", "odd_envs:Licensed-v0")
    options += ("--data.env_kwargs", f'{{"api_key": "{SECRET}"}}')
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "tb", "prefix": f"https://me:{SECRET}@host/"},
    }
    finished = cli(tmp_path, "fit", "--config", tiny, *options, "--trainer.logger", yaml.safe_dump(logger))
    assert finished.returncode == 0, finished.stderr
    for file in tmp_path.rglob("*"):  # checkpoints are not compressed
        if file.is_file() and "tfevents" not in file.name:
            assert SECRET.encode() not in file.read_bytes(), file
    config = yaml.safe_load((tmp_path / "runs/tiny/version_0/config.yaml").read_text())
    assert config["trainer"]["logger"]["init_args"]["prefix"] == f"https://me:{HIDDEN}@host/"

    of_run = ("test", "--ckpt_path", tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt", "--config")
    of_run += (tmp_path / "runs/tiny/version_0/config.yaml", "--trainer.logger", "false")
    said = complaint(cli(tmp_path, *of_run))
    assert said == "data.env_kwargs.api_key: *** is a secret that was not saved; give its value again"
    again = cli(tmp_path, *of_run, "--data.env_kwargs.api_key", SECRET)
    assert again.returncode == 0, again.stderr
    options += ("--data.total_steps", 128, "--ckpt_path", "last")
    resumed = cli(tmp_path, "fit", "--config", tiny, *options, "--trainer.logger", yaml.safe_dump(logger))
    assert resumed.returncode == 0, resumed.stderr
    assert "episodes start" not in caplog.text + resumed.stderr


def test_no_error_repeats_a_secret(cli, tmp_path):
    for arguments in (
        ("fit", "--config", "ppo_cartpole", "--data.env_kwargs", f'{{"token": "{SECRET}"}}'),
        ("fit", "--config", "ppo_cartpole", "--data.env_kwargs.password", SECRET, "--data.num_envs", "x"),
        ("fit", "--config", "ppo_cartpole", "--trainer.logger", f'{{"class_path": "x", "api_key": "{SECRET}"}}'),
    ):
        assert SECRET not in complaint(cli(tmp_path, *arguments))
    study = ("lr_cartpole", "--sampler", "tpe", "--storage", f"postgresql://me:{SECRET}@localhost:1/db")
    pytest.importorskip("optuna")
    assert SECRET not in cli(tmp_path, "study", *study).stderr
