import copy
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compilations import compiled_graphs
from doubles import on_step
from gymnasium import spaces
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from rollouts import (
    BOX,
    DISCRETE,
    GROUPS,
    OBSERVATIONS,
    discrete_or_box,
    fit,
    make_rollout,
    one_step_episodes,
    options_of,
    same_weights,
    weights_of,
)
from torch.utils.data import IterableDataset

from pg_lightning.algorithms import A2C, PPO, PolicyGradientModule
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.rollout import Episode

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.* has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Watched(PPO):
    """PPO that writes down the weights before, and the gradient of, every gradient step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weights, self.gradients, self.clipped, self.losses, self.learning_rates = [], [], [], [], []
        self.batches, self.metrics = [], []
        on_step(self.learner, self.before_step, self.after_step)

    def targets(self, *args, **kwargs):
        self.batches.append(super().targets(*args, **kwargs))
        return self.batches[-1]

    def update(self, rollout):
        self.metrics.append(super().update(rollout))
        return dict(self.metrics[-1])

    def loss(self, batch):
        loss, stats = super().loss(batch)
        self.last_loss = loss.item()
        return loss, stats

    def before_step(self, batch):
        self.losses.append(self.last_loss)
        self.weights.append(weights_of(self))
        self.learning_rates.append([g["lr"] for x in self.learner.rates.optimizers for g in x.param_groups])

    def after_step(self):
        self.gradients.append({name: p.grad.double().numpy().copy() for name, p in self.network.named_parameters()})
        clipped = [p.grad.flatten() for group in self.learner.gradient.groups.values() for p in group]
        self.clipped.append(torch.cat(clipped).double().numpy().copy())


def make_ppo(**options) -> Watched:
    torch.manual_seed(0)
    small = {"observation_space": OBSERVATIONS, "action_space": BOX, "hidden_sizes": [4]}
    return Watched(**(small | options))


# The whole update against NumPy, for a network without hidden layers.


def linear_ppo(**options) -> Watched:
    """A linear actor and critic with weights that are not small."""
    module = make_ppo(hidden_sizes=[], max_grad_norm=float("inf"), **options)
    for p in module.network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module


def value(w, obs):
    return obs @ w["critic_head.weight"][0] + w["critic_head.bias"][0]


def log_prob_and_entropy(w, obs, actions):
    outputs = obs @ w["actor_head.linear.weight"].T + w["actor_head.linear.bias"]
    if "actor_head.log_std" in w:
        log_std = w["actor_head.log_std"]
        z = (actions - outputs) / np.exp(log_std)
        log_prob = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(1)
        return log_prob, (log_std + 0.5 + 0.5 * np.log(2 * np.pi)).sum()
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    return np.log(p[np.arange(len(p)), actions.astype(int)]), -(p * np.log(p)).sum(1).mean()


def targets(w, rollout, o):
    """Observations, actions, old log-probs, old values, advantages and returns of the valid rows."""
    r = {name: x.double().numpy() for name, x in vars(rollout).items() if isinstance(x, torch.Tensor)}
    T, N = r["rewards"].shape
    values, next_values = value(w, r["obs"][:-1]), value(w, r["obs"][1:])
    next_values.reshape(-1)[rollout.final_rows.numpy()] = value(w, r["final_obs"])
    advantages = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        delta = r["rewards"][t] + o.gamma * next_values[t] * (1 - r["terminated"][t]) - values[t]
        goes_on = (1 - r["terminated"][t]) * (1 - r["truncated"][t])
        advantages[t] = r["valid"][t] * (delta + o.gamma * o.gae_lambda * goes_on * advantages[t + 1])
    keep = rollout.valid.numpy()
    obs, actions = r["obs"][:-1][keep], r["actions"][keep]
    advantages, values = advantages[:-1][keep], values[keep]
    returns = advantages + values
    if o.normalize_advantage:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    return obs, actions, log_prob_and_entropy(w, obs, actions)[0], values, advantages, returns


def numpy_ppo(w, batch, o):
    """The loss and what PPO logs of it."""
    obs, actions, old_log_probs, old_values, advantages, returns = batch
    log_prob, entropy = log_prob_and_entropy(w, obs, actions)
    ratio, values = np.exp(log_prob - old_log_probs), value(w, obs)
    clipped_ratio = np.clip(ratio, 1 - o.clip_range, 1 + o.clip_range)
    policy_loss = -np.minimum(ratio * advantages, clipped_ratio * advantages).mean()
    errors = (values - returns) ** 2
    if o.clip_range_vf is not None:
        clipped_values = np.clip(values, old_values - o.clip_range_vf, old_values + o.clip_range_vf)
        errors = np.maximum(errors, (clipped_values - returns) ** 2)
    return policy_loss + o.vf_coef * errors.mean() - o.ent_coef * entropy, {
        "train/policy_loss": policy_loss,
        "train/value_loss": errors.mean(),
        "train/entropy": entropy,
        "train/approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "train/clip_fraction": (abs(ratio - 1) > o.clip_range).mean(),
    }


def numeric_gradient(w, loss, h=1e-6):
    gradient = {name: np.zeros_like(x) for name, x in w.items()}
    for name, x in w.items():
        for i in np.ndindex(x.shape):
            moved = [{**w, name: x.copy()} for _ in range(2)]
            moved[0][name][i] += h
            moved[1][name][i] -= h
            gradient[name][i] = (loss(moved[0]) - loss(moved[1])) / (2 * h)
    return gradient


VARIANTS = {
    "defaults": {},
    "value clipping": {"clip_range_vf": 0.05, "vf_coef": 1.0},
    "entropy bonus": {"ent_coef": 0.3, "vf_coef": 0.1},
    "raw advantages": {"normalize_advantage": False, "clip_range": 0.1},
    "TD error": {"gae_lambda": 0.0, "gamma": 0.5},
    "Monte-Carlo": {"gae_lambda": 1.0, "gamma": 1.0},
}


@discrete_or_box
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("next_step", [False, True], ids=["same-step", "next-step"])
def test_loss_gradient_and_logs_are_those_of_numpy_before_and_after_the_clip_bites(actions, options, next_step):
    module = linear_ppo(action_space=actions, num_epochs=2, num_minibatches=1, lr=0.3, **options)
    rollout = make_rollout(actions=actions, next_step=next_step)
    fit(module, rollout)
    batch = targets(module.weights[0], rollout, module)
    logged = []
    for weights, loss, gradient in zip(module.weights, module.losses, module.gradients, strict=True):
        expected, logs = numpy_ppo(weights, batch, module)
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)
        numeric = numeric_gradient(weights, lambda w: numpy_ppo(w, batch, module)[0])
        norm = np.sqrt(sum((g**2).sum() for g in numeric.values()))
        for name in numeric:
            np.testing.assert_allclose(gradient[name], numeric[name], rtol=1e-3, atol=1e-4 * max(norm, 1), err_msg=name)
        logged.append(logs | {"train/grad_norm": norm})
    first, second = (logs["train/clip_fraction"] for logs in logged)
    assert first == 0
    assert 0.1 < second < 1
    for name in logged[0]:
        expected = np.mean([logs[name] for logs in logged])
        assert module.metrics[0][name].item() == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def test_explained_variance_is_that_of_the_values_before_the_update():
    module, rollout = linear_ppo(num_epochs=3, lr=0.3), make_rollout()
    fit(module, rollout)
    _, _, _, old_values, _, returns = targets(module.weights[0], rollout, module)
    expected = 1 - np.var(returns - old_values) / np.var(returns)
    assert module.metrics[0]["train/explained_variance"].item() == pytest.approx(expected, abs=1e-4)


# The old policy.


@pytest.mark.parametrize("normalize_obs", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_old_log_probs_are_those_of_the_policy_that_acted(normalize_obs, precision):
    module = make_ppo(normalize_obs=normalize_obs, num_minibatches=2, lr=0.01, log_std_init=-3.0)
    acted_with, generator = [], torch.Generator().manual_seed(0)

    def play():
        rollout = make_rollout(T=1, N=20, seed=len(acted_with))
        with module.actor.acting():
            actions, _ = module.actor.act(rollout.obs[0], generator)
            acted_with.append(module.network.pi(rollout.obs[0]).log_prob(actions))
        return replace(rollout, actions=actions.unsqueeze(0))

    fit(module, play, play, play, precision=precision)
    for log_probs, samples in zip(acted_with, module.batches, strict=True):
        torch.testing.assert_close(samples.old_log_probs, log_probs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"normalize_obs": True}, {"shared_torso": True}], ids=str)
@discrete_or_box
def test_the_first_ratio_of_every_update_is_1(actions, options):
    module = make_ppo(action_space=actions, num_epochs=1, num_minibatches=1, lr=0.3, **options)
    fit(module, *(make_rollout(actions=actions, seed=seed) for seed in range(4)))
    for metrics in module.metrics:
        assert metrics["train/approx_kl"].item() < 1e-9
        assert metrics["train/clip_fraction"].item() == 0


def test_a_rollout_of_an_older_policy_is_refused():
    stale = make_rollout()
    module = make_ppo()
    module.progress.updates = 1
    with pytest.raises(RuntimeError, match="off-policy"):
        module.training_step(stale, 0)


# Advantages.


def gradient_of_the_actor(rewards, **options):
    module = linear_ppo(num_epochs=1, num_minibatches=1, **options)
    fit(module, one_step_episodes(rewards))
    return module.gradients[0]["actor_head.linear.weight"]


def test_normalised_advantages_do_not_depend_on_the_scale_of_rewards_but_raw_ones_do():
    rewards = torch.randn(50)  # scaled so far up that the critic's values do not count
    small, large = (gradient_of_the_actor(rewards * scale) for scale in (1e4, 1e6))
    np.testing.assert_allclose(small, large, rtol=1e-2)
    small, large = (gradient_of_the_actor(rewards * scale, normalize_advantage=False) for scale in (1e4, 1e6))
    np.testing.assert_allclose(100 * small, large, rtol=1e-2)


def test_advantages_are_normalised_over_the_rollout_before_it_is_cut_into_minibatches():
    module = make_ppo(num_minibatches=4)
    fit(module, make_rollout())
    (samples,) = module.batches
    assert samples.advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert samples.advantages.std().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("rewards", [[1.0], [1.0, 2.0], [1.0] * 3], ids=["one row", "two rows", "equal rows"])
def test_tiny_rollouts_leave_the_weights_finite(rewards):
    module = make_ppo(num_minibatches=4, ent_coef=0.01)
    before = weights_of(module)
    # Rows with one observation and one reward have one advantage, whose deviation is 0.
    fit(module, one_step_episodes(rewards, observations=torch.ones(len(rewards) + 1, 1, 3)))
    after = weights_of(module)
    assert all(np.isfinite(after[name]).all() for name in after)
    assert any((after[name] != before[name]).any() for name in after)
    assert len(module.losses) == 4 * len(rewards)


def test_a_rollout_without_a_valid_row_is_skipped():
    module = make_ppo()
    rollout = make_rollout(T=1)
    empty = replace(rollout, valid=torch.zeros(1, 3, dtype=torch.bool), env_steps=0)
    fit(module, empty)
    assert (module.losses, module.policy_version, module.env_steps) == ([], 0, 0)


def test_rewards_are_clipped_after_scaling_and_before_the_bootstrap():
    module = linear_ppo(scale_rewards=True, gamma=0.5, gae_lambda=0.0, normalize_advantage=False)
    torch.nn.init.zeros_(module.network.critic_head.weight)
    torch.nn.init.constant_(module.network.critic_head.bias, 1000.0)
    rollout = make_rollout(T=400, N=1)
    rewards, no = torch.zeros(400, 1), torch.zeros(400, 1, dtype=torch.bool)
    rewards[200] = 1.0
    fit(module, replace(rollout, rewards=rewards, terminated=no, truncated=no))
    advantages = module.batches[0].advantages
    assert advantages[200].item() == 10 + 0.5 * 1000 - 1000
    assert advantages[199].item() == 0.5 * 1000 - 1000


# Entropy, gradient norm, KL.


@discrete_or_box
def test_an_entropy_bonus_raises_the_entropy(actions):
    rollout = make_rollout(actions=actions)

    def entropy_of(module):
        return module.network.pi(rollout.obs.flatten(0, 1)).entropy().mean().item()

    options = {"action_space": actions, "lr": 0.01, "num_epochs": 10}
    before = entropy_of(linear_ppo(**options))
    without = entropy_of(fit(linear_ppo(ent_coef=0.0, **options), rollout))
    rewarded = entropy_of(fit(linear_ppo(ent_coef=1.0, **options), rollout))
    assert rewarded > before + 0.05
    assert rewarded > without + 0.05


@pytest.mark.parametrize("shared_torso", [False, True], ids=["separate", "shared"])
def test_the_gradient_of_actor_and_critic_is_clipped_as_one_vector(shared_torso):
    def gradient(bound):
        module = make_ppo(shared_torso=shared_torso, max_grad_norm=bound, num_epochs=1, num_minibatches=1)
        fit(module, make_rollout())
        return module.clipped[0], module.metrics[0]["train/grad_norm"]

    free, _ = gradient(float("inf"))
    clipped, logged = gradient(0.1)
    norm = np.linalg.norm(free)
    assert norm > 0.2
    np.testing.assert_allclose(clipped, free * 0.1 / norm, rtol=1e-4, atol=1e-7)
    assert logged.item() == pytest.approx(norm, rel=1e-5)
    np.testing.assert_array_equal(gradient(2 * norm)[0], free)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("shared_torso", [False, True], ids=["separate", "shared"])
def test_a_scaled_loss_moves_actor_and_critic_as_far_as_a_plain_one(shared_torso, optimizer):
    def changes(**trainer):
        module = make_ppo(shared_torso=shared_torso, lr=0.001, num_minibatches=1, optimizer=optimizer)
        before = weights_of(module)
        after = weights_of(fit(module, make_rollout(), **trainer))
        return [abs(after[name] - before[name]).max() for name in before]

    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    np.testing.assert_allclose(changes(plugins=[half]), changes(), rtol=0.1)


def test_an_update_ends_before_the_step_at_which_the_kl_passes_one_and_a_half_times_its_target():
    options = {"num_epochs": 30, "num_minibatches": 1, "lr": 0.02}
    free, stopped = linear_ppo(**options), linear_ppo(target_kl=0.02, **options)
    rollout = make_rollout()
    for module in (free, stopped):
        fit(module, rollout)
    batch = targets(free.weights[0], rollout, free)
    kls = [numpy_ppo(weights, batch, free)[1]["train/approx_kl"] for weights in free.weights]
    steps = next(i for i, kl in enumerate(kls) if kl > 1.5 * 0.02)
    assert len(free.losses) == 30
    assert 1 < steps < 30
    assert len(stopped.losses) == steps


@pytest.mark.parametrize("target_kl", [None, 0.01])
def test_a_penalty_on_the_kl_takes_the_place_of_the_clip(target_kl):
    """Its first gradient is that of the surrogate; from then on the penalty pulls back."""
    options = {"num_epochs": 8, "num_minibatches": 1, "lr": 0.02, "target_kl": target_kl}
    rollout = make_rollout()

    def distance(penalty):
        module = fit(linear_ppo(kl_penalty=penalty, **options), rollout)
        assert len(module.losses) == 8
        return module, numpy_ppo(weights_of(module), targets(module.weights[0], rollout, module), module)[1][
            "train/approx_kl"
        ]

    (weak, far), (strong, near) = distance(0.0), distance(20.0)
    assert near < 0.5 * far
    for name, gradient in weak.gradients[0].items():
        np.testing.assert_allclose(gradient, strong.gradients[0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("target_kl", "factor"), [(1e-6, 2.0), (1e6, 0.5), (None, 1.0)])
def test_the_penalty_is_doubled_after_too_long_a_way_and_halved_after_too_short_a_one(target_kl, factor):
    module = linear_ppo(kl_penalty=0.25, target_kl=target_kl, lr=0.01)
    fit(module, make_rollout(seed=0), make_rollout(seed=1))
    assert module.kl_penalty.item() == 0.25 * factor**2
    assert module.state_dict()["kl_penalty"].item() == 0.25 * factor**2


def test_an_early_stop_ends_one_update_and_not_the_training():
    module = linear_ppo(target_kl=0.001, lr=0.1, num_epochs=10, num_minibatches=1)
    fit(module, make_rollout(seed=0), make_rollout(seed=1))
    assert module.policy_version == 2
    assert 2 <= len(module.losses) < 20


# Schedules and the budget.


def rollouts_of_many_sizes():
    """Env steps are not rows: the next-step ones have rows that are not valid."""
    return [make_rollout(T=T, next_step=True, seed=T) for T in (4, 16, 8, 2)]


def env_steps_before(rollouts):
    assert any(r.env_steps < r.valid.numel() for r in rollouts)
    return np.cumsum([0, *(r.env_steps for r in rollouts)])[:-1]


@pytest.mark.parametrize("shared_torso", [False, True], ids=["separate", "shared"])
def test_linear_learning_rates_fall_with_the_env_steps(shared_torso):
    options = {"lr": 0.01, "critic_lr": 0.03, "lr_schedule": "linear", "shared_torso": shared_torso}
    module = make_ppo(total_steps=200, num_epochs=1, num_minibatches=1, **options)
    rollouts = rollouts_of_many_sizes()
    fit(module, *rollouts)
    remaining = 1 - env_steps_before(rollouts) / 200
    np.testing.assert_allclose(module.learning_rates, np.outer(remaining, [0.01, 0.03]))


def test_constant_learning_rates_stay():
    module = make_ppo(lr=0.01, critic_lr=0.03, num_epochs=1, num_minibatches=1)
    fit(module, *rollouts_of_many_sizes())
    assert module.learning_rates == [[0.01, 0.03]] * 4


def test_a_linear_clip_range_falls_with_the_env_steps():
    module = make_ppo(clip_range=0.3, clip_schedule="linear", total_steps=200)
    rollouts = rollouts_of_many_sizes()
    fit(module, *rollouts)
    logged = [metrics["train/clip_range"].item() for metrics in module.metrics]
    np.testing.assert_allclose(logged, 0.3 * (1 - env_steps_before(rollouts) / 200), rtol=1e-6)


def test_a_linear_entropy_bonus_falls_with_the_env_steps():
    module = make_ppo(ent_coef=0.3, ent_schedule="linear", total_steps=200)
    rollouts = rollouts_of_many_sizes()
    fit(module, *rollouts)
    logged = [metrics["train/ent_coef"].item() for metrics in module.metrics]
    np.testing.assert_allclose(logged, 0.3 * (1 - env_steps_before(rollouts) / 200), rtol=1e-6)


def test_schedules_go_on_after_a_resume(tmp_path):
    rollouts = rollouts_of_many_sizes()
    options = {"total_steps": 200, "lr": 0.01, "lr_schedule": "linear", "clip_schedule": "linear", "num_epochs": 1}
    first, resumed = make_ppo(**options), make_ppo(**options)
    fit(first, *rollouts[:3])
    first.trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    resumed.on_load_checkpoint(checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"])
    fit(resumed, rollouts[3])
    remaining = 1 - env_steps_before(rollouts)[3] / 200
    assert resumed.learning_rates[0][0] == pytest.approx(0.01 * remaining)
    assert resumed.metrics[0]["train/clip_range"].item() == pytest.approx(0.2 * remaining)


def fit_on_a_plateau(returns):
    """One update and one evaluation in turn; the learning rates of the updates."""
    module = make_ppo(lr=0.01, critic_lr=0.03, lr_schedule="plateau", num_epochs=1, num_minibatches=1)
    returns = iter(returns)

    class Evaluation(IterableDataset):
        def __iter__(self):
            yield Episode(torch.tensor([next(returns)]), torch.ones(1), False, {})

    fit(module, make_rollout(T=2), episodes=Evaluation(), max_epochs=9)
    return np.array(module.learning_rates)


@pytest.mark.parametrize("level", [100.0, 0.0, -100.0])
def test_learning_rates_are_halved_once_five_evaluations_have_not_risen(level):
    rates = fit_on_a_plateau([level] * 9)
    np.testing.assert_allclose(rates, [[0.01, 0.03]] * 6 + [[0.005, 0.015]] * 3)


@pytest.mark.parametrize("level", [0.0, -100.0])
def test_learning_rates_stay_while_returns_rise(level):
    rates = fit_on_a_plateau([level + i for i in range(9)])
    np.testing.assert_allclose(rates, [[0.01, 0.03]] * 9)


def test_training_stops_at_the_first_rollout_past_the_budget():
    rollouts = [make_rollout(T=10, seed=seed, next_step=True) for seed in range(5)]
    steps = np.cumsum([r.env_steps for r in rollouts]).tolist()
    module = make_ppo(total_steps=steps[1] + 1)
    fit(module, *rollouts, max_epochs=2)
    assert (module.env_steps, module.policy_version) == (steps[2], 3)


# Options.


class Widening(torch.nn.Module):
    """A torso of one's own."""

    def __init__(self, observation_space, times):
        super().__init__()
        self.times, self.out_features = times, times * observation_space.shape[0]

    def forward(self, obs):
        return obs.repeat(1, self.times)


