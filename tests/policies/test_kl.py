"""KL divergences between policies: against torch, against samples, and their curvature, the Fisher information."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as td
from torch import nn
from torch.func import hessian

from pg_lightning.policies import make_head
from pg_lightning.policies.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
)

LOWEST = torch.finfo(torch.float32).min
PADDING = torch.tensor([[0.0, 0.0, LOWEST], [0.0, 0.0, 0.0]])


def bounded(x):
    return 1 + nn.functional.softplus(x)


# A distribution from parameters `[B, P]`, what torch makes of the same, and P.
KINDS = {
    "categorical": (Categorical, lambda x: td.Categorical(logits=x), 4),
    "multi-categorical": (
        lambda x: MultiCategorical(x.unflatten(-1, (2, 3)) + PADDING),
        lambda x: td.Independent(td.Categorical(logits=x.unflatten(-1, (2, 3)) + PADDING), 1),
        6,
    ),
    "bernoulli": (Bernoulli, lambda x: td.Independent(td.Bernoulli(logits=x), 1), 3),
    "gaussian": (
        lambda x: DiagonalGaussian(*x.chunk(2, -1)),
        lambda x: td.Independent(td.Normal(x.chunk(2, -1)[0], x.chunk(2, -1)[1].exp()), 1),
        4,
    ),
    "squashed gaussian": (
        lambda x: SquashedGaussian(*x.chunk(2, -1), log_scale=0.7),
        lambda x: td.Independent(td.Normal(x.chunk(2, -1)[0], x.chunk(2, -1)[1].exp()), 1),
        4,
    ),
    "beta": (
        lambda x: Beta(*bounded(x).chunk(2, -1), log_scale=0.7),
        lambda x: td.Independent(td.Beta(*bounded(x).double().chunk(2, -1)), 1),
        4,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def parameters(kind, rows=6, scale=1.0, seed=0):
    size = KINDS[kind][2]
    return scale * torch.randn(2, rows, size, generator=torch.Generator().manual_seed(seed))


@every_kind
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_it_is_what_torch_says(kind, scale):
    make, torchs, _ = KINDS[kind]
    p, q = parameters(kind, scale=scale)
    expected = td.kl_divergence(torchs(p.double()), torchs(q.double()))
    found = make(p).kl(make(q))
    assert found.shape == (6,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=3e-7)
    torch.testing.assert_close(make(p.double()).kl(make(q.double())), expected, rtol=1e-10, atol=1e-14)


@every_kind
def test_it_is_the_mean_difference_of_log_probabilities_under_its_own_samples(kind):
    make = KINDS[kind][0]
    p, q = (x.expand(200_000, -1) for x in parameters(kind, rows=1))
    actions = make(p).sample(torch.Generator().manual_seed(0))
    difference = (make(p).log_prob(actions) - make(q).log_prob(actions)).double()
    error = difference.std() / math.sqrt(len(difference))
    assert abs(make(p).kl(make(q))[0] - difference.mean()) < 4 * error
    assert abs(make(q).kl(make(p))[0] - difference.mean()) > 4 * error, "the other way round it is another number"


@every_kind
def test_of_equal_ones_it_is_0_and_so_is_its_gradient(kind):
    make = KINDS[kind][0]
    p = parameters(kind, scale=2.0)[0]
    q = p.clone().requires_grad_()
    divergence = make(p).kl(make(q))
    assert divergence.tolist() == [0.0] * 6
    (gradient,) = torch.autograd.grad(divergence.sum(), q)
    torch.testing.assert_close(gradient, torch.zeros_like(q), rtol=0, atol=1e-6)


@every_kind
def test_its_gradient_by_either_is_that_of_torch(kind):
    make, torchs, _ = KINDS[kind]
    pair = [x.double().requires_grad_() for x in parameters(kind)]
    found = torch.autograd.grad(make(pair[0]).kl(make(pair[1])).sum(), pair)
    expected = torch.autograd.grad(td.kl_divergence(*map(torchs, pair)).sum(), pair)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@every_kind
def test_its_curvature_at_equal_ones_is_the_covariance_of_the_score(kind):
    make = KINDS[kind][0]
    p = parameters(kind, rows=1)[0].double()
    fisher = hessian(lambda q: make(p).kl(make(q[None])).sum())(p[0])
    rows = p.expand(200_000, -1).clone().requires_grad_()
    actions = make(rows).sample(torch.Generator().manual_seed(0))
    (score,) = torch.autograd.grad(make(rows).log_prob(actions).sum(), rows)
    found = score.nan_to_num().T @ score.nan_to_num() / len(score)
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    error = products.std(0) / math.sqrt(len(score))
    assert ((found - fisher).abs() <= 4.5 * error + 1e-9).all()
    torch.testing.assert_close(fisher, fisher.T)


def test_the_fisher_information_of_a_softmax_is_diag_p_minus_p_p():
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    p = logits.softmax(-1)
    fisher = hessian(lambda q: Categorical(logits).kl(Categorical(q)))(logits)
    torch.testing.assert_close(fisher, p.diag() - p.outer(p))


def test_a_product_with_the_fisher_information_needs_no_more_than_two_backward_passes():
    """What conjugate gradients ask for, of a network and in float32."""
    torch.manual_seed(0)
    network, obs, direction = nn.Linear(3, 4), torch.randn(50, 3), torch.randn(16)
    weights = list(network.parameters())
    old = Categorical(network(obs).detach())
    slope = torch.autograd.grad(old.kl(Categorical(network(obs))).mean(), weights, create_graph=True)
    dot = torch.cat([x.flatten() for x in slope]) @ direction
    product = torch.cat([x.flatten() for x in torch.autograd.grad(dot, weights)])
    jacobian = torch.autograd.functional.jacobian(
        lambda w, b: nn.functional.linear(obs, w, b), (network.weight, network.bias)
    )
    jacobian = torch.cat([x.flatten(2) for x in jacobian], -1)  # [50, 4, 16]
    p = old.log_probs.exp()
    metric = p.diag_embed() - p.unsqueeze(-1) * p.unsqueeze(-2)
    expected = torch.einsum("bip,bij,bjq,q->p", jacobian, metric, jacobian, direction) / 50
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.MultiDiscrete([2, 3])], ids=str)
def test_what_a_mask_forbids_counts_for_nothing(space):
    head = make_head(3, space)
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    pi, other = head(features.detach(), mask), head(2 * features, mask)
    divergence = pi.kl(other)
    (gradient,) = torch.autograd.grad(divergence.sum(), features, create_graph=True)
    assert gradient.isfinite().all()
    assert torch.autograd.grad(gradient.square().sum(), features)[0].isfinite().all()
    sizes = [5] if isinstance(space, spaces.Discrete) else [2, 3]
    for row in range(4):
        expected, start = 0.0, 0
        for d, n in enumerate(sizes):
            allowed = mask[row, start : start + n] != 0
            p, q = (
                (x.logits[row] if len(sizes) == 1 else x.choices.logits[row, d])[:n][allowed].double().log_softmax(-1)
                for x in (pi, other)
            )
            expected += (p.exp() * (p - q)).sum().item()
            start += n
        assert divergence[row].item() == pytest.approx(expected, abs=1e-6)
    assert head(features, mask).kl(head(features, mask)).tolist() == [0.0] * 4


def test_of_gaussians_that_are_close_it_has_its_digits():
    make, torchs, _ = KINDS["gaussian"]
    p, change = parameters("gaussian")
    q = p + 1e-3 * change
    expected = td.kl_divergence(torchs(p.double()), torchs(q.double()))
    np.testing.assert_allclose(make(p).kl(make(q)).double(), expected, rtol=1e-2)


@pytest.mark.parametrize("kind", ["bernoulli", "beta"])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_terms_do_not_cancel(kind, sign):
    make, torchs, _ = KINDS[kind]
    p, change = parameters(kind)
    p = sign * (10 + p) if kind == "bernoulli" else 60 + p
    expected = td.kl_divergence(torchs(p.double()), torchs((p + change).double()))
    np.testing.assert_allclose(make(p).kl(make(p + change)).double(), expected, rtol=1e-4, atol=0)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_a_half_precision_network_it_is_float32(kind, dtype):
    make = KINDS[kind][0]
    p, q = parameters(kind).to(dtype)
    assert make(p).kl(make(q)).dtype == torch.float32
