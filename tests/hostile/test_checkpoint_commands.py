"""Checkpoints from others on the command line and in Python: every command says the same, in one line."""

import os
import shutil
import sys

import pytest
import torch
from run_files import complaint, load

import pg_lightning
from pg_lightning import PPO, UserError

COMMANDS = ["fit", "validate", "test", "predict", "record", "export", "diagnose"]
RESUME = ("--data.total_steps", 1400)


@pytest.fixture
def received(run, tmp_path):
    """Changes a copy of a run's checkpoint; returns the file."""
    folder = shutil.copytree(run, tmp_path / "got")

    def change(edit):
        path = folder / "checkpoints/last.ckpt"
        checkpoint = load(path)
        edit(checkpoint)
        torch.save(checkpoint, path)
        return path

    return change


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("network.actor_head.linear.bias", torch.nan, "has numbers that are NaN or infinite"),
        ("network.normalizer.statistics.var", -1.0, "has negative numbers"),
    ],
)
def test_damaged_weights_are_named_by_every_command(command, name, value, problem, received, cli, tmp_path):
    path = received(lambda checkpoint: checkpoint["state_dict"][name].fill_(value))
    finished = cli(tmp_path, command, "--ckpt_path", path, *(RESUME if command == "fit" else ()))
    assert finished.returncode == 2, finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: ckpt_path: "), finished.stderr
    assert f"state_dict.{name} {problem}" in last


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_structure_is_found_before_anything_starts(command, received, cli, tmp_path):
    path = received(lambda checkpoint: checkpoint["pg_lightning"].update(env_steps="64"))
    said = complaint(cli(tmp_path, command, "--ckpt_path", path, *(RESUME if command == "fit" else ())))
    assert said == (
        f"ckpt_path: {str(path)!r} cannot be used: pg_lightning.env_steps is the text '64', not a count; "
        "give another checkpoint"
    )


def test_weights_alone_can_be_evaluated_but_not_trained(received, cli, tmp_path):
    def forget(checkpoint):
        for part in ("callbacks", "optimizer_states", "lr_schedulers"):
            del checkpoint[part]

    path = received(forget)
    said = complaint(cli(tmp_path, "fit", "--ckpt_path", path, *RESUME))
    assert "optimizer_states is missing, for it holds only weights; training continues from a last.ckpt" in said
    assert cli(tmp_path, "test", "--ckpt_path", path, "--data.eval_episodes", 2).returncode == 0
    assert pg_lightning.load(path).env_steps == 704


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_does_not_block(kind, cli, tmp_path, run):
    path = tmp_path / "x.ckpt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    config = ("--config", run / "config.yaml")
    assert "no file" in complaint(cli(tmp_path, "test", *config, "--ckpt_path", path))
    with pytest.raises(UserError, match="path: "):
        pg_lightning.load(path)
    with pytest.raises(UserError, match="no file"):
        PPO.load_from_checkpoint(path)


def test_a_checkpoint_imports_nothing(received, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("open('CODE_RAN', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def name(part, where):
        def edit(checkpoint):
            arguments = {"class_path": "stranger.Policy", "init_args": {}}
            target = checkpoint["hyper_parameters"] if where else checkpoint["pg_lightning"]["policy"]["init_args"]
            target[part] = arguments

        return received(edit)

    for part in ("policy", "torso", "head", "optimizer", "critic_optimizer", "lr_schedule", "of a user's algorithm"):
        path = name(part, where=True)
        with pytest.raises(UserError, match=r"cannot import 'stranger\.Policy'.* import 'stranger' first"):
            PPO.load_from_checkpoint(path)
    for part in ("torso", "head"):
        with pytest.raises(UserError, match=r"cannot import 'stranger\.Policy'"):
            pg_lightning.load(name(part, where=False))
    assert "stranger" not in sys.modules
    assert not (tmp_path / "CODE_RAN").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": "x"},
        {"gamma": [1]},
        {"lr": None},
        {"hidden_sizes": [10**6, 10**6]},
        {"hidden_sizes": "x"},
        {"observation_space": {"space": "Box", "low": 0.0, "high": 1.0, "shape": [10**12], "dtype": "float32"}},
        {"observation_space": 3},
        {"optimizer": "os.system"},
        {"optimizer": {"class_path": "os.mkdir", "init_args": {"path": "x"}}},
        {"lr_schedule": "builtins.print"},
        {"no such option": 1},
    ],
    ids=str,
)
def test_damaged_arguments_of_a_module_are_refused(change, received):
    path = received(lambda checkpoint: checkpoint["hyper_parameters"].update(change))
    with pytest.raises(UserError) as raised:
        PPO.load_from_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_arguments_that_are_given_are_not_those_of_the_checkpoint(received):
    path = received(lambda checkpoint: checkpoint["hyper_parameters"].update(gamma="x"))
    assert PPO.load_from_checkpoint(path, gamma=0.5).gamma == 0.5


@pytest.mark.parametrize("use", [pg_lightning.load, PPO.load_from_checkpoint], ids=["load", "load_from_checkpoint"])
@pytest.mark.parametrize(
    ("sizes", "problem"),
    [([300, 300], r"but \[2, 300\] in pg_lightning.policy"), ([1] * 10**4, "hidden_sizes has 10000 layers")],
    ids=["wide", "deep"],
)
def test_a_policy_that_is_larger_than_its_weights_reserves_no_memory(use, sizes, problem, received, monkeypatch):
    def describe(checkpoint):
        checkpoint["hyper_parameters"]["hidden_sizes"] = sizes
        checkpoint["pg_lightning"]["policy"]["init_args"]["hidden_sizes"] = sizes

    path, devices, make = received(describe), set(), torch.nn.Linear.__init__

    def noted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        devices.add(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", noted)
    with pytest.raises(UserError, match=problem):
        use(path)
    assert devices <= {"meta"}