COMMON_SPACES = {"observation_space": OBSERVATIONS, "action_space": BOX}
COMMON = {"observation_space": OBSERVATIONS, "action_space": BOX, "lr": 0.05, "num_epochs": 2, "num_minibatches": 2}

# For every option: another value than the default, and what else must be set for it to matter.
# They change how, are not the user's, or replace the network: tests/policies/test_own_policy.py.
NOT_LEARNED = {"compile", "micro_batch_size", "critic", "policy"}
OPTIONS = {
    "observation_space": (spaces.Box(-1.0, 1.0, (5,)), {}),
    "action_space": (DISCRETE, {}),
    "total_steps": (100, {}),
    "gamma": (0.9, {}),
    "lr": (0.01, {}),
    "critic_lr": (0.01, {}),
    "lr_schedule": ("linear", {"total_steps": 300}),
    "optimizer": ("rmsprop", {}),
    "critic_optimizer": ("rmsprop", {}),
    "max_grad_norm": (0.01, {}),
    "ent_coef": (0.1, {}),
    "vf_coef": (1.0, {}),
    "torso": ({"class_path": "test_ppo.Widening", "init_args": {"times": 2}}, {}),
    "hidden_sizes": ([5], {}),
    "activation": ("relu", {}),
    "layer_norm": (True, {}),
    "memory": ("gru", {}),
    "memory_size": (3, {"memory": "lstm"}),
    "shared_torso": (True, {}),
    "head": ("squashed_gaussian", {}),
    "log_std_init": (-0.5, {}),
    "state_dependent_std": (True, {}),
    "normalize_obs": (True, {}),
    "normalize_values": (True, {}),
    "obs_groups": ({"actor": ["policy"], "critic": ["policy"]}, {"observation_space": GROUPS}),
    "scale_rewards": (True, {}),
    "gae_lambda": (0.5, {}),
    "num_epochs": (3, {}),
    "num_minibatches": (3, {}),
    "clip_range": (0.1, {}),
    "clip_schedule": ("linear", {"total_steps": 300}),
    "ent_schedule": ("linear", {"total_steps": 300, "ent_coef": 0.1}),
    "clip_range_vf": (0.01, {}),
    "normalize_advantage": (False, {}),
    "target_kl": (0.001, {}),
    "kl_penalty": (1.0, {}),
}


