"""Every estimator against the exact gradient, on decision processes small enough to enumerate all trajectories.

A policy that is linear in one-hot observations is a table. The gradients are those that the modules compute
themselves, in `gradient_step`. The losses average over the B rows of a rollout, so B / episodes times −∇L is the
estimate of ∇J. Two things are compared with the enumeration: the exact expectation over all rollouts of one episode,
and the mean over many sampled rollouts of many episodes.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from doubles import GradientOnly
from gymnasium import spaces
from scipy import stats

from pg_lightning.algorithms import A2C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline
from pg_lightning.rollout import Rollout

GAMMA = 0.7
SIGNIFICANCE = 1e-4


class Trajectories(NamedTuple):
    """All trajectories of a process, M of up to T steps; `[M, T]` but for the last."""

    states: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    next_states: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    valid: torch.Tensor
    dynamics: torch.Tensor  # [M] probability of the trajectory, given its actions

    @property
    def end(self) -> int:
        """The state that stands for the end; those below it are the states of the process."""
        return int(self.states.max())

    @property
    def lengths(self) -> torch.Tensor:
        return self.valid.sum(1)


def enumerate_trajectories(start, transitions, rewards, noise=0.0, limit=None) -> Trajectories:
    """Follows every start, action, next state and reward (± noise, evens) to the end or to the time limit."""
    end, num_actions = len(start), len(transitions[0])
    going, finished = [((), p, s) for s, p in enumerate(start) if p], []
    while going:
        steps, p, s = going.pop()
        for a, s2, e in product(range(num_actions), range(end + 1), (-noise, noise) if noise else (0.0,)):
            q = p * transitions[s][a][s2] / (2 if noise else 1)
            cut = limit is not None and len(steps) + 1 == limit
            longer = (*steps, (s, a, rewards[s][a][s2] + e, s2, s2 == end, cut, True))
            if q:
                finished.append((longer, q)) if s2 == end or cut else going.append((longer, q, s2))
    T = max(len(steps) for steps, _ in finished)
    nothing = (end, 0, 99.0, end, False, False, False)  # rows that are not valid hold a reward that must not count
    columns = zip(*(zip(*steps, *[nothing] * (T - len(steps)), strict=True) for steps, _ in finished), strict=True)
    dtypes = (torch.int64, torch.int64, torch.float64, torch.int64, torch.bool, torch.bool, torch.bool)
    tensors = [torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)]
    return Trajectories(*tensors, torch.tensor([q for _, q in finished], dtype=torch.float64))


def random_process(seed, allowed, num_actions):
    """Transitions to the allowed next states of every state, and rewards whose size differs from state to state."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 1.0, (len(allowed), num_actions, len(allowed) + 1)) * np.array(allowed)[:, None]
    return weights / weights.sum(-1, keepdims=True), rng.normal(1.0, 2.0, weights.shape)


# State s leads to a later one or to the end (the last column): V is a table, and every episode terminates.
FORWARD = [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
forward = enumerate_trajectories([0.7, 0.3, 0.0], *random_process(3, FORWARD, 3), noise=0.5)
tiny = enumerate_trajectories([0.0, 0.6, 0.4], *random_process(3, FORWARD, 3))
# States that are seen again, and a time limit that the policy does not see.
limited = enumerate_trajectories([0.6, 0.4], *random_process(5, [[1, 1, 1], [1, 1, 1]], 2), limit=3)


# What a policy can expect of a process.


def actor_parameters(module):
    return [module.network.actor_head.linear.weight, module.network.actor_head.linear.bias]


def exact_policy(module):
    """Copies of the actor's parameters, and the table log π `[S + 1, A]` of them."""
    weight, bias = (p.detach().clone().requires_grad_() for p in actor_parameters(module))
    return [weight, bias], (weight.T + bias).log_softmax(-1)


def probabilities(process, log_pi):
    return process.dynamics * (log_pi[process.states, process.actions] * process.valid).sum(1).exp()


def flat_gradient(scalar, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters)])


def objective(process, log_pi, gamma=GAMMA):
    """J, the expected discounted return from the first state."""
    returns = (process.rewards * process.valid * discounts(process, gamma)).sum(1)
    return (probabilities(process, log_pi) * returns).sum()


def gradient_of_the_objective(process, module, gamma=GAMMA):
    """∇J, through the probabilities of all trajectories: the score function has no part in it."""
    parameters, log_pi = exact_policy(module)
    return flat_gradient(objective(process, log_pi, gamma), parameters)


