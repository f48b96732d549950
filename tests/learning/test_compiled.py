"""Compiled gradient steps are the eager ones but for rounding, and what they cannot do is done eagerly."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from compilations import compiled_graphs, refuse_usual_calls, without_inductor
from gymnasium import spaces
from lightning.pytorch.callbacks import LambdaCallback
from rollouts import BOX, OBSERVATIONS, fit, make_rollout, weights_of
from torch import nn

from pg_lightning import A2C, PPO, TRPO, VTrace
from pg_lightning.learning import compiled_step, learner
from pg_lightning.learning.compiled import CompiledGradient
from pg_lightning.learning.compiled_step import CompiledStep

COMMON = {"observation_space": OBSERVATIONS, "hidden_sizes": [4], "lr": 0.01, "total_steps": 1000}
ADAM = "torch.optim.Adam"


@pytest.fixture
def counted(monkeypatch):
    """Counts gradient steps of compiled calls; without the compiler, whose graphs run operation by operation."""
    without_inductor(monkeypatch)
    counts = {"step": 0, "differentiate": 0}

    def counting(name, method):
        def call(self, *arguments):
            counts[name] += arguments[3] if len(arguments) > 3 else 1
            return method(self, *arguments)

        return call

    for owner, name in ((CompiledStep, "step"), (CompiledGradient, "differentiate")):
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return counts


def learned(algorithm, actions=BOX, rollouts=20, precision="64-true", **options):
    """The weights after some rollouts with actions of the policy's own, and the module."""
    torch.manual_seed(0)
    callbacks = options.pop("callbacks", [])
    module = algorithm(**{**COMMON, "action_space": actions, **options})
    generator = torch.Generator().manual_seed(5)

    def played(seed):
        rollout = make_rollout(seed=seed)
        actions, _ = module.network.sample(rollout.obs[:-1].flatten(0, 1), generator)
        return replace(rollout, actions=actions.unflatten(0, rollout.rewards.shape))

    fit(module, *(partial(played, seed) for seed in range(rollouts)), precision=precision, callbacks=callbacks)
    return weights_of(module), module


def assert_same(one, other, atol=1e-10):
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=atol, err_msg=name)


