"""The estimators on a language whose 15 completions are listed: their means are sums, compared with the exact gradient.

Each fault of the trackers of other trainers has a test here or in `test_text_policy.py`; `tests/BUGS.md` names them.
"""

from itertools import product

import pytest
import torch
from tiny_text import Recorder, every_completion, flat, log_probs_of, make_algorithm, make_policy, make_rollout

from pg_lightning.algorithms import GRPO, REINFORCE, RLOO
from pg_lightning.losses import kl_estimate

ALL = every_completion()
REWARDS = torch.tensor([(7 * i) % 5 / 5 + (i % 2) for i in range(len(ALL))], dtype=torch.float64)
EXACT = 1e-6  # the model normalises its activations in float32


def objective(policy, reference=None, beta=0.0):
    """J = Σ p(s) R(s) − β KL(π ‖ π_ref), with gradient."""
    log_p = log_probs_of(policy, ALL)
    value = (log_p.exp() * REWARDS).sum()
    return value if reference is None else value - beta * (log_p.exp() * (log_p - log_probs_of(reference, ALL))).sum()


def mean_gradient(algorithm, K, times=lambda rollout: 1.0):
    """E of the algorithm's gradient over all groups of K completions."""
    recorder, p = Recorder(algorithm), log_probs_of(algorithm.network, ALL).exp().detach()
    total = torch.zeros(())
    for chosen in product(range(len(ALL)), repeat=K):
        rollout = make_rollout([ALL[i] for i in chosen], REWARDS[[*chosen]], K)
        total = total + p[[*chosen]].prod() * times(rollout) * recorder.of(rollout)
    return total


def test_all_completions_have_probability_one():
    assert log_probs_of(make_policy(), ALL).exp().sum().item() == pytest.approx(1, abs=EXACT)


def test_the_mean_of_rloo_is_the_gradient():
    algorithm = make_algorithm(RLOO)
    assert torch.allclose(
        mean_gradient(algorithm, 2), -flat(objective(algorithm.network), algorithm.network), atol=EXACT
    )


def test_rloo_with_a_penalty_has_the_gradient_of_the_divergence_too():
    algorithm = make_algorithm(RLOO, kl_coef=0.3)
    exact = -flat(objective(algorithm.network, algorithm.reference, 0.3), algorithm.network)
    without = -flat(objective(algorithm.network), algorithm.network)
    found = mean_gradient(algorithm, 2)
    assert torch.allclose(found, exact, atol=EXACT)
    assert (found - without).norm() > 0.1 * exact.norm()


def test_reinforce_with_a_group_baseline_is_unbiased_but_for_the_number_of_tokens_that_it_divides_by():
    algorithm = make_algorithm(REINFORCE, gamma=1.0, baseline="group_mean", normalize_advantage=False)
    per_completion = mean_gradient(algorithm, 2, lambda rollout: rollout.env_steps / 2)
    assert torch.allclose(per_completion, -flat(objective(algorithm.network), algorithm.network), atol=EXACT)


@pytest.mark.parametrize("options", [{}, {"scale_advantage": False}, {"normalizer": "constant"}], ids=str)
def test_grpo_is_biased(options):
    """By the division by σ, and by 1/L: the direction differs from that of the gradient."""
    algorithm = make_algorithm(GRPO, **options)
    exact = -flat(objective(algorithm.network), algorithm.network)
    cosine = torch.cosine_similarity(mean_gradient(algorithm, 2), exact, 0).item()
    assert 0.5 < cosine < 0.9999


def test_grpo_without_both_divisions_is_unbiased_up_to_a_factor():
    """Liu et al. 2025: the mean of the group holds the completion itself, hence (K − 1)/K; and 1/T of the constant."""
    algorithm = make_algorithm(GRPO, scale_advantage=False, normalizer="constant")
    exact = -flat(objective(algorithm.network), algorithm.network)
    assert torch.allclose(mean_gradient(algorithm, 2) * 2 * 3, exact, atol=EXACT)


def test_grpo_with_the_penalty_in_the_reward_has_its_gradient():
    algorithm = make_algorithm(
        GRPO, scale_advantage=False, normalizer="constant", kl_coef=0.3, kl_in="reward", kl_estimator="k1"
    )
    exact = -flat(objective(algorithm.network, algorithm.reference, 0.3), algorithm.network)
    assert torch.allclose(mean_gradient(algorithm, 2) * 2 * 3, exact, atol=EXACT)


