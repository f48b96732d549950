"""TRPO: the step is the natural gradient, it stays in the trust region, and the critic learns beside it."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rollouts import DISCRETE, OBSERVATIONS, discrete_or_box, fit, make_rollout, weights_of

from pg_lightning import TRPO
from pg_lightning.algorithms.trpo import conjugate_gradient
from pg_lightning.errors import UserError


def make(**options):
    torch.manual_seed(0)
    small = {"observation_space": OBSERVATIONS, "action_space": DISCRETE, "hidden_sizes": [4], "lr": 0.01}
    return TRPO(**{**small, **options})


def actor_of(module):
    return torch.nn.utils.parameters_to_vector(module.network.parameter_groups()[0]).detach().clone()


@pytest.mark.parametrize("steps", [5, 12])
def test_conjugate_gradients_solve_a_positive_definite_system_in_as_many_steps_as_it_has_rows(steps):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    A, b = root @ root.T + torch.eye(5), torch.randn(5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradient(lambda v: A @ v, b, steps), torch.linalg.solve(A, b))


def exact_natural_step(module, batch):
    """(F + damping)⁻¹ g, scaled to KL δ, with F the covariance of the score, by one gradient a state and action."""
    network, actor = module.network, module.network.parameter_groups()[0]
    states = batch.obs
    fisher = torch.zeros(sum(p.numel() for p in actor), dtype=torch.float64)
    fisher = torch.diag(fisher)
    for s in states:
        pi = network.pi(s.unsqueeze(0))
        probabilities = pi.log_probs.exp().detach()[0]
        for a, p in enumerate(probabilities):
            log_prob = network.pi(s.unsqueeze(0)).log_prob(torch.tensor([a]))
            score = torch.cat([g.flatten() for g in torch.autograd.grad(log_prob.sum(), actor)])
            fisher += p * torch.outer(score, score) / len(states)
    log_probs = network.policy(batch).log_prob(batch.actions)
    g = torch.cat([x.flatten() for x in torch.autograd.grad((log_probs * batch.advantages).mean(), actor)])
    damped = fisher + module.cg_damping * torch.eye(len(g), dtype=torch.float64)
    direction = torch.linalg.solve(damped, g)
    return direction * (2 * module.target_kl / (direction @ damped @ direction)).sqrt()


def test_the_first_step_is_the_exact_natural_gradient():
    module = make(target_kl=1e-6, cg_steps=50, cg_damping=1e-2, hidden_sizes=[]).double()
    with torch.no_grad():
        module.network.actor_head.linear.weight.copy_(torch.randn(module.network.actor_head.linear.weight.shape))
    rollout = make_rollout(actions=DISCRETE, T=6, N=2)
    rollout.obs, rollout.rewards = rollout.obs.double(), rollout.rewards.double()
    rollout.final_obs = rollout.final_obs.double()
    batch = module.targets(rollout, 0.97, True)
    expected, before = exact_natural_step(module, batch), actor_of(module)
    stats = module.natural_step(batch)
    torch.testing.assert_close(actor_of(module) - before, expected, rtol=1e-5, atol=1e-10)
    assert stats["train/line_search_steps"] == 0
    assert 0.5e-6 < stats["train/approx_kl"] <= 1e-6
    # The plain gradient points elsewhere: the test could fail.
    log_probs = module.network.policy(batch).log_prob(batch.actions)
    plain = torch.autograd.grad((log_probs * batch.advantages).mean(), module.network.parameter_groups()[0])
    plain = torch.cat([x.flatten() for x in plain])
    assert torch.nn.functional.cosine_similarity(plain, expected, 0) < 0.99


@discrete_or_box
def test_every_step_stays_in_the_trust_region_and_raises_the_surrogate(actions):
    module = make(action_space=actions, target_kl=0.02)
    seen = []
    update = module.update
    module.update = lambda rollout: seen.append(update(rollout)) or seen[-1]
    fit(module, *(make_rollout(actions=actions, seed=seed) for seed in range(5)))
    for stats in seen:
        assert 0 < stats["train/approx_kl"] <= 1.5 * 0.02
        assert stats["train/policy_loss"] < 0


def test_a_step_beyond_the_region_is_shortened():
    """Of a policy that is nearly deterministic the quadratic model is far off."""
    module = make(target_kl=2.0, cg_damping=0.0)
    with torch.no_grad():
        module.network.actor_head.linear.weight.mul_(300)
    rollout = make_rollout(actions=DISCRETE)
    stats = module.natural_step(module.targets(rollout, 0.97, True))
    assert stats["train/line_search_steps"] > 0
    assert stats["train/approx_kl"] <= 1.5 * 2.0


def test_where_no_step_helps_the_actor_stays():
    module = make(target_kl=2.0, cg_damping=0.0, line_search_steps=1)
    with torch.no_grad():
        module.network.actor_head.linear.weight.mul_(300)
    before = actor_of(module)
    stats = module.natural_step(module.targets(make_rollout(actions=DISCRETE), 0.97, True))
    torch.testing.assert_close(actor_of(module), before, rtol=0, atol=0)
    assert stats["train/approx_kl"] == stats["train/policy_loss"] == 0


def test_the_critic_learns_and_leaves_the_actor_alone():
    still = make(target_kl=0.0, num_epochs=5)
    before = weights_of(still)
    fit(still, make_rollout(actions=DISCRETE))
    for name, value in weights_of(still).items():
        assert np.array_equal(value, before[name]) == name.startswith("actor")


def test_a_memory_and_a_state_dependent_deviation_have_a_natural_gradient_too():
    module = make(action_space=spaces.Box(-1.0, 1.0, (2,)), memory="gru", memory_size=3, state_dependent_std=True)
    before = actor_of(module)
    fit(module, make_rollout(T=5, N=4))
    assert not torch.equal(actor_of(module), before)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"target_kl": -1.0}, "target_kl"),
        ({"cg_steps": 0}, "cg_steps"),
        ({"line_search_steps": 0}, "line_search_steps"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(options, field):
    with pytest.raises(UserError, match=rf"^model.{field}: must be at least"):
        make(**options)


def test_a_shared_torso_is_no_option():
    with pytest.raises(TypeError, match="shared_torso"):
        make(shared_torso=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_takes_the_same_step(dtype):
    """Inner products are of P numbers: half precision would under- or overflow."""
    steps = []
    for enabled in (False, True):
        module = make()
        batch = module.targets(make_rollout(actions=DISCRETE), 0.97, True)
        before = actor_of(module)
        with torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=False):  # as Lightning has it
            assert module.natural_step(batch)["train/approx_kl"] > 0
        steps.append(actor_of(module) - before)
    assert torch.nn.functional.cosine_similarity(*steps, 0) > 0.99


def test_a_parameter_that_the_policy_does_not_use_stays():
    module = make()
    module.network.actor_torso.unused = torch.nn.Parameter(torch.ones(2))
    fit(module, make_rollout(actions=DISCRETE))
    assert module.network.actor_torso.unused.tolist() == [1.0, 1.0]