PPO_STEPS = {"num_epochs": 2, "num_minibatches": 3, "ent_coef": 0.01}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}}
LINEAR = {"clip_schedule": "linear", "ent_schedule": "linear", "lr_schedule": "linear"}
SHRINKING = {**LINEAR, "clip_range_vf": 0.1, "max_grad_norm": 0.1}
NORMALISERS = {"normalize_obs": True, "normalize_values": True, "scale_rewards": True}
CASES = {
    "a2c, gaussian, rmsprop": (A2C, {"ent_coef": 0.01, "state_dependent_std": True}),
    "a2c, bits, two optimizers": (
        A2C,
        {"actions": spaces.MultiBinary(3), "critic_optimizer": "adam", "critic_lr": 0.1},
    ),
    "vtrace, choices, AdamW": (VTrace, {"actions": spaces.MultiDiscrete([2, 3]), "optimizer": ADAMW}),
    "ppo, squashed, shrinking": (PPO, {**PPO_STEPS, "head": "squashed_gaussian", **SHRINKING}),
    "ppo, beta, penalty": (PPO, {**PPO_STEPS, "head": "beta", "kl_penalty": 0.5, "target_kl": 0.01}),
    "ppo, one choice, normalisers": (PPO, {**PPO_STEPS, "actions": spaces.Discrete(3), **NORMALISERS}),
    "ppo, unequal minibatches": (PPO, {"num_epochs": 2, "num_minibatches": 5}),
    "ppo, shared torso, layer norm": (PPO, {**PPO_STEPS, "shared_torso": True, "layer_norm": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_updates_in_float64_are_the_eager_ones(name, counted):
    algorithm, options = CASES[name]
    eager, _ = learned(algorithm, **options)
    assert counted == {"step": 0, "differentiate": 0}
    compiled, module = learned(algorithm, **options, compile=True)
    steps = 20 * options.get("num_epochs", 1) * options.get("num_minibatches", 1)
    assert counted == {"step": steps, "differentiate": 0}
    assert module.trainer.global_step == steps * len(module.learner.rates.optimizers)
    assert_same(compiled, eager)


def test_twenty_updates_of_compiled_code_are_the_eager_ones(monkeypatch):
    refuse_usual_calls(monkeypatch)
    options = {**PPO_STEPS, "clip_schedule": "linear", "num_minibatches": 2}
    compiled, _ = learned(PPO, **options, compile=True)
    assert_same(compiled, learned(PPO, **options)[0])


@pytest.mark.parametrize("name", ["ppo, squashed, shrinking", "ppo, one choice, normalisers"])
def test_twenty_updates_with_steps_in_parts_are_the_eager_ones(name, counted, monkeypatch):
    for module in (compiled_step, learner):
        monkeypatch.setattr(module, "MANY_ROWS", 10)
    monkeypatch.setattr(compiled_step, "PART_ROWS", range(2, 8))  # 16 rows in 4 parts
    algorithm, options = CASES[name]
    compiled, module = learned(algorithm, **options, compile=True)
    assert counted == {"step": module.trainer.global_step, "differentiate": 0}
    assert [rows for rows, _ in module.learner.steps] == [4] * 24
    eager, other = learned(algorithm, **options)
    assert_same(compiled, eager)
    for name, value in other.learner.mean_stats().items():
        torch.testing.assert_close(module.learner.mean_stats()[name], value, rtol=1e-9, atol=1e-12)


ALONE = {
    "a limit on the KL": (PPO, {**PPO_STEPS, "target_kl": 1e-4}),
    "micro-batches": (A2C, {"micro_batch_size": 7}),
    "an optimizer without a formula": (A2C, {"optimizer": "torch.optim.Adagrad"}),
    "an option without a formula": (A2C, {"optimizer": {"class_path": ADAM, "init_args": {"amsgrad": True}}}),
}


@pytest.mark.parametrize("name", ALONE)
def test_where_something_comes_between_the_gradient_alone_is_one_call(name, counted):
    algorithm, options = ALONE[name]
    eager, _ = learned(algorithm, **options, rollouts=5)
    compiled, _ = learned(algorithm, **options, rollouts=5, compile=True)
    assert counted["differentiate"] >= 5
    assert counted["step"] <= 5, "the first step of an update with a limit is free"
    assert_same(compiled, eager)


class Tied(nn.Module):
    """A torso one of whose parameters stands in two modules."""

    def __init__(self, observation_space):
        super().__init__()
        self.out_features = 3
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, obs):
        return self.second(self.first(obs).tanh()).tanh()


class Mixing(nn.Sequential):
    """A torso whose statistics are those of all rows."""

    def __init__(self, observation_space):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.Tanh())
        self.out_features = 4


@pytest.mark.parametrize("algorithm", [PPO, A2C, VTrace])
def test_a_torso_that_mixes_rows_sees_those_of_the_rollout_only(algorithm, counted):
    options = {"rollouts": 5, "torso": {"class_path": f"{__name__}.Mixing"}}
    assert_same(learned(algorithm, **options, compile=True)[0], learned(algorithm, **options)[0])


class Again(PPO):
    """Passes, and then one more step on all rows."""

    def update(self, rollout):
        batch = self.targets(rollout, self.gae_lambda, False)
        batch.old_log_probs = self.network.policy(batch).log_prob(batch.actions).detach()
        self.learner.passes(self.loss, batch, 1, 4)
        self.learner.step(self.loss, batch)
        self.noted = self.learner.mean_stats()
        return self.noted


def test_metrics_are_means_over_all_steps_whatever_call_they_were_in(counted):
    (_, eager), (_, compiled) = (learned(Again, rollouts=1, lr=0.1, compile=c) for c in (False, True))
    assert counted["step"] == 5
    for name, value in eager.noted.items():
        torch.testing.assert_close(compiled.noted[name], value, rtol=1e-9, atol=1e-12)


def test_the_trial_of_a_compiled_step_leaves_the_random_numbers_as_they_were(counted):
    torch.manual_seed(1)
    learned(A2C, rollouts=1)
    expected = torch.get_rng_state()
    learned(A2C, rollouts=1, compile=True)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_scheduler_that_changes_more_than_the_rate_is_heeded(counted):
    cycle = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 10}}
    options = {"optimizer": "adam", "lr_schedule": cycle, "rollouts": 5}
    compiled, _ = learned(A2C, **options, compile=True)
    assert counted["differentiate"] > 0
    assert_same(compiled, learned(A2C, **options)[0])


def test_minibatches_of_two_sizes_have_a_graph_each(counted):
    before = compiled_graphs()
    learned(PPO, num_epochs=1, num_minibatches=11, rollouts=3, compile=True)  # of 48 rows
    assert counted["step"] == 33
    assert compiled_graphs() == before + 2 + 2  # twice the targets


