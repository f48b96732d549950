"""`accelerator: auto` chooses by measurement and says why; what a checkpoint takes from a GPU."""

from functools import wraps

import pytest
import torch
from lightning.pytorch import Trainer

from pg_lightning.algorithms import A2C, A3C, PPO, REINFORCE
from pg_lightning.cli import accelerator
from pg_lightning.cli.accelerator import choose_accelerator, seconds_per_rollout
from pg_lightning.data import RolloutDataModule


def make(algorithm=PPO, env_id="CartPole-v1", **model):
    data = RolloutDataModule(env_id, num_envs=2, num_steps=8)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    return algorithm(**spaces, **model), data


@pytest.mark.parametrize(
    ("algorithm", "env_id", "model"),
    [
        (PPO, "CartPole-v1", {}),
        (PPO, "Pendulum-v1", {"normalize_obs": True, "shared_torso": True}),
        (PPO, "CartPole-v1", {"memory": "gru", "num_minibatches": 2}),
        (A2C, "CartPole-v1", {}),
        (REINFORCE, "CartPole-v1", {}),
    ],
)
def test_every_kind_of_policy_can_be_measured_and_is_left_as_it_is(algorithm, env_id, model):
    module, data = make(algorithm, env_id, **model)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert 0 < seconds_per_rollout(module, data, "cpu") < 60
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_faster_device_is_chosen_and_both_are_named(monkeypatch):
    monkeypatch.setattr(
        accelerator, "seconds_per_rollout", lambda _, __, device, ___: {"cpu": 0.02, "cuda": 0.05}[device]
    )
    best, reason = choose_accelerator(*make(), devices=("cpu", "cuda"))
    assert best == "cpu"
    assert (
        reason == "cpu, the fastest at acting and learning (cpu 20.0, cuda 50.0 ms per rollout, without environments)"
    )


def test_without_a_choice_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(accelerator, "seconds_per_rollout", None)
    assert choose_accelerator(*make()) == ("cpu", "cpu, the only device available to PPO")


def test_a3c_whose_workers_share_memory_has_no_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "seconds_per_rollout", None)
    assert choose_accelerator(*make(A3C))[0] == "cpu"


def test_what_is_drawn_afterwards_is_what_would_have_been_drawn():
    module, data = make()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    seconds_per_rollout(module, data, "cpu")
    assert torch.equal(torch.rand(3), expected)


def test_the_command_line_says_what_was_chosen(cli, tiny, tmp_path, caplog):
    finished = cli(tmp_path, "fit", "--config", tiny, "--data.total_steps", 64, "--trainer.accelerator", "auto")
    assert finished.returncode == 0, finished.stderr
    assert "trainer.accelerator auto: cpu" in caplog.text
    assert "accelerator: cpu" in (tmp_path / "runs/tiny/version_0/config.yaml").read_text()


def test_episodes_that_a_gpu_knows_of_are_in_the_checkpoint(monkeypatch):
    """`meta` stands for the GPU."""
    module, _ = make()
    module.reports.episodes.add(torch.ones(2, device="meta"), torch.ones(2, device="meta"))
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_: torch.ones(x.shape))
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["pg_lightning"]["ranks"][0]["episode_returns"].tolist() == [1, 1]


def test_on_several_nodes_none_measures_for_itself(cli, tiny, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr("pg_lightning.cli.assembly.choose_accelerator", lambda *_: (chosen.append(1) or "cpu", ""))
    monkeypatch.setattr(Trainer, "fit", wraps(Trainer.fit)(lambda *_, **__: None))
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("NODE_RANK", "0")):
        monkeypatch.setenv(name, value)
    for nodes in (1, 2):
        options = ("--trainer.accelerator", "auto", "--trainer.devices", 1, "--trainer.num_nodes", nodes)
        finished = cli(tmp_path, "fit", "--config", tiny, *options)
        assert finished.returncode == 0, finished.stderr
    assert chosen == [1]
