"""`fit --ckpt_path last`: a run that was interrupted ends as if it had not been, byte for byte."""

import shutil

import pytest
from interruptions import Interrupted, differences, interrupt_at

TOY = "pg_lightning.envs.toy:pg_lightning/"
WHOLE = ("--data.whole_episodes", "true")


def algorithm(name, *more):
    return ("--model", f"pg_lightning.algorithms.{name}", *more)


PLAIN = ("--model.lr_schedule", "constant")
# of the TINY config, PPO in CartPole with all that is normalised
KINDS = {
    "PPO": (),
    "next step": ("--data.autoreset_mode", "next_step"),
    "disabled": ("--data.autoreset_mode", "disabled"),
    "async": ("--data.backend", "async"),
    "async, next step": ("--data.backend", "async", "--data.autoreset_mode", "next_step"),
    "vector": ("--data.backend", "vector"),
    "overlap": ("--data.overlap", "true"),
    "LSTM": ("--model.memory", "lstm"),
    "GRU, shared, next step": (
        "--model.memory", "gru", "--model.shared_torso", "true", "--data.autoreset_mode", "next_step"
    ),
    "values": ("--model.normalize_values", "true", "--model.target_kl", "0.01", "--model.kl_penalty", "1"),
    "Box2D": ("--data.env_id", "LunarLander-v3"),
    "MuJoCo": ("--data.env_id", "HalfCheetah-v5"),
    "Pendulum": ("--data.env_id", "Pendulum-v1", "--model.head", "beta"),
    "masks": ("--data.env_id", TOY + "MaskedReward-v0"),
    "cue": ("--data.env_id", TOY + "Recall-v0", "--model.memory", "gru"),
    "wrappers": (
        "--data.wrappers", '[{"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 3}}]'
    ),
    "plateau": ("--model.lr_schedule", "plateau"),
    "16 bits": ("--trainer.precision", "bf16-mixed"),
    "epochs": ("--trainer.limit_train_batches", "3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it(kind, train, tmp_path):
    whole = train(tmp_path / "whole", *KINDS[kind])
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(stopped, *KINDS[kind], *interrupt_at(6))
    resumed = train(stopped, *KINDS[kind], "--ckpt_path", "last")
    assert resumed == stopped / "runs/tiny/version_0"
    assert differences(whole, resumed) == []


# Of the 11 updates of the config, evaluations come after the 4th, 7th and 10th, and after the last.
@pytest.mark.parametrize("update", [3, 5, 7, 11])
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_checkpoint_may_be_of_any_update_and_before_its_evaluation(update, overlap, train, tmp_path):
    whole = train(tmp_path / "whole", "--data.overlap", overlap)
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(stopped, "--data.overlap", overlap, *interrupt_at(update, save=True))
    assert differences(whole, train(stopped, "--data.overlap", overlap, "--ckpt_path", "last")) == []