def test_a_number_that_changes_between_updates_is_heeded(counted):
    def raise_bonus(trainer, module):
        module.ent_coef += 0.5 * (module.progress.updates == 2)

    options = {**PPO_STEPS, "rollouts": 4}
    callback = LambdaCallback(on_train_batch_start=lambda trainer, module, *_: raise_bonus(trainer, module))
    compiled, _ = learned(PPO, **options, callbacks=[callback], compile=True)
    assert counted["step"] == 4 * 6
    assert_same(compiled, learned(PPO, **options, callbacks=[callback])[0])
    assert (
        np.abs(compiled["actor_head.linear.weight"] - learned(PPO, **options)[0]["actor_head.linear.weight"]).max()
        > 1e-3
    )


class Fading(A2C):
    """Takes several steps with a bonus that becomes smaller from step to step."""

    def update(self, rollout):
        batch = self.targets(rollout, self.gae_lambda, False)
        for step in range(4):
            self.ent_coef = 0.5 / (1 + step)
            self.learner.step(self.loss, batch)
        return self.learner.mean_stats()


def test_a_number_that_changes_within_an_update_is_heeded(counted):
    options = {"ent_coef": 0.5, "rollouts": 3, "optimizer": "adam"}
    compiled, _ = learned(Fading, **options, compile=True)
    assert counted["step"] == 12
    assert_same(compiled, learned(Fading, **options)[0])


class Smooth(A2C):
    """Penalises the gradient of the policy's mean with respect to the observation: a second derivative."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        slopes = torch.func.grad(lambda obs: self.network.act(obs)[0].mode.sum())(batch.obs)
        return loss + slopes.square().mean(), metrics


def test_a_loss_with_a_second_derivative_keeps_it(counted):
    options = {"precision": "32-true", "rollouts": 5, "log_std_init": 0.0}
    compiled, _ = learned(Smooth, **options, compile=True)
    assert_same(compiled, learned(Smooth, **options)[0], atol=1e-4)
    assert counted["step"] == 5


class SmoothLater(A2C):
    """A penalty that is small at first, because the logits are, and grows."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        slopes = torch.func.grad(lambda obs: self.network.act(obs)[0].logits.square().sum())(batch.obs)
        return loss + 0.1 * slopes.square().mean(), metrics


def test_a_second_derivative_that_grows_is_kept(counted):
    options = {"precision": "32-true", "rollouts": 20, "actions": spaces.Discrete(3), "lr": 0.05, "optimizer": "adam"}
    compiled, _ = learned(SmoothLater, **options, compile=True)
    assert counted["step"] == 20
    assert_same(compiled, learned(SmoothLater, **options)[0], atol=2e-3)


class Dial(A2C):
    """A loss with a number in a dictionary, which changes within an update."""

    def update(self, rollout):
        batch = self.targets(rollout, self.gae_lambda, False)
        for step in range(4):
            self.settings = {"bonus": 0.5 / (1 + step)}
            self.learner.step(self.loss, batch)
        return self.learner.mean_stats()

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        return loss - self.settings["bonus"] * self.network.policy(batch).entropy().mean(), metrics


def test_a_number_in_a_dictionary_is_heeded(counted):
    compiled, _ = learned(Dial, rollouts=3, optimizer="adam", compile=True)
    assert counted["step"] == 12
    assert_same(compiled, learned(Dial, rollouts=3, optimizer="adam")[0])


def test_tied_parameters_stay_tied(counted):
    options = {**PPO_STEPS, "torso": {"class_path": f"{__name__}.Tied"}}
    eager, _ = learned(PPO, rollouts=5, **options)
    compiled, _ = learned(PPO, rollouts=5, compile=True, **options)
    assert counted["step"] > 0
    assert_same(compiled, eager)


def act_on(when, action):
    return LambdaCallback(**{when: lambda trainer, module, *_, **__: action(module)})


@pytest.mark.parametrize("when", ["setup", "on_train_batch_start"])
def test_frozen_parameters_stay(when, counted):
    def freeze(module):
        if module.policy_version == (2 if when == "on_train_batch_start" else 0):
            module.network.actor_torso.requires_grad_(False)

    options = {"rollouts": 4, "optimizer": "adam"}
    eager, _ = learned(A2C, **options, callbacks=[act_on(when, freeze)])
    compiled, _ = learned(A2C, **options, compile=True, callbacks=[act_on(when, freeze)])
    assert counted["step"] == 4
    assert_same(compiled, eager)


class OwnOptimizer(A2C):
    def configure_optimizers(self):
        super().configure_optimizers()
        return torch.optim.SGD([x for group in self.learner.gradient.groups.values() for x in group], lr=0.1)