def weights_after_training(**options):
    module = make_ppo(**(COMMON | options))
    spaces_of_it = options.get("observation_space", OBSERVATIONS), options.get("action_space", BOX)
    fit(module, *(make_rollout(*spaces_of_it, T=20, seed=seed) for seed in range(3)))
    return weights_of(module)


@pytest.mark.parametrize("name", sorted({*options_of(PolicyGradientModule, ActorCritic, PPO)} - NOT_LEARNED))
def test_every_option_changes_what_is_learned(name):
    assert name in OPTIONS, f"{name} is an option without a test: say in OPTIONS which other value it is to be given"
    other, needs = OPTIONS[name]
    default = weights_after_training(**needs)
    assert same_weights(default, weights_after_training(**needs)), "training must repeat itself for this test"
    assert not same_weights(default, weights_after_training(**needs, **{name: other}))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_compiled_loss_teaches_the_same(algorithm):
    """Over three rollouts, while ε shrinks."""

    def learn(**options):
        torch.manual_seed(0)
        shrinking = {"clip_schedule": "linear", "clip_range": 0.01, "num_minibatches": 1} if algorithm is PPO else {}
        module = algorithm(
            **COMMON_SPACES, hidden_sizes=[4], lr=0.01, ent_coef=0.01, total_steps=120, **shrinking, **options
        )
        rollouts = [make_rollout(seed=seed) for seed in range(3)]
        return weights_of(fit(module, *[replace(r, policy_version=k) for k, r in enumerate(rollouts)]))

    torch.compiler.reset()
    before = compiled_graphs()
    eager, compiled = learn(), learn(compile=True)
    # The step, and the targets with one number of final observations and with any.
    assert compiled_graphs() - before == 3
    for name in eager:
        np.testing.assert_allclose(compiled[name], eager[name], rtol=0, atol=2e-6)


