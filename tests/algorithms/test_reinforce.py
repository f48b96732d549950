"""REINFORCE and its pieces by hand, and that every option of the first four algorithms changes what is learned.

Two classic bugs have tests of their own names below: γ^t that starts at 1 instead of 0, and the return of the whole
episode used for every step where the reward-to-go was promised.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import on_step
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from rollouts import BOX, OBSERVATIONS, fit, make_rollout, options_of, same_weights, timesteps_of, weights_of

from pg_lightning.algorithms import A2C, PPO, REINFORCE, OneStepActorCritic, PolicyGradientModule, REINFORCEBaseline
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.returns import (
    episode_index,
    episode_return,
    gae,
    mean_of_other_episodes,
    reward_to_go,
    unfinished,
)
from pg_lightning.rollout import Batch
from pg_lightning.statistics import standardize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.* has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

YES, NO = True, False


def column(*numbers):
    """`[T, 1]`."""
    return torch.tensor(numbers)[:, None]


# Returns by hand: an episode of three steps, a row between episodes, an episode of two.

REWARDS = column(1.0, 2.0, 4.0, 99.0, 8.0, 16.0)
DONE = column(NO, NO, YES, NO, NO, YES)
VALID = column(YES, YES, YES, NO, YES, YES)
TIMESTEPS = column(0, 1, 2, 0, 0, 1)


def test_reward_to_go_by_hand():
    returns = reward_to_go(REWARDS, DONE, VALID, gamma=0.5)
    assert returns[:, 0].tolist() == [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4, 0, 8 + 0.5 * 16, 16]


def test_the_first_reward_of_a_return_is_not_discounted():
    """γ^t starts at 0: with γ = 0 a return is the step's own reward."""
    assert reward_to_go(REWARDS, DONE, VALID, gamma=0.0)[:, 0].tolist() == [1, 2, 4, 0, 8, 16]


def test_the_return_of_the_whole_episode_by_hand():
    returns = reward_to_go(REWARDS, DONE, VALID, gamma=0.5)
    assert episode_return(returns, TIMESTEPS, VALID)[:, 0].tolist() == [3, 3, 3, 0, 16, 16]


def test_episodes_are_numbered_over_environments_and_rows_that_are_not_valid_have_no_number():
    timesteps = torch.cat([TIMESTEPS, column(0, 0, 1, 2, 3, 0)], 1)
    valid = torch.cat([VALID, column(YES, YES, YES, YES, YES, NO)], 1)
    first, second = episode_index(timesteps, valid), [0, 2, 0, 3, 0, 3, 3, 1, 3, 1]
    # Which number an episode has is its own affair, but for 0 to E − 1.
    assert sorted(set(first.tolist())) == [0, 1, 2, 3]
    assert len(set(zip(first.tolist(), second, strict=True))) == 4


def test_the_mean_of_other_episodes_by_hand():
    returns, episodes = torch.tensor([1.0, 2.0, 10.0, 20.0, 60.0]), torch.tensor([0, 1, 0, 1, 2])
    others = [(2 + 20 + 60) / 3, (1 + 10 + 60) / 3, (2 + 20 + 60) / 3, (1 + 10 + 60) / 3, (1 + 10 + 2 + 20) / 4]
    np.testing.assert_allclose(mean_of_other_episodes(returns, episodes), others, rtol=1e-6)


def test_a_single_episode_has_no_others():
    assert mean_of_other_episodes(torch.tensor([3.0, 4.0]), torch.tensor([0, 0])).tolist() == [0, 0]


def test_rows_are_unfinished_from_the_last_start_on():
    assert not unfinished(DONE, VALID).any()
    open_end = column(NO, NO, YES, NO, NO, NO)
    assert unfinished(open_end, VALID)[:, 0].tolist() == [NO, NO, NO, NO, YES, YES]


def test_standardised_numbers_have_mean_0_and_deviation_1():
    np.testing.assert_allclose(standardize(torch.tensor([1.0, 2.0, 6.0])) * 7**0.5, [-2, -1, 3], rtol=1e-6)
    assert standardize(torch.tensor([5.0])).tolist() == [5]
    assert standardize(torch.tensor([5.0, 5.0])).tolist() == [0, 0]


# Returns in general.

shapes = st.tuples(st.integers(1, 12), st.integers(1, 4))
seeds, gammas = st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0])