class Listed(A2C):
    """Its loss reaches parameters past the modules that hold them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.listed = [*self.network.parameters()]

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        return loss + 0.1 * sum(p.square().sum() for p in self.listed), metrics


class Counting(A2C):
    """Its loss changes a buffer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch):
        self.seen += 1
        return super().loss(batch)


class Remembering(A2C):
    """Its loss keeps a tensor."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        self.last = loss.detach()
        return loss, metrics


@pytest.mark.parametrize("algorithm", [OwnOptimizer, Listed, Counting, Remembering])
def test_a_loss_that_is_not_pure_learns_as_it_does_eagerly(algorithm, counted):
    eager, _ = learned(algorithm, rollouts=4)
    compiled, module = learned(algorithm, rollouts=4, compile=True)
    assert_same(compiled, eager)
    assert not hasattr(module, "seen") or module.seen == 4


def test_a_loss_that_is_not_pure_is_named_once(counted, caplog):
    learned(Remembering, rollouts=3, compile=True)
    assert sum("model.compile: only the loss is compiled" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_second_fit_is_compiled_for_its_own_torso(activation, counted):
    learned(A2C, rollouts=2, compile=True, torso={"class_path": f"{__name__}.Tied"})
    options = {"rollouts": 2, "torso": {"class_path": f"{__name__}.Layers", "init_args": {"activation": activation}}}
    assert_same(learned(A2C, compile=True, **options)[0], learned(A2C, **options)[0])


class Layers(nn.Sequential):
    def __init__(self, observation_space, activation):
        super().__init__(nn.Linear(3, 4), activation())
        self.out_features = 4


def test_what_changes_in_the_midst_of_a_run_is_heeded(counted):
    calls = []

    def change(module):
        if module.policy_version == 2:
            module.learner.max_grad_norm = 0.01
            module.network.critic_head.bias.register_hook(lambda grad: calls.append(1) or 2 * grad)

    eager, _ = learned(A2C, rollouts=5, callbacks=[act_on("on_train_batch_start", change)])
    compiled, _ = learned(A2C, rollouts=5, compile=True, callbacks=[act_on("on_train_batch_start", change)])
    assert len(calls) == 6
    assert counted["step"] == 2
    assert_same(compiled, eager)


def test_the_critic_of_trpo_too(counted):
    eager, _ = learned(TRPO, rollouts=5)
    compiled, _ = learned(TRPO, rollouts=5, compile=True)
    assert counted["step"] > 0
    assert_same(compiled, eager, atol=1e-8)


@pytest.mark.parametrize("hook", ["on_before_backward", "on_after_backward", "on_before_optimizer_step"])
def test_a_callback_that_listens_is_called_for_every_step(hook, counted):
    calls = []
    callback = LambdaCallback(**{hook: lambda *_: calls.append(1)})
    compiled, _ = learned(A2C, rollouts=3, compile=True, callbacks=[callback])
    assert len(calls) == 3
    assert counted["step"] == 0
    assert_same(compiled, learned(A2C, rollouts=3)[0])


def test_a_hook_on_a_gradient_is_called_for_every_step(counted):
    calls = []

    def watch(trainer, module):
        module.network.critic_head.weight.register_hook(lambda grad: calls.append(grad))

    learned(A2C, rollouts=3, compile=True, callbacks=[LambdaCallback(setup=lambda t, m, stage: watch(t, m))])
    assert len(calls) == 3
    assert counted == {"step": 0, "differentiate": 0}


def test_a_hook_on_an_optimizer_is_called_for_every_step(counted):
    calls = []

    def watch(trainer, module):
        trainer.optimizers[0].register_step_post_hook(lambda *_: calls.append(1))

    learned(A2C, rollouts=3, compile=True, callbacks=[LambdaCallback(on_train_start=watch)])
    assert len(calls) == 3
    assert counted["step"] == 0


def test_the_gradient_of_a_step_can_be_read_after_it(counted):
    norms = []

    def read(trainer, module, *_):
        norms.append(torch.cat([p.grad.flatten() for p in module.network.parameters()]).norm().item())

    for compile in (False, True):
        reading = LambdaCallback(on_train_batch_end=read)
        learned(A2C, rollouts=4, max_grad_norm=0.1, compile=compile, callbacks=[reading])
    assert norms[4:] == pytest.approx(norms[:4], rel=1e-9)
    assert counted["step"] == 4


def test_nothing_is_compiled_anew_while_rates_fall_and_logs_come_and_go(counted):
    before = compiled_graphs()
    learned(PPO, **PPO_STEPS, lr_schedule="linear", clip_schedule="linear", compile=True)
    # The steps, and the targets with one number of final observations and with any.
    assert compiled_graphs() - before == 3
