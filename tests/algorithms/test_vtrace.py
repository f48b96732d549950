"""V-trace: targets by hand and by the sum of the paper, n-step advantages without lag, and the right mean with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rollouts import DISCRETE, OBSERVATIONS, discrete_or_box, fit, make_rollout, weights_of

from pg_lightning import A2C, PPO, VTrace
from pg_lightning.errors import UserError
from pg_lightning.returns import gae, vtrace

SMALL = {"observation_space": OBSERVATIONS, "hidden_sizes": [4], "lr": 0.01, "total_steps": 10**4}


def make(algorithm=VTrace, action_space=DISCRETE, **options):
    torch.manual_seed(0)
    return algorithm(**SMALL, action_space=action_space, **options)


def random_rows(T=7, N=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, next_values, log_ratios = torch.randn(4, T, N, generator=generator, dtype=torch.float64)
    ends = torch.rand(2, T, N, generator=generator) < 0.15
    terminated, truncated = ends[0], ends[1] & ~ends[0]
    goes_on = ~(terminated | truncated)
    next_values[:-1] = torch.where(goes_on[:-1], values[1:], next_values[:-1])
    return rewards, values, next_values, log_ratios, terminated, truncated, torch.ones(T, N, dtype=torch.bool)


def by_the_paper(rewards, values, next_values, log_ratios, terminated, truncated, gamma, lam, max_rho, max_c):
    """v_s = V(s) + Σ_t γ^(t−s) (Π c_i) δ_t, one sum for each row (eq. 1)."""
    T, N = rewards.shape
    ratio = log_ratios.exp()
    rho, c = ratio.clamp(max=max_rho), lam * ratio.clamp(max=max_c)
    follows = next_values * ~terminated
    delta = rho * (rewards + gamma * follows - values)
    v = values.clone()
    for n in range(N):
        for s in range(T):
            weight = 1.0
            for t in range(s, T):
                v[s, n] += weight * delta[t, n]
                if terminated[t, n] or truncated[t, n]:
                    break
                weight *= gamma * c[t, n].item()
    return v


@pytest.mark.parametrize(("lam", "max_rho", "max_c"), [(1.0, 1.0, 1.0), (0.8, 2.0, 0.7), (1.0, float("inf"), 1.0)])
def test_targets_are_the_sums_of_the_paper(lam, max_rho, max_c):
    rows = random_rows()
    advantages, targets = vtrace(*rows, 0.9, lam, max_rho, max_c)
    expected = by_the_paper(*rows[:6], 0.9, lam, max_rho, max_c)
    torch.testing.assert_close(targets, expected)
    rewards, values, next_values, log_ratios, terminated, truncated, _ = rows
    goes_on = ~(terminated | truncated)
    follows = next_values.clone()
    follows[:-1] = torch.where(goes_on[:-1], expected[1:], next_values[:-1])
    rho = log_ratios.exp().clamp(max=max_rho)
    torch.testing.assert_close(advantages, rho * (rewards + 0.9 * follows * ~terminated - values))


def test_two_steps_by_hand():
    rewards, values, next_values = (torch.tensor([[x], [y]]) for x, y in ((1.0, 2.0), (0.5, 1.0), (1.0, 4.0)))
    log_ratios = torch.tensor([[2.0], [0.5]]).log()
    no, yes = torch.zeros(2, 1, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    advantages, targets = vtrace(rewards, values, next_values, log_ratios, no, no, yes, gamma=0.5)
    # δ_1 = 0.5 (2 + 0.5 · 4 − 1) = 1.5, v_1 = 2.5; δ_0 = 1 (1 + 0.5 · 1 − 0.5) = 1, v_0 = 0.5 + 1 + 0.5 · 1.5 = 2.25
    assert targets.flatten().tolist() == [2.25, 2.5]
    # A_1 = 0.5 (2 + 0.5 · 4 − 1); A_0 = 1 (1 + 0.5 · 2.5 − 0.5)
    assert advantages.flatten().tolist() == [1.75, 1.5]


def test_without_lag_they_are_the_n_step_returns():
    rewards, values, next_values, _, terminated, truncated, valid = random_rows()
    rows = (rewards, values, next_values)
    advantages, targets = vtrace(*rows, torch.zeros_like(values), terminated, truncated, valid, 0.9)
    n_step = gae(*rows, terminated, truncated, valid, 0.9, 1.0)
    torch.testing.assert_close(targets, values + n_step)
    torch.testing.assert_close(advantages, n_step)


def test_rows_that_are_not_valid_have_no_advantage_and_do_not_reach_others():
    rows = [x.clone() for x in random_rows()]
    valid = rows[-1]
    rows[4][2] = True  # an end in every environment
    valid[3] = False
    before = vtrace(*rows, 0.9)[0]
    for x in rows[:4]:
        x[3] = 1e3
    after = vtrace(*rows, 0.9)[0]
    assert (after[3] == 0).all()
    torch.testing.assert_close(after[:3], before[:3])
    with pytest.raises(ValueError, match="one shape"):
        vtrace(rows[0][:2], *rows[1:], 0.9)


@discrete_or_box
def test_without_lag_the_update_is_that_of_a2c(actions):
    rollouts = [make_rollout(actions=actions, seed=seed) for seed in range(3)]
    one, other = make(action_space=actions), make(A2C, action_space=actions)
    for module in (one, other):
        fit(module, *rollouts)
    for (name, value), expected in zip(weights_of(one).items(), weights_of(other).values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_with_lag_it_is_another():
    rollouts = [make_rollout(actions=DISCRETE, seed=seed) for seed in range(2)]
    late = [replace(rollout, log_probs=torch.full_like(rollout.rewards, -0.5)) for rollout in rollouts]
    one, other = make(), make()
    fit(one, *rollouts)
    fit(other, *late)
    assert any(not np.allclose(x, y) for x, y in zip(weights_of(one).values(), weights_of(other).values(), strict=True))


def test_actions_of_another_policy_give_the_gradient_of_this_one():
    """A bandit whose actions μ has drawn: with ρ̄ = ∞ the mean over them is the exact policy gradient."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    pays = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    log_pi = logits.log_softmax(0)
    exact = torch.autograd.grad((log_pi.exp() * pays).sum(), logits, retain_graph=True)[0]
    zeros, over = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    log_ratios = (log_pi.detach() - behaviour.log()).unsqueeze(0)
    arguments = (pays.unsqueeze(0), zeros, zeros, log_ratios, over, ~over, over, 0.9, 1.0)

    def gradient(max_rho):
        advantages = vtrace(*arguments, max_rho)[0][0]
        return torch.autograd.grad((behaviour * advantages * log_pi).sum(), logits, retain_graph=True)[0]

    torch.testing.assert_close(gradient(float("inf")), exact)
    assert not torch.allclose(gradient(1.0), exact, atol=1e-3)  # truncation trades variance for bias


def test_rollouts_of_any_older_policy_are_learned_from_and_none_of_a_later_one():
    module, stale = make(), make_rollout(actions=DISCRETE)
    stale.log_probs = torch.full_like(stale.rewards, -1.4)
    module.progress.updates = module.progress.previous = 5
    module.progress.expect(replace(stale, policy_version=2), module.corrects_any_lag)
    with pytest.raises(RuntimeError, match="off-policy"):
        module.progress.expect(replace(stale, policy_version=6), module.corrects_any_lag)
    with pytest.raises(RuntimeError, match="off-policy"):
        module.progress.expect(replace(stale, policy_version=2, log_probs=None), module.corrects_any_lag)
    with pytest.raises(RuntimeError, match="off-policy"):
        module.progress.expect(replace(stale, policy_version=2), PPO.corrects_any_lag)


@pytest.mark.parametrize("field", ["gae_lambda", "max_rho", "max_c"])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(UserError, match=rf"^model.{field}: must be"):
        make(**{field: -1.0})