def test_a_copy_of_a_module_to_be_compiled_learns_itself():
    module = copy.deepcopy(PPO(observation_space=OBSERVATIONS, action_space=BOX, hidden_sizes=[4], compile=True))
    torch.compiler.reset()
    before = weights_of(module)
    assert not same_weights(before, weights_of(fit(module, make_rollout())))


class Watching(Callback):
    """Looks at each gradient before the step, and forbids it."""

    def __init__(self):
        self.norms, self.backward_passes = [], 0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        grads = [p.grad for p in module.network.parameters()]
        self.norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        for grad in grads:
            grad.zero_()


def test_a_callback_sees_the_clipped_gradient_and_may_change_it():
    watching = Watching()
    module = make_ppo(max_grad_norm=0.1, num_epochs=1, num_minibatches=2)
    before = weights_of(module)
    after = weights_of(fit(module, make_rollout(), callbacks=[watching]))
    assert watching.norms == [pytest.approx(0.1, rel=1e-3)] * 2
    assert same_weights(before, after)


@pytest.mark.parametrize("watching", [[], [Watching()]], ids=["unwatched", "watched"])
def test_the_trainer_counts_steps_whether_or_not_anyone_watches_them(watching):
    counts = []
    ending = LambdaCallback(on_train_end=lambda trainer, _: counts.append(trainer.global_step))
    fit(make_ppo(num_epochs=3, num_minibatches=2), make_rollout(), callbacks=[ending, *watching])
    assert counts == [6]