def expected_score(process, module, weights):
    """E[ Σ_t w_t ∇log π(a_t|s_t) ] for weights `[M, T]` of the steps of all trajectories."""
    parameters, log_pi = exact_policy(module)
    scores = (weights * process.valid * log_pi[process.states, process.actions]).sum(1)
    return flat_gradient((probabilities(process, log_pi).detach() * scores).sum(), parameters)


def advantages(process, v, gae_lambda, rows=9, gamma=GAMMA):
    """A_t = Σ_k (γλ)^(k−t) δ_k over the steps k >= t among the first `rows`, for values v `[S + 1]`."""
    result = torch.zeros_like(process.rewards)
    for m, length in enumerate(process.lengths.tolist()):
        for t in range(min(length, rows)):
            for k in range(t, min(length, rows)):
                following = 0.0 if process.terminated[m, k] else v[process.next_states[m, k]]
                delta = process.rewards[m, k] + gamma * following - v[process.states[m, k]]
                result[m, t] += (gamma * gae_lambda) ** (k - t) * delta
    return result


def rewards_to_go(process, gamma=GAMMA):
    return advantages(process, torch.zeros(process.end + 1), 1.0, gamma=gamma)


def exact_values(process, module):
    """V of every state that is not the end: E[ G_t | s_t = s ]. For the end a number that nobody should ask for."""
    p = probabilities(process, exact_policy(module)[1]).detach()[:, None].expand_as(process.valid)
    returns, v = rewards_to_go(process), torch.full((process.end + 1,), 50.0, dtype=torch.float64)
    for s in range(process.end):
        here = process.valid & (process.states == s)
        v[s] = (p * returns)[here].sum() / p[here].sum()
    return v


def discounts(process, gamma=GAMMA):
    """γ^t `[T]`, by which the theorem weighs step t."""
    return gamma ** torch.arange(process.rewards.shape[1], dtype=torch.float64)


# What a module makes of it.


class Recorded:
    """Writes down −∇L for the actor and the critic instead of stepping."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.actor_gradients, self.critic_gradients = [], []

        self.learner = GradientOnly.instead_of(self.learner, self.record)

    def record(self, loss, batch):
        critic = self.network.parameter_groups()[1]
        actor = actor_parameters(self)
        gradients = torch.autograd.grad(-loss, actor + critic)
        self.actor_gradients.append(torch.cat([g.flatten() for g in gradients[: len(actor)]]))
        self.critic_gradients.append(torch.cat([g.flatten() for g in gradients[len(actor) :]] or [torch.zeros(1)]))


def tabular(algorithm, process=forward, critic=None, **options):
    """A module whose policy is far from uniform and whose critic is arbitrary, unless it is given."""
    torch.manual_seed(4)
    module = type("Recorded" + algorithm.__name__, (Recorded, algorithm), {})(
        observation_space=spaces.Box(0.0, 1.0, (process.end + 1,)),
        action_space=spaces.Discrete(int(process.actions.max()) + 1),
        hidden_sizes=[],
        **{"gamma": GAMMA, "normalize_advantage": False, **options},
    ).double()
    for p in module.network.parameters():
        torch.nn.init.normal_(p, std=0.7)
    if critic is not None:
        with torch.no_grad():
            module.network.critic_head.weight.copy_(critic)
            module.network.critic_head.bias.zero_()
    return module


def critic_of(module):
    """V of every state, and of the end."""
    head = module.network.critic_head
    return (head.weight[0] + head.bias).detach()


def rollout_of(process, index, in_a_row=False, rows=9) -> Rollout:
    """A rollout of chosen trajectories: one per environment, or one after the other in a single environment.

    Only the first `rows` steps of each are in it. What follows a truncated episode is in `final_obs` alone.
    """
    chosen = Trajectories(*(x[index] for x in process))
    rows = min(rows, chosen.states.shape[1])
    fields = {name: x[:, :rows].T for name, x in chosen._asdict().items() if name != "dynamics"}
    timesteps = torch.arange(rows)[:, None] * fields["valid"]
    last_states = chosen.states[:, rows] if rows < chosen.states.shape[1] else torch.full((len(index),), process.end)
    if in_a_row:
        keep = fields["valid"].T.flatten()
        timesteps = timesteps.T.flatten()[keep][:, None]
        fields = {name: x.T.flatten()[keep][:, None] for name, x in fields.items()}
        last_states = last_states[-1:]
    one_hot = torch.eye(process.end + 1, dtype=torch.float64)
    cut = (fields["truncated"] & ~fields["terminated"]).flatten().nonzero()[:, 0]
    return Rollout(
        obs=one_hot[torch.cat([fields["states"], last_states[None]])],
        actions=fields["actions"],
        rewards=fields["rewards"],
        terminated=fields["terminated"],
        truncated=fields["truncated"],
        valid=fields["valid"],
        timesteps=timesteps,
        final_obs=one_hot[fields["next_states"].flatten()[cut]],
        final_rows=cut,
        episode_returns=torch.zeros(0),
        episode_lengths=torch.zeros(0),
        policy_version=0,
        env_steps=int(fields["valid"].sum()),
    )


def estimate(module, process, index, **layout):
    """The module's estimate of ∇J from some trajectories, `[P]`."""
    rollout = rollout_of(process, torch.as_tensor(index), **layout)
    module.update(rollout)
    return module.actor_gradients[-1] * rollout.env_steps / len(index)