def whole_episodes(T=12, N=3, seed=0, next_step=False, actions=BOX):
    """Random steps, of which the last row ends every episode that is not over."""
    rollout = make_rollout(actions=actions, T=T, N=N, seed=seed, next_step=next_step)
    terminated = rollout.terminated.clone()
    terminated[-1] |= rollout.valid[-1] & ~rollout.truncated[-1]
    return replace(
        rollout, terminated=terminated, timesteps=timesteps_of(terminated | rollout.truncated, rollout.valid)
    )


def padded(rollout, rows=4):
    """The same experience, before rows in which the environments wait: rewards and ends there are not its own."""
    N = rollout.rewards.shape[1]
    generator = torch.Generator().manual_seed(0)

    def longer(x, filling):
        return torch.cat([x, filling.to(x.dtype).expand(rows, *x.shape[1:])])

    ends = torch.rand(rows, N, generator=generator) < 0.5
    return replace(
        rollout,
        obs=longer(rollout.obs, torch.tensor(5.0)),
        actions=longer(rollout.actions, torch.tensor(1.0)),
        rewards=longer(rollout.rewards, torch.tensor(77.0)),
        terminated=longer(rollout.terminated, ends),
        truncated=longer(rollout.truncated, ~ends),
        valid=longer(rollout.valid, torch.tensor(False)),
        timesteps=longer(rollout.timesteps, torch.tensor(0)),
    )


