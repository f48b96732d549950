"""An update that is not finite ends the training in the same iteration, and nothing that it made is kept."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from run_files import load, read_metrics

from pg_lightning.algorithms import A2C, A3C, PPO, REINFORCE
from pg_lightning.errors import UserError

RUN = "runs/tiny/version_0"
A3C_OF_TWO = """
seed_everything: 1
trainer: {accelerator: cpu, strategy: hogwild, devices: 2}
model: {class_path: pg_lightning.algorithms.A3C, init_args: {hidden_sizes: [8]}}
data: {num_envs: 4, num_steps: 16, eval_every_steps: 200, eval_episodes: 3}
"""


def complaint(finished):
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr.splitlines()[-1]


def is_finite(checkpoint):
    states = [checkpoint["state_dict"], *checkpoint["optimizer_states"][0]["state"].values()]
    return all(tensor.isfinite().all() for state in states for tensor in state.values())


class Poison(Callback):
    """Makes a parameter NaN before the fourth update."""

    def __init__(self, name="actor_head"):
        self.name = name

    def on_train_batch_start(self, trainer, module, *_):
        if module.policy_version == 3:
            next(getattr(module.network, self.name).parameters()).data.fill_(math.nan)


def test_rewards_that_overflow_the_loss_leave_what_was_learned_before(cli, tiny, tmp_path):
    """Each of 4 environments takes its 200th step in the 13th rollout, after 768 env steps."""
    plain = ("--model.scale_rewards", "false", "--data.total_steps", 2000)
    said = complaint(cli(tmp_path, "fit", "--config", tiny, "--data.env_id", "odd_envs:Overpays-v0", *plain))
    assert said.startswith(
        "error: model.lr: training has diverged: in the update at env step 768 train/policy_loss is nan; lower model.lr"
    )
    run = tmp_path / RUN
    assert read_metrics(run)[-1]["step"] == 768
    checkpoint = load(run / "checkpoints/last.ckpt")
    assert checkpoint["pg_lightning"]["env_steps"] == 640
    assert is_finite(checkpoint)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_learning_rate_that_is_far_too_large_leaves_no_checkpoint(cli, tiny, tmp_path, overlap):
    options = ("--model.lr", "1e38", "--data.eval_every_steps", 1, "--data.overlap", overlap)
    said = complaint(cli(tmp_path, "fit", "--config", tiny, *options))
    assert said.startswith("error: model.lr: training has diverged: ")
    assert list(tmp_path.rglob("last.ckpt")) == []


@pytest.mark.parametrize(
    ("algorithm", "options", "name"),
    [
        (PPO, {}, "actor_head"),
        (PPO, {"num_epochs": 1}, "critic_head"),
        (A2C, {}, "actor_head"),
        (REINFORCE, {}, "actor_head"),
    ],
)
def test_nan_in_a_parameter_ends_training_in_the_same_iteration(fit, algorithm, options, name):
    """Before any callback hears of the update."""

    class Heard(Callback):
        updates = 0

        def on_train_batch_end(self, trainer, module, *_):
            self.updates += 1

        def on_validation_start(self, trainer, module):
            assert all(parameter.isfinite().all() for parameter in module.parameters())

    heard = Heard()
    whole = {"whole_episodes": algorithm is REINFORCE, "eval_every_steps": 64, "total_steps": 10_000}
    with pytest.raises(
        UserError, match=r"^model.lr: training has diverged: in the update at env step \d+ train/\w+ is nan"
    ):
        fit("CartPole-v1", whole, algorithm=algorithm, trainer={"callbacks": [Poison(name), heard]}, **options)
    assert heard.updates == 3


def test_parameters_that_overflow_in_a_step_with_a_finite_gradient_are_named(fit):
    with pytest.raises(UserError, match=r"at env step 0 the sum of the actor's parameters is -?(inf|nan)"):
        fit("CartPole-v1", algorithm=A2C, optimizer="adam", lr=1e39, critic_lr=1e-3)


def test_a_gradient_whose_norm_overflows_is_named(fit):
    """The clip would make an update of zeros of it."""

    class Steep(A2C):
        def loss(self, batch):
            loss, stats = super().loss(batch)
            return 1e30 * loss, stats

    with pytest.raises(UserError, match="at env step 0 train/grad_norm is inf"):
        fit("CartPole-v1", algorithm=Steep)


def test_a_policy_that_gives_nan_is_named_though_its_weights_are_finite(fit):
    class Overflows(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.network.actor_head.linear.weight.data.fill_(3e38)

    with pytest.raises(
        UserError, match=r"^model.lr: .* the policy gave a non-finite action to env 0 at step 0 of a roll"
    ):
        fit("Pendulum-v1", trainer={"callbacks": [Overflows()]})


def test_a_scaled_loss_whose_gradient_overflows_is_skipped_as_ever(fit):
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1e38))
    module = fit("CartPole-v1", trainer={"plugins": [half]}, max_grad_norm=math.inf)
    assert module.env_steps == 256
    assert half.scaler.get_scale() < 1e38


@pytest.mark.parametrize("options", [("--model.lr", "1e38"), ("--data.env_id", "odd_envs:Overpays-v0")])
def test_workers_that_share_weights_end_together(cli, tmp_path, options):
    """Of the checkpoints, those that worker 0 was writing as another worker met the fault are finite too."""
    (tmp_path / "tiny.yaml").write_text(A3C_OF_TWO)
    env = () if "--data.env_id" in options else ("--data.env_id", "CartPole-v1")
    said = complaint(cli(tmp_path, "fit", "--config", "tiny.yaml", *options, *env, "--data.total_steps", 10**6))
    assert said.startswith("error: model.lr: training has diverged: ")
    for path in tmp_path.rglob("*.ckpt"):
        assert is_finite(load(path))


def test_a_gradient_that_is_not_finite_never_reaches_the_shared_weights_and_moments(fit):
    class Watched(A3C):
        def loss(self, batch):
            loss, stats = super().loss(batch)
            return loss * (math.nan if self.policy_version == 2 else 1.0), stats

        def training_step(self, rollout, batch_idx):
            try:
                super().training_step(rollout, batch_idx)
            finally:
                moments = [moment for state in self.shared.moments.values() for moment in state.values()]
                assert all(tensor.isfinite().all() for tensor in [*self.shared.weights.values(), *moments])

    with pytest.raises(UserError, match="at env step 128 train/grad_norm is nan"):
        fit("CartPole-v1", algorithm=Watched)
