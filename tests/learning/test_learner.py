"""The learner: every implementation takes the step that plain PyTorch takes, and the short call is the safe one."""

import copy
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch.plugins import MixedPrecision
from rollouts import BOX, DISCRETE, OBSERVATIONS, fit, make_rollout, weights_of

from pg_lightning import A2C, PPO, PolicyGradientModule
from pg_lightning.errors import UserError
from pg_lightning.learning import checkpoint_state, gradient
from pg_lightning.learning.gradient import FlatGradient, PerParameterGradient
from pg_lightning.losses import policy_gradient_loss, value_loss

SMALL = {"observation_space": OBSERVATIONS, "action_space": BOX, "hidden_sizes": [4], "lr": 0.01, "total_steps": 10**4}
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"eps": 1e-5}}
IMPLEMENTATIONS = {
    "flat": {},
    "by class path": {"optimizer": ADAM},
    "micro-batches": {"micro_batch_size": 7},
    "two optimizers": {"critic_optimizer": ADAM},
    "compiled": {"compile": True},
}


def make(algorithm=A2C, **options):
    torch.manual_seed(0)
    return algorithm(**{**SMALL, "optimizer": "adam", **options})


def by_plain_pytorch(rollouts, module, max_grad_norm=0.5):
    """The weights that A2C reaches with nothing but torch, from those of a module."""
    network = module.network
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-5)
    for rollout in rollouts:
        batch = module.targets(rollout, 1.0, False)
        pi, values = network(batch)
        loss = policy_gradient_loss(pi.log_prob(batch.actions), batch.advantages)
        loss = loss + 0.5 * value_loss(values, batch.returns)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()
    return weights_of(module)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_learner_steps_as_plain_pytorch_does(name):
    if name == "compiled" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    rollouts = [make_rollout(seed=seed) for seed in range(3)]
    expected = by_plain_pytorch(rollouts, make())
    module = make(**IMPLEMENTATIONS[name])
    fit(module, *rollouts)
    for key, value in weights_of(module).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_gradient_tensor_by_tensor_is_the_flat_one(monkeypatch):
    rollouts = [make_rollout(seed=seed) for seed in range(3)]
    flat = make(optimizer=ADAM)
    fit(flat, *rollouts)
    monkeypatch.setattr(gradient, "LARGE", 0)
    each = make(optimizer=ADAM)
    fit(each, *rollouts)
    assert isinstance(flat.learner.gradient, FlatGradient)
    assert isinstance(each.learner.gradient, PerParameterGradient)
    for (key, one), other in zip(weights_of(flat).items(), weights_of(each).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("memory", [None, "gru"])
def test_micro_batches_change_nothing_but_rounding(memory):
    options = {"memory": memory, "memory_size": 3, "num_minibatches": 1, "num_epochs": 3, "ent_coef": 0.1}
    together, apart = make(PPO, **options), make(PPO, micro_batch_size=11, **options)
    rollouts = [make_rollout(T=8, N=4, next_step=True, seed=seed) for seed in range(2)]
    seen = []
    loss = apart.loss
    apart.loss = lambda batch: seen.append(len(batch)) or loss(batch)
    for module in (together, apart):
        fit(module, *rollouts)
    assert max(seen) <= 11
    for (key, one), other in zip(weights_of(together).items(), weights_of(apart).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=key)


def test_an_optimizer_that_sees_matrices_gets_them():
    module = make(optimizer="torch.optim.Adafactor")
    before = weights_of(module)
    fit(module, make_rollout())
    assert isinstance(module.learner.gradient, gradient.PerParameterGradient)
    assert all(not np.array_equal(before[key], value) for key, value in weights_of(module).items())


class Guided(PolicyGradientModule):
    """As the guide to an algorithm of one's own has it."""

    def update(self, rollout):
        batch = self.targets(rollout, gae_lambda=0.95, normalize_advantage=True)
        self.learner.passes(self.loss, batch, 2, 2)
        return self.learner.mean_stats()


def test_the_step_of_an_algorithm_of_ones_own_is_compiled_where_that_is_asked_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: compiled.append(step) or step)
    eager = fit(make(Guided), make_rollout(), make_rollout(seed=1))
    assert compiled == []
    module = fit(make(Guided, compile=True), make_rollout(), make_rollout(seed=1))
    assert len(compiled) == 2  # targets and steps
    for name, weights in weights_of(eager).items():
        np.testing.assert_allclose(weights_of(module)[name], weights, rtol=0, atol=1e-5)