@pytest.mark.parametrize("hook", ["on_before_backward", "on_after_backward"])
def test_hooks_around_a_backward_pass_are_called_where_there_are_any(hook):
    calls = []
    fit(
        make_ppo(num_epochs=1, num_minibatches=2),
        make_rollout(),
        callbacks=[LambdaCallback(**{hook: lambda *_: calls.append(1)})],
    )
    assert len(calls) == 2


@pytest.mark.parametrize(
    "data", [{"autoreset_mode": "next_step"}, {"backend": "vector"}, {"whole_episodes": True}], ids=str
)
def test_compiling_for_rollouts_of_ever_another_size_is_refused(data):
    module = make_ppo(compile=True)
    rollouts = RolloutDataModule("CartPole-v1", **data)
    module.trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(checkpoint_io=None), datamodule=rollouts)
    with pytest.raises(UserError, match=r"model.compile.*set it to false, or data.backend to sync"):
        module.setup("fit")


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"model.compile.*C\+\+ compiler.*false"):
        make_ppo(compile=True)


def test_strategies_that_split_a_model_over_processes_are_refused():
    module = make_ppo()
    module.trainer = SimpleNamespace(world_size=2, strategy=FSDPStrategy(), datamodule=None)
    with pytest.raises(UserError, match=r"trainer.strategy: .*with ddp, not FSDPStrategy"):
        module.setup("fit")


def test_a_layer_without_units_is_refused():
    with pytest.raises(UserError, match=r"model.hidden_sizes: must be at least 1, got 0"):
        make_ppo(hidden_sizes=[4, 0])


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        make_ppo(learning_rate=0.1)