def permuted(rollout, seed=0):
    """The same experience with its environments in another order."""
    N = rollout.rewards.shape[1]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(N))
    names = ("obs", "actions", "rewards", "terminated", "truncated", "valid", "timesteps")
    moved = {name: getattr(rollout, name)[:, order] for name in names}
    cut = (rollout.final_rows // N) * N + order.argsort()[rollout.final_rows % N]
    return replace(rollout, **moved, final_rows=cut)


@given(shapes, seeds, gammas, st.booleans())
def test_reward_to_go_is_gae_with_lambda_1_and_values_of_0(shape, seed, gamma, next_step):
    r = make_rollout(T=shape[0], N=shape[1], seed=seed, next_step=next_step)
    returns = reward_to_go(r.rewards, r.done, r.valid, gamma)
    zeros = torch.zeros_like(r.rewards)
    torch.testing.assert_close(returns, gae(r.rewards, zeros, zeros, r.terminated, r.truncated, r.valid, gamma, 1.0))


@given(shapes, seeds, gammas, st.booleans())
def test_returns_are_the_discounted_sums_within_each_episode(shape, seed, gamma, next_step):
    r = whole_episodes(*shape, seed=seed, next_step=next_step)
    returns = reward_to_go(r.rewards, r.done, r.valid, gamma)
    of_episode, numbers = episode_return(returns, r.timesteps, r.valid), torch.full_like(r.timesteps, -1)
    numbers[r.valid] = episode_index(r.timesteps, r.valid)
    assert not unfinished(r.done, r.valid).any()
    found = {}
    for n in range(shape[1]):
        for t in np.flatnonzero(r.valid[:, n]):
            start = t - int(r.timesteps[t, n])
            end = t + int(r.done[t:, n].int().argmax())
            rewards = r.rewards[:, n].tolist()
            expected = {s: sum(gamma ** (k - s) * rewards[k] for k in range(s, end + 1)) for s in (start, t)}
            assert returns[t, n].item() == pytest.approx(expected[t], abs=1e-4)
            assert of_episode[t, n].item() == pytest.approx(expected[start], abs=1e-4)
            assert found.setdefault((n, start), int(numbers[t, n])) == numbers[t, n]
    assert sorted(found.values()) == list(range(len(found)))
    assert (returns[~r.valid] == 0).all()
    assert (of_episode[~r.valid] == 0).all()


@given(seeds, st.integers(1, 20), st.integers(1, 5))
def test_the_mean_of_other_episodes_is_that_of_the_rows_that_are_not_ones_own(seed, rows, episodes):
    rng = np.random.default_rng(seed)
    returns = rng.normal(size=rows).astype(np.float32)
    numbers = np.unique(rng.integers(episodes, size=rows), return_inverse=True)[1]
    expected = [returns[numbers != e].mean() if (numbers != e).any() else 0.0 for e in numbers]
    actual = mean_of_other_episodes(torch.from_numpy(returns), torch.from_numpy(numbers))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


# What REINFORCE makes of it.


class WatchedSteps:
    """Keeps the samples of every gradient step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.batches: list[Batch] = []
        on_step(self.learner, before=self.batches.append)


def make(algorithm, **options):
    torch.manual_seed(0)
    watched = type("Watched" + algorithm.__name__, (WatchedSteps, algorithm), {})
    return watched(**{"observation_space": OBSERVATIONS, "action_space": BOX, "hidden_sizes": [4], **options})


def by_hand():
    """A rollout with the rewards above."""
    terminated, truncated = DONE & (REWARDS < 10), DONE & (REWARDS > 10)
    rollout = make_rollout(T=6, N=1)
    final_rows = torch.tensor([5])
    rollout = replace(rollout, rewards=REWARDS, terminated=terminated, truncated=truncated, final_rows=final_rows)
    return replace(rollout, valid=VALID, timesteps=TIMESTEPS, final_obs=torch.ones(1, 3), env_steps=5)


def weights_of_log_probs(**options):
    module = make(REINFORCE, gamma=0.5, **{"normalize_advantage": False, **options})
    return fit(module, by_hand()).batches[0].advantages.tolist()


def test_an_action_is_weighed_by_the_reward_to_go_and_not_by_the_return_of_the_whole_episode():
    assert weights_of_log_probs() == [5 - 2, 4, 4, 16, 16]
    assert weights_of_log_probs(causal=False) == [3, 3, 3, 16, 16]


def test_the_discounted_objective_weighs_step_t_by_gamma_to_the_t_and_the_first_by_1():
    assert weights_of_log_probs(discount_objective=True) == [3, 4 * 0.5, 4 * 0.25, 16, 16 * 0.5]


def test_the_discounted_objective_weighs_the_advantages_of_a_learned_baseline_likewise():
    plain, discounted = (
        fit(make(REINFORCEBaseline, gamma=0.5, normalize_advantage=False, discount_objective=flag), by_hand())
        for flag in (False, True)
    )
    weights = discounted.batches[0].advantages / plain.batches[0].advantages
    assert weights.tolist() == pytest.approx([1, 0.5, 0.25, 1, 0.5])


def test_a_time_limit_ends_the_returns_of_reinforce():
    """The second episode is cut in its last row: its return is what came before."""
    assert by_hand().truncated[5]
    assert weights_of_log_probs()[-1] == 16


def test_the_batch_mean_is_that_of_the_other_episode():
    assert weights_of_log_probs(baseline="batch_mean") == pytest.approx([3 - 16, 4 - 16, 4 - 16, *[16 - 11 / 3] * 2])
    assert weights_of_log_probs(baseline="batch_mean", causal=False) == [-13, -13, -13, 13, 13]


def test_standardised_returns_are_those_after_the_baseline_and_before_the_discount():
    raw = np.array(weights_of_log_probs(baseline="batch_mean"))
    expected = (raw - raw.mean()) / raw.std(ddof=1)
    options = {"baseline": "batch_mean", "normalize_advantage": True}
    np.testing.assert_allclose(weights_of_log_probs(**options), expected, rtol=1e-5)
    discounted = weights_of_log_probs(discount_objective=True, **options)
    np.testing.assert_allclose(discounted, expected * [1, 0.5, 0.25, 1, 0.5], rtol=1e-5)


def test_a_moving_average_is_that_of_the_rollouts_before():
    module = make(REINFORCE, gamma=0.5, normalize_advantage=False, baseline="moving_average", baseline_decay=0.75)
    rollouts = [replace(by_hand(), rewards=REWARDS * scale) for scale in (1.0, 3.0, 2.0)]
    fit(module, *rollouts)
    returns, mean = np.array([3, 4, 4, 16, 16]), 43 / 5
    after = [mean, 0.75 * mean + 0.25 * 3 * mean]
    for batch, scale, before in zip(module.batches, (1, 3, 2), (0, *after), strict=True):
        np.testing.assert_allclose(batch.advantages, scale * returns - before, rtol=1e-6)
    assert module.baseline_value.item() == pytest.approx(0.75 * after[1] + 0.25 * 2 * mean)


@pytest.mark.parametrize("baseline", ["none", "batch_mean"])
def test_other_baselines_leave_the_moving_average_alone(baseline):
    assert fit(make(REINFORCE, baseline=baseline), by_hand()).baseline_value.isnan()


def test_a_moving_average_that_standardising_would_cancel_is_refused():
    with pytest.raises(UserError, match=r"model.baseline.*model.normalize_advantage to false"):
        make(REINFORCE, baseline="moving_average")


def test_the_moving_average_is_in_the_checkpoint(tmp_path):
    def restored(checkpoint):
        module = make(REINFORCE, baseline="moving_average", normalize_advantage=False)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module

    through = fit(make(REINFORCE, baseline="moving_average", normalize_advantage=False), by_hand())
    through.trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["baseline_value"] == through.baseline_value
    other = replace(by_hand(), rewards=REWARDS * 3)
    resumed, forgetful = restored(checkpoint), restored(checkpoint)
    forgetful.baseline_value.fill_(torch.nan)
    advantages = [fit(module, other).batches[-1].advantages for module in (through, resumed, forgetful)]
    assert torch.equal(advantages[0], advantages[1])
    assert not torch.equal(advantages[0], advantages[2])


ALGORITHMS = [REINFORCE, REINFORCEBaseline, OneStepActorCritic, A2C]
VARIANTS = {
    "reward-to-go": (REINFORCE, {}),
    "whole return": (REINFORCE, {"causal": False}),
    "batch mean": (REINFORCE, {"baseline": "batch_mean"}),
    "moving average": (
        REINFORCE,
        {"baseline": "moving_average", "normalize_advantage": False, "discount_objective": True},
    ),
    "learned": (REINFORCEBaseline, {"discount_objective": True}),
    "one step": (OneStepActorCritic, {}),
    "a2c": (A2C, {"gae_lambda": 0.9}),
}


@pytest.mark.parametrize("change", [padded, permuted])
@pytest.mark.parametrize("next_step", [False, True], ids=["same-step", "next-step"])
@pytest.mark.parametrize(("algorithm", "options"), VARIANTS.values(), ids=VARIANTS)
def test_neither_rows_that_are_not_valid_nor_the_order_of_environments_change_what_is_learned(
    algorithm, options, next_step, change
):
    rollouts = [whole_episodes(seed=seed, next_step=next_step) for seed in range(2)]
    expected, actual = (
        weights_of(fit(make(algorithm, **options), *batch)) for batch in (rollouts, [change(r) for r in rollouts])
    )
    assert not same_weights(expected, weights_of(make(algorithm, **options)))
    for name, weight in expected.items():
        np.testing.assert_allclose(actual[name], weight, rtol=1e-4, atol=1e-6, err_msg=name)


# Refusals.


@pytest.mark.parametrize("algorithm", [REINFORCE, REINFORCEBaseline])
def test_episodes_that_do_not_end_are_refused_before_anything_is_learned_from_them(algorithm):
    rollout = whole_episodes()
    open_end = rollout.terminated.clone()
    open_end[-1, 1] = False
    assert not rollout.truncated[-1, 1]
    module = make(algorithm)
    before = weights_of(module)
    with pytest.raises(UserError, match="learns from whole episodes"):
        fit(module, replace(rollout, terminated=open_end))
    assert same_weights(before, weights_of(module))
    fit(make(algorithm), rollout)


@pytest.mark.parametrize("algorithm", [REINFORCE, REINFORCEBaseline])
def test_data_without_whole_episodes_are_refused_by_the_name_of_their_option(quiet_trainer, algorithm):
    data = RolloutDataModule("CartPole-v1", num_envs=1, num_steps=4, total_steps=4)
    module = make(algorithm, observation_space=data.observation_space, action_space=data.action_space)
    with pytest.raises(UserError, match=r"data\.whole_episodes: .*set it to true"):
        quiet_trainer().fit(module, datamodule=data)
    assert data.collector is None


@pytest.mark.parametrize("algorithm", [OneStepActorCritic, A2C])
def test_algorithms_that_bootstrap_take_episodes_that_do_not_end(algorithm):
    rollout = make_rollout()
    assert unfinished(rollout.done, rollout.valid).any()
    fit(make(algorithm), rollout)


def test_the_discounted_objective_of_whole_returns_is_refused():
    with pytest.raises(UserError, match=r"model\.discount_objective"):
        make(REINFORCE, causal=False, discount_objective=True)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match=r"model\.baseline_decay"):
        make(REINFORCE, baseline_decay=decay)


@pytest.mark.parametrize("option", ["critic_lr", "vf_coef", "shared_torso", "normalize_values"])
def test_reinforce_has_no_options_of_a_critic(option):
    with pytest.raises(TypeError, match=option):
        make(REINFORCE, **{option: 0.1})
    assert not any("critic" in name for name in make(REINFORCE).state_dict())


@pytest.mark.parametrize("gae_lambda", [-0.1, 1.1])
def test_a_lambda_out_of_range_is_refused(gae_lambda):
    with pytest.raises(UserError, match=r"model\.gae_lambda"):
        make(A2C, gae_lambda=gae_lambda)


# Options. Those that PPO has too are covered there; here are an algorithm's own and some that concern its update.

# For every option: another value than the default, and what else must be set for it to matter.
OPTIONS = {
    "causal": (False, {}),
    "baseline": ("batch_mean", {"normalize_advantage": False}),
    "baseline_decay": (0.5, {"baseline": "moving_average", "normalize_advantage": False}),
    "discount_objective": (True, {}),
    "gae_lambda": (0.5, {}),
    "optimizer": ("adam", {"optimizer": "rmsprop"}),
    "gamma": (0.5, {}),
    "ent_coef": (0.1, {}),
    "max_grad_norm": (0.01, {"optimizer": "rmsprop"}),
    "normalize_obs": (True, {}),
    "scale_rewards": (True, {}),
    "memory": ("gru", {}),
    "vf_coef": (2.0, {"optimizer": "rmsprop"}),
    "critic_lr": (0.001, {}),
    "normalize_values": (True, {}),
    "shared_torso": (True, {}),
}
OF_ALL = ["gamma", "ent_coef", "max_grad_norm", "normalize_obs", "scale_rewards", "memory", "optimizer"]
OF_CRITICS = ["vf_coef", "critic_lr", "normalize_values", "shared_torso"]
CASES = [
    (algorithm, name)
    for algorithm in ALGORITHMS
    for name in dict.fromkeys([*options_of(algorithm), *OF_ALL, *(OF_CRITICS if algorithm is not REINFORCE else [])])
]


def weights_after_training(algorithm, **options):
    module = make(algorithm, **{"lr": 0.05, **options})
    return weights_of(fit(module, *(whole_episodes(seed=seed) for seed in range(3))))


@pytest.mark.parametrize(("algorithm", "name"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_option_of_the_ladder_changes_what_is_learned(algorithm, name):
    own_default = name == "normalize_advantage" and not make(algorithm).normalize_advantage
    other, needs = (own_default, {}) if name == "normalize_advantage" else OPTIONS[name]
    default = weights_after_training(algorithm, **needs)
    assert same_weights(default, weights_after_training(algorithm, **needs)), "training must repeat itself"
    assert not same_weights(default, weights_after_training(algorithm, **{**needs, name: other}))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, PPO])
def test_the_tested_options_are_all_that_there_are(algorithm):
    """A new option of an algorithm must be given a second value above."""
    if algorithm is not PPO:
        assert set(options_of(algorithm)) <= {*OPTIONS, "normalize_advantage"}
    assert {*OF_ALL, *OF_CRITICS} <= set(options_of(PolicyGradientModule, ActorCritic))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_row_and_equal_rows_leave_the_weights_finite(algorithm):
    for T in (1, 3):
        rollout = whole_episodes(T=T, N=1)
        over = torch.ones(T, 1, dtype=torch.bool)
        same = replace(rollout, rewards=torch.ones(T, 1), obs=torch.ones(T + 1, 1, 3), terminated=over)
        same = replace(same, truncated=~over, timesteps=torch.zeros(T, 1, dtype=torch.int64))
        same = replace(same, final_obs=torch.zeros(0, 3), final_rows=torch.zeros(0, dtype=torch.int64))
        module = fit(make(algorithm, normalize_advantage=True), same)
        assert all(np.isfinite(weight).all() for weight in weights_of(module).values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rewarded_action_becomes_likelier(algorithm):
    """One-step episodes with a reward for the second action only."""
    rollout = whole_episodes(T=40, N=2, actions=spaces.Discrete(4))
    over = torch.ones_like(rollout.terminated)
    actions = torch.arange(80).view(40, 2) % 4
    rollout = replace(rollout, actions=actions, rewards=(actions == 1).float(), terminated=over, truncated=~over)
    rollout = replace(rollout, timesteps=torch.zeros_like(rollout.timesteps), final_rows=torch.zeros(0).long())
    rollout = replace(rollout, final_obs=torch.zeros(0, 3))
    module = make(algorithm, action_space=spaces.Discrete(4), lr=0.05)
    fit(module, *[rollout] * 5)
    log_probs = module.network.pi(rollout.obs[:-1].flatten(0, 1)).log_probs.mean(0)
    assert log_probs.argmax() == 1
    assert log_probs[1] > np.log(0.25) + 0.1