def all_estimates(module, process, episodes=1, **layout):
    """The probability of every rollout of so many episodes, `[R]`, and the estimate that it leads to, `[R, P]`."""
    p = probabilities(process, exact_policy(module)[1]).detach()
    rollouts = list(product(range(len(p)), repeat=episodes))
    estimates = torch.stack([estimate(module, process, index, **layout) for index in rollouts])
    return torch.stack([p[list(index)].prod() for index in rollouts]), estimates


def expectation(module, process, episodes=1, **layout):
    p, estimates = all_estimates(module, process, episodes, **layout)
    return p @ estimates


def variance(module, process):
    """The sum of the variances of all components of the estimate from one episode."""
    p, estimates = all_estimates(module, process)
    return (p @ (estimates - p @ estimates).square()).sum().item()


def sampled_estimates(module, process, rollouts=300, episodes=32, seed=0):
    """Estimates from sampled rollouts, `[R, P]`; every other rollout has all its episodes in one environment."""
    p = probabilities(process, exact_policy(module)[1]).detach().numpy()
    drawn = np.random.default_rng(seed).choice(len(p), (rollouts, episodes), p=p / p.sum())
    return torch.stack([estimate(module, process, index, in_a_row=bool(r % 2)) for r, index in enumerate(drawn)])


def p_value(estimates, exact, process):
    """Of Hotelling's test that the mean of the estimates is the exact one.

    Logits are redundant. What is left out, the last action and the end and the biases, follows from the rest.
    """
    num_actions = int(process.actions.max()) + 1

    def free(x):
        weight = x[..., : num_actions * (process.end + 1)].unflatten(-1, (num_actions, process.end + 1))
        return weight[..., :-1, :-1].flatten(-2)

    error = free(estimates.mean(0) - exact)
    covariance = torch.cov(free(estimates).T) / len(estimates)
    return float(stats.chi2.sf(error @ torch.linalg.solve(covariance, error), len(error)))


def assert_equal(actual, exact):
    torch.testing.assert_close(actual, exact, rtol=1e-6, atol=1e-6)


def assert_far(actual, exact):
    """The two differ by a good part of what they are."""
    assert (actual - exact).norm() > 0.05 * exact.norm()


# The oracle itself.


@pytest.mark.parametrize("process", [forward, tiny, limited], ids=["forward", "tiny", "limited"])
def test_the_exact_gradient_is_that_of_finite_differences_and_of_every_form_of_the_theorem(process):
    module = tabular(REINFORCE, process)
    assert probabilities(process, exact_policy(module)[1]).sum().item() == pytest.approx(1)
    exact = gradient_of_the_objective(process, module)
    numeric, h = torch.zeros_like(exact), 1e-6
    flat = torch.cat([p.detach().flatten() for p in actor_parameters(module)])
    for i in range(len(flat)):
        for sign in (1, -1):
            moved = flat.clone()
            moved[i] += sign * h
            weight, bias = moved.split([p.numel() for p in actor_parameters(module)])
            log_pi = (weight.view_as(actor_parameters(module)[0]).T + bias).log_softmax(-1)
            numeric[i] += sign * objective(process, log_pi) / (2 * h)
    torch.testing.assert_close(exact, numeric, rtol=1e-6, atol=1e-7)
    returns = rewards_to_go(process)
    assert_equal(expected_score(process, module, returns[:, :1].expand_as(returns)), exact)
    assert_equal(expected_score(process, module, returns * discounts(process)), exact)
    assert_far(expected_score(process, module, returns), exact)