def test_the_estimators_of_the_divergence_and_their_gradients():
    """Of one action: the means of k1 and k3 are KL; as losses k1 has no gradient, k2 that of KL(π ‖ π_ref), k3 that of
    KL(π_ref ‖ π)."""
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    log_p = logits.log_softmax(0)
    p = log_p.exp().detach()
    divergence, reverse = (log_p.exp() * (log_p - reference)).sum(), (reference.exp() * (reference - log_p)).sum()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    estimates = {name: kl_estimate(log_p - reference, name) for name in ("k1", "k2", "k3")}
    for name in ("k1", "k3"):
        assert (p * estimates[name]).sum().item() == pytest.approx(divergence.item(), abs=EXACT)
    assert (p * estimates["k2"]).sum().item() == pytest.approx(divergence.item(), rel=0.2)
    for name, exact in (("k1", 0 * divergence), ("k2", divergence), ("k3", reverse)):
        assert torch.allclose(gradient((p * estimates[name]).sum()), gradient(exact), atol=EXACT)
    assert not torch.allclose(gradient(divergence), gradient(reverse), atol=1e-3)


def test_the_penalty_reaches_the_loss():
    """slime #1247: a coefficient that nothing reads."""
    rollout = make_rollout(ALL[:4], REWARDS[:4], 4)
    without, with_it = (Recorder(make_algorithm(GRPO, kl_coef=c)).of(rollout) for c in (0.0, 0.5))
    assert (with_it - without).norm() > 1e-3


@pytest.mark.parametrize("normalizer", ["sequence", "tokens", "constant"])
def test_normalizers_by_hand(normalizer):
    """Two completions with 1 and 3 tokens, advantages 1 and −1 (σ of a sample is √½ · |R₁ − R₂|)."""
    algorithm = make_algorithm(GRPO, scale_advantage=False, normalizer=normalizer)
    chosen = [(0,), (1, 2, 1)]
    rollout = make_rollout(chosen, torch.tensor([2.0, 0.0]), 2)
    first, second = log_probs_of(algorithm.network, chosen)
    sums = {
        "sequence": (first - second / 3) / 2,
        "tokens": (first - second) / 4,
        "constant": (first - second) / (2 * 3),
    }
    exact = -flat(sums[normalizer], algorithm.network)
    assert torch.allclose(Recorder(algorithm).of(rollout), exact, atol=EXACT)


@pytest.mark.parametrize("normalizer", ["sequence", "tokens", "constant"])
def test_minibatches_together_have_the_gradient_of_the_rollout(normalizer):
    """Also if one has more tokens than the other."""
    rollout = make_rollout([(0,), (0,), (1, 2, 1), (2, 0)], torch.tensor([2.0, 0.0, 1.0, -1.0]), 2)
    one, two = (
        Recorder(make_algorithm(GRPO, kl_coef=0.2, normalizer=normalizer, num_minibatches=count)).of(rollout)
        for count in (1, 2)
    )
    assert torch.allclose(one, two, atol=EXACT)


def test_advantages_of_a_group_that_is_always_right_are_zero():
    recorder = Recorder(make_algorithm(GRPO))
    assert recorder.of(make_rollout(ALL[:4], torch.ones(4), 4)).norm() == 0


@pytest.mark.parametrize("kind", [RLOO, GRPO])
def test_groups_do_not_mix(kind):
    """A prompt that is hard for all does not make the completions of an easy one better."""
    chosen = ALL[:4]
    apart, shifted = (
        Recorder(make_algorithm(kind)).of(make_rollout(chosen, torch.tensor([1.0, 0.0, 1.0 + x, 0.0 + x]), 2))
        for x in (0.0, 5.0)
    )
    assert torch.allclose(apart, shifted, atol=EXACT)


def test_an_asymmetric_clip_lets_rises_go_further_than_falls():
    from pg_lightning.losses import clipped_surrogate_loss

    log_ratio = torch.tensor([1.25, 1.25, 0.85, 0.85]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for high, moving in ((None, [False, True, True, True]), (0.3, [True, True, True, True])):
        (gradient,) = torch.autograd.grad(clipped_surrogate_loss(log_ratio, advantages, 0.2, high), log_ratio)
        assert (gradient != 0).tolist() == moving