def test_a_limit_stops_before_the_step_that_it_is_asked_of():
    module = make(PPO, target_kl=1e-9, num_epochs=5, num_minibatches=1)
    before = weights_of(module)
    steps = []
    descend = module.learner.descend
    module.learner.descend = lambda batch: steps.append(1) or descend(batch)
    fit(module, make_rollout())
    assert steps == [1]
    assert any(not np.array_equal(before[key], value) for key, value in weights_of(module).items())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimizer": "torch.optim.LBFGS"}, r"^model.optimizer: LBFGS evaluates the loss by itself"),
        (
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}},
            r"^model.optimizer: the learning rate",
        ),
        (
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr_": 1}}},
            r"^model.optimizer: cannot make SGD",
        ),
        ({"optimizer": "sgd"}, r"^model.optimizer: cannot import 'sgd'.*short names are adam, rmsprop"),
        ({"optimizer": "torch.nn.Linear"}, r"^model.optimizer: Linear is no torch.optim.Optimizer"),
        ({"critic_optimizer": "sgd"}, r"^model.critic_optimizer: cannot import 'sgd'"),
        ({"lr_schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, r"^model.lr_schedule: use plateau"),
        ({"lr_schedule": "torch.optim.SGD"}, r"^model.lr_schedule: torch.optim.SGD is no torch.optim.lr_scheduler"),
        ({"lr_schedule": "cosine"}, r"^model.lr_schedule: cannot import 'cosine'.*constant, linear, plateau"),
        ({"micro_batch_size": 0}, r"^model.micro_batch_size: must be at least 1"),
    ],
    ids=str,
)
def test_what_is_no_optimizer_or_schedule_is_refused_in_one_line(options, complaint):
    with pytest.raises(UserError, match=complaint):
        make(**options)


def test_a_scheduler_by_class_path_steps_once_per_update():
    schedule = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}}
    module = make(PPO, action_space=DISCRETE, lr_schedule=schedule, critic_lr=0.02, num_epochs=3, num_minibatches=1)
    rates = []
    descend = module.learner.descend

    def watched(batch):
        rates.append([group["lr"] for x in module.learner.rates.optimizers for group in x.param_groups])
        return descend(batch)

    module.learner.descend = watched
    fit(module, *(make_rollout(actions=DISCRETE, seed=seed) for seed in range(3)))
    assert rates == [[0.01, 0.02]] * 3 + [[0.005, 0.01]] * 3 + [[0.0025, 0.005]] * 3


def test_two_optimizers_have_the_rates_of_their_groups():
    module = make(PPO, critic_optimizer="rmsprop", critic_lr=0.02, lr_schedule="linear", total_steps=200)
    fit(module, make_rollout(), make_rollout(seed=1))
    actor, critic = module.learner.rates.optimizers
    assert type(actor) is torch.optim.Adam
    assert type(critic) is torch.optim.RMSprop
    assert critic.param_groups[0]["lr"] == pytest.approx(2 * actor.param_groups[0]["lr"])
    assert 0 < actor.param_groups[0]["lr"] < 0.01


def test_spaces_without_a_vector_form_are_refused():
    with pytest.raises(UserError, match="has no vector form"):
        make(observation_space=spaces.Text(3))


@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_a_module_can_be_copied_after_training(algorithm):
    module = fit(make(algorithm), make_rollout())
    copied = copy.deepcopy(module)
    assert all(
        np.array_equal(x, y) for x, y in zip(weights_of(module).values(), weights_of(copied).values(), strict=True)
    )


def test_the_explained_variance_is_that_of_all_rows_whatever_the_micro_batches():
    seen = []
    for size in (None, 16):
        module = make(A2C, micro_batch_size=size)
        module.update = lambda rollout, update=module.update: seen.append(update(rollout)) or seen[-1]
        fit(module, make_rollout(T=11))
    together, apart = (stats["train/explained_variance"].item() for stats in seen)
    assert apart == pytest.approx(together, rel=1e-4)


def test_two_optimizers_are_refused_where_the_loss_is_scaled_for_one():
    module = make(critic_optimizer="rmsprop")
    with pytest.raises(UserError, match=r"^model.critic_optimizer: 16-mixed"):
        fit(module, make_rollout(), plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])


def test_another_schedule_than_that_of_the_checkpoint_is_refused_where_it_has_a_state():
    falling = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}
    module = fit(make(lr_schedule=falling), make_rollout())
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    checkpoint_state.restore(make(lr_schedule=falling), checkpoint, fits=True)
    checkpoint_state.restore(make(), checkpoint, fits=False)
    for other in ("constant", "plateau", {**falling, "init_args": {"step_size": 2}}):
        with pytest.raises(UserError, match=r"^model.lr_schedule: the checkpoint was trained with"):
            checkpoint_state.restore(make(lr_schedule=other), checkpoint, fits=True)
    constant = {"state_dict": module.state_dict()}
    fit(make(), make_rollout()).on_save_checkpoint(constant)
    checkpoint_state.restore(make(lr_schedule="linear"), constant, fits=True)


def test_hyper_parameters_of_a_subclass_stay_in_the_checkpoint():
    module = fit(make(), make_rollout())
    checkpoint = {"hyper_parameters": {"note": 1}}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["hyper_parameters"]["note"] == 1
    assert checkpoint["hyper_parameters"]["lr"] == 0.01