def test_the_exact_values_solve_the_bellman_equation():
    module = tabular(REINFORCE)
    v = exact_values(forward, module)
    p = probabilities(forward, exact_policy(module)[1]).detach()
    for s in range(forward.end):
        here = forward.valid & (forward.states == s)
        following = torch.where(forward.terminated, 0.0, v[forward.next_states])
        weights = p[:, None].expand_as(here)[here]
        backup = (weights * (forward.rewards + GAMMA * following)[here]).sum() / weights.sum()
        assert v[s].item() == pytest.approx(backup.item())


# REINFORCE.

UNBIASED = {
    "whole return": {"causal": False},
    "reward-to-go": {"discount_objective": True},
    "whole return, batch mean": {"causal": False, "baseline": "batch_mean"},
    "reward-to-go, batch mean": {"discount_objective": True, "baseline": "batch_mean"},
    "whole return, moving average": {"causal": False, "baseline": "moving_average"},
    "reward-to-go, moving average": {"discount_objective": True, "baseline": "moving_average"},
}
in_every_unbiased_way = pytest.mark.parametrize("options", UNBIASED.values(), ids=UNBIASED)


@pytest.mark.parametrize("process", [forward, limited], ids=["terminated", "time limit"])
@in_every_unbiased_way
def test_reinforce_expects_the_exact_gradient_of_the_discounted_return_within_the_time_limit(process, options):
    module = tabular(REINFORCE, process, baseline_decay=1.0, **options)
    module.baseline_value.fill_(3.0)  # and there it stays, so that rollouts have no order
    assert_equal(expectation(module, process), gradient_of_the_objective(process, module))


@in_every_unbiased_way
def test_reinforce_expects_the_exact_gradient_from_two_episodes_too(options):
    module = tabular(REINFORCE, tiny, baseline_decay=1.0, **options)
    module.baseline_value.fill_(3.0)
    exact = gradient_of_the_objective(tiny, module)
    assert_equal(expectation(module, tiny, episodes=2), exact)
    assert_equal(expectation(module, tiny, episodes=2, in_a_row=True), exact)


@in_every_unbiased_way
def test_the_mean_over_sampled_rollouts_is_the_exact_gradient_of_the_discounted_return(options):
    module = tabular(REINFORCE, **options)
    estimates, exact = sampled_estimates(module, forward), gradient_of_the_objective(forward, module)
    assert p_value(estimates, exact, forward) > SIGNIFICANCE
    # The test would have seen an error of a seventh, and that of leaving out γ^t.
    assert p_value(estimates, 1.15 * exact, forward) < SIGNIFICANCE
    assert p_value(estimates, expected_score(forward, module, rewards_to_go(forward)), forward) < SIGNIFICANCE


def test_a_baseline_that_holds_its_own_episode_would_be_seen(monkeypatch):
    monkeypatch.setattr("pg_lightning.algorithms.reinforce.mean_of_other_episodes", lambda g, *_: g.mean().expand_as(g))
    module = tabular(REINFORCE, tiny, causal=False, baseline="batch_mean")
    assert_far(expectation(module, tiny, episodes=2), gradient_of_the_objective(tiny, module))


@pytest.mark.parametrize("baseline", ["none", "batch_mean", "moving_average"])
def test_without_discount_objective_reinforce_expects_another_vector_than_the_gradient(baseline):
    """E[ Σ_t G_t ∇log π ]: returns are discounted, the states that they are seen from are not."""
    module = tabular(REINFORCE, baseline=baseline)
    stated, exact = expected_score(forward, module, rewards_to_go(forward)), gradient_of_the_objective(forward, module)
    assert_far(stated, exact)
    if baseline == "none":
        assert_equal(expectation(module, forward), stated)
    estimates = sampled_estimates(module, forward)
    assert p_value(estimates, stated, forward) > SIGNIFICANCE
    assert p_value(estimates, exact, forward) < 1e-9


def test_without_discounting_reinforce_expects_the_exact_gradient_as_it_is():
    module = tabular(REINFORCE, gamma=1.0)
    assert_equal(expectation(module, forward), gradient_of_the_objective(forward, module, gamma=1.0))


def test_baselines_lower_the_variance():
    def spread(algorithm, **options):
        return sampled_estimates(tabular(algorithm, **options), forward).var(0).sum().item()

    plain = spread(REINFORCE)
    assert spread(REINFORCE, causal=False) > 1.05 * plain
    assert spread(REINFORCE, baseline="batch_mean") < 0.85 * plain
    assert spread(REINFORCE, baseline="moving_average") < 0.85 * plain
    learned = exact_values(forward, tabular(REINFORCEBaseline))
    assert spread(REINFORCEBaseline, critic=learned, vf_coef=0.0) < 0.7 * plain


# With a critic. What it is fitted to is another matter: vf_coef = 0 would not change the actor's gradient.


@pytest.mark.parametrize("algorithm", [REINFORCEBaseline, A2C])
def test_returns_minus_any_critic_expect_what_returns_alone_do_and_exact_values_lower_the_variance(algorithm):
    arbitrary, plain = tabular(algorithm), tabular(REINFORCE)
    v = exact_values(forward, arbitrary)
    exact = tabular(algorithm, critic=v)
    stated = expected_score(forward, arbitrary, rewards_to_go(forward))
    for module in (arbitrary, exact):
        assert_equal(expectation(module, forward), stated)
    assert variance(exact, forward) < 0.8 * variance(plain, forward)
    assert variance(tabular(algorithm, critic=v + 10), forward) > 2 * variance(plain, forward)


def test_the_weights_of_the_discounted_objective_make_a_learned_baseline_unbiased():
    module = tabular(REINFORCEBaseline, discount_objective=True)
    exact = gradient_of_the_objective(forward, module)
    assert_equal(expectation(module, forward), exact)
    estimates = sampled_estimates(module, forward)
    assert p_value(estimates, exact, forward) > SIGNIFICANCE
    assert p_value(estimates, 1.2 * exact, forward) < SIGNIFICANCE


ACTOR_CRITICS = {
    "one step": (OneStepActorCritic, {}, 0.0),
    "A2C, lambda 0": (A2C, {"gae_lambda": 0.0}, 0.0),
    "A2C, lambda 0.5": (A2C, {"gae_lambda": 0.5}, 0.5),
    "A2C, lambda 1": (A2C, {"gae_lambda": 1.0}, 1.0),
    "PPO, lambda 0.5": (PPO, {"gae_lambda": 0.5, "num_epochs": 1, "num_minibatches": 1}, 0.5),
}
every_actor_critic = pytest.mark.parametrize(
    ("algorithm", "options", "gae_lambda"), ACTOR_CRITICS.values(), ids=ACTOR_CRITICS
)


@every_actor_critic
def test_with_the_exact_values_every_actor_critic_expects_what_returns_do(algorithm, options, gae_lambda):
    v = exact_values(forward, tabular(algorithm, **options))
    module = tabular(algorithm, critic=v, **options)
    stated = expected_score(forward, module, rewards_to_go(forward))
    assert_equal(expectation(module, forward), stated)
    assert_equal(expectation(module, forward, rows=2), expected_score(forward, module, advantages(forward, v, 1.0, 2)))


@every_actor_critic
def test_with_wrong_values_the_bias_is_that_of_the_bootstrap(algorithm, options, gae_lambda):
    module = tabular(algorithm, **options)
    v, returns = critic_of(module), rewards_to_go(forward)
    biased = expected_score(forward, module, advantages(forward, v, gae_lambda))
    unbiased = expected_score(forward, module, returns)
    (assert_equal if gae_lambda == 1 else assert_far)(biased, unbiased)
    assert_equal(expectation(module, forward), biased)
    if gae_lambda == 0.5:
        estimates = sampled_estimates(module, forward)
        assert p_value(estimates, biased, forward) > SIGNIFICANCE
        assert p_value(estimates, 1.2 * biased, forward) < SIGNIFICANCE


@every_actor_critic
def test_a_rollout_that_ends_before_its_episodes_bootstraps_from_its_last_observation(algorithm, options, gae_lambda):
    module = tabular(algorithm, critic=torch.tensor([1.0, -2.0, 6.0, 50.0]), **options)
    cut = advantages(forward, critic_of(module), gae_lambda, rows=2)
    assert_equal(expectation(module, forward, rows=2), expected_score(forward, module, cut))
    if gae_lambda > 0:
        whole = advantages(forward, critic_of(module), gae_lambda) * (torch.arange(3) < 2)
        assert_far(expected_score(forward, module, whole), expected_score(forward, module, cut))


@pytest.mark.parametrize("algorithm", [REINFORCEBaseline, A2C, OneStepActorCritic])
def test_a_time_limit_bootstraps_from_the_final_observation_where_there_is_a_critic(algorithm):
    module = tabular(algorithm, limited, critic=torch.tensor([20.0, -30.0, 500.0]))
    gae_lambda = 0.0 if algorithm is OneStepActorCritic else 1.0
    stated = expected_score(limited, module, advantages(limited, critic_of(module), gae_lambda))
    assert_equal(expectation(module, limited), stated)
    assert_equal(expectation(module, limited, in_a_row=True), stated)
    assert_far(stated, expected_score(limited, module, rewards_to_go(limited)))


@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_the_first_gradient_of_ppo_is_that_of_a2c(normalize_advantage):
    options = {"gae_lambda": 0.8, "normalize_advantage": normalize_advantage, "ent_coef": 0.1}
    a2c, ppo = tabular(A2C, **options), tabular(PPO, num_epochs=2, num_minibatches=1, **options)
    rollout = rollout_of(forward, torch.arange(40))
    for module in (a2c, ppo):
        module.update(rollout)
    assert len(ppo.actor_gradients) == 2
    assert_equal(ppo.actor_gradients[0], a2c.actor_gradients[0])
    assert_equal(ppo.critic_gradients[0], a2c.critic_gradients[0])
    assert a2c.critic_gradients[0].norm() > 0.1


@pytest.mark.parametrize("algorithm", [REINFORCEBaseline, OneStepActorCritic, A2C, PPO])
def test_the_loss_of_the_actor_does_not_move_the_critic(algorithm):
    module = tabular(algorithm, vf_coef=0.0)
    module.update(rollout_of(forward, torch.arange(20)))
    assert module.actor_gradients[0].norm() > 0.1
    assert (module.critic_gradients[0] == 0).all()


@pytest.mark.parametrize("algorithm", [REINFORCEBaseline, OneStepActorCritic, A2C])
def test_the_critic_follows_the_semi_gradient_of_its_error(algorithm):
    """−∇ of mean( (V(s) − target)² )/2 is mean( (target − V(s)) ∇V(s) ): the target is a number."""
    module = tabular(algorithm, vf_coef=0.5)
    errors = advantages(forward, critic_of(module), 0.0 if algorithm is OneStepActorCritic else 1.0)
    index = torch.arange(20)
    rollout = rollout_of(forward, index)
    module.update(rollout)
    rows, states = errors[index][forward.valid[index]], forward.states[index][forward.valid[index]]
    of_states = torch.zeros(forward.end + 1, dtype=torch.float64).index_add_(0, states, rows) / len(rows)
    assert_equal(module.critic_gradients[0], torch.cat([of_states, of_states.sum().view(1)]))


# Standardised: another length, almost the same direction.


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (REINFORCE, {}),
        (REINFORCE, {"causal": False}),
        (REINFORCE, {"baseline": "batch_mean"}),
        (REINFORCEBaseline, {}),
        (A2C, {}),
    ],
    ids=str,
)
def test_standardised_advantages_change_the_length_of_the_mean_gradient_and_hardly_its_direction(algorithm, options):
    plain, standardised = (tabular(algorithm, normalize_advantage=flag, **options) for flag in (False, True))
    returns = rewards_to_go(forward)
    weights = returns if options.get("causal", True) else returns[:, :1].expand_as(returns)
    stated = expected_score(forward, plain, weights)
    estimates = sampled_estimates(standardised, forward)
    assert torch.cosine_similarity(estimates.mean(0), stated, dim=0) > 0.97
    assert p_value(estimates, stated, forward) < 1e-9
    assert p_value(sampled_estimates(plain, forward), stated, forward) > SIGNIFICANCE


@pytest.mark.parametrize("algorithm", [REINFORCE, REINFORCEBaseline, OneStepActorCritic, A2C])
def test_standardised_gradients_do_not_depend_on_the_unit_of_rewards_and_raw_ones_are_proportional(algorithm):
    def gradient(scale, **options):
        critic = None if algorithm is REINFORCE else torch.zeros(forward.end + 1)
        module = tabular(algorithm, critic=critic, **options)
        scaled = forward._replace(rewards=forward.rewards * scale)
        return estimate(module, scaled, torch.arange(30))

    assert_equal(gradient(100.0, normalize_advantage=True), gradient(1.0, normalize_advantage=True))
    assert_equal(gradient(100.0), 100 * gradient(1.0))
