import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import distributions as td
from torch import nn

from pg_lightning.errors import UserError
from pg_lightning.losses import approximate_kl
from pg_lightning.policies import make_head
from pg_lightning.policies.distributions import Beta, Categorical, DiagonalGaussian, SquashedGaussian
from pg_lightning.policies.heads import Head

BOX = spaces.Box(-1.0, 1.0, (2,))
LOPSIDED = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([0.5, 12.0], np.float32))
HEADS = {
    "categorical": (spaces.Discrete(4), {}),
    "multi-categorical": (spaces.MultiDiscrete([2, 4, 3]), {}),
    "bernoulli": (spaces.MultiBinary(3), {}),
    "gaussian": (BOX, {}),
    "gaussian with σ(s)": (BOX, {"state_dependent_std": True}),
    "squashed gaussian": (LOPSIDED, {"head": "squashed_gaussian"}),
    "squashed gaussian with σ(s)": (LOPSIDED, {"head": "squashed_gaussian", "state_dependent_std": True}),
    "beta": (LOPSIDED, {"head": "beta"}),
}
FINITE = ["categorical", "multi-categorical", "bernoulli"]
CONTINUOUS = [name for name in HEADS if name not in FINITE]
FEATURES = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

every_head = pytest.mark.parametrize("name", HEADS)
every_finite_head = pytest.mark.parametrize("name", FINITE)
every_continuous_head = pytest.mark.parametrize("name", CONTINUOUS)
every_masked_head = pytest.mark.parametrize("name", ["categorical", "multi-categorical"])


def head_for(name):
    """A head with weights large enough for its choices to be far from uniform."""
    space, options = HEADS[name]
    head = make_head(6, space, log_std_init=-0.3, **options)
    nn.init.normal_(head.linear.weight, std=0.5)
    nn.init.normal_(head.linear.bias)
    return head


class Choices:
    """Independent categoricals of unequal sizes, by `torch.distributions`."""

    def __init__(self, logits, sizes):
        self.parts = [td.Categorical(logits=logits[:, d, :size]) for d, size in enumerate(sizes)]

    def log_prob(self, actions):
        return sum(part.log_prob(actions[:, d]) for d, part in enumerate(self.parts))

    def entropy(self):
        return sum(part.entropy() for part in self.parts)


class OfTheEnvironment:
    """A distribution of environment actions by `torch.distributions`, given actions as the algorithm keeps them."""

    def __init__(self, positions, start):
        self.low, self.width = torch.as_tensor(LOPSIDED.low), torch.as_tensor(LOPSIDED.high - LOPSIDED.low)
        transforms = [*start, td.AffineTransform(self.low.double(), self.width.double())]
        self.start = start
        self.distribution = td.Independent(td.TransformedDistribution(positions, transforms), 1)

    def log_prob(self, actions):
        actions = actions.double()
        for transform in self.start:
            actions = transform(actions)
        return self.distribution.log_prob(self.low + self.width * actions).float()

    def entropy(self):
        """By the trapezoidal rule over quantiles: E[−log p] = ∫ −log p(a(q)) dq."""
        q = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
        positions = self.distribution.base_dist.base_dist
        if isinstance(positions, td.Normal):
            icdf = positions.icdf(q.view(-1, 1, 1))
        else:
            a, b = positions.concentration1.detach(), positions.concentration0.detach()
            icdf = torch.as_tensor(stats.beta.ppf(q.view(-1, 1, 1), a, b))
        for transform in self.start:
            icdf = transform(icdf)
        return -self.distribution.base_dist.log_prob(self.low + self.width * icdf).mean(0).sum(-1).float()


UNIT_TANH = [td.TanhTransform(), td.AffineTransform(0.5, 0.5)]


def reference(name, head, features):
    outputs = features @ head.linear.weight.T + head.linear.bias
    if name == "beta":
        alpha, beta = (1 + nn.functional.softplus(outputs.double())).chunk(2, -1)
        return OfTheEnvironment(td.Beta(alpha, beta), [])
    if name in CONTINUOUS:
        mean, log_std = outputs.chunk(2, -1) if "σ(s)" in name else (outputs, head.log_std)
        std = (log_std - 0.3 if "σ(s)" in name else log_std).exp()
        if "squashed" in name:
            return OfTheEnvironment(td.Normal(mean.double(), std.double()), UNIT_TANH)
        return td.Independent(td.Normal(mean, std), 1)
    if name == "categorical":
        return td.Categorical(logits=outputs)
    if name == "multi-categorical":
        return Choices(outputs.view(-1, 3, 4), [2, 4, 3])
    if name == "bernoulli":
        return td.Independent(td.Bernoulli(logits=outputs), 1)
    raise ValueError(name)


def all_actions(name):
    """Every action of a finite space, `[A, *action]`, in the dtype that the distribution samples."""
    sizes = {"categorical": [4], "multi-categorical": [2, 4, 3], "bernoulli": [2, 2, 2]}[name]
    actions = torch.tensor(list(itertools.product(*map(range, sizes))))
    return actions.squeeze(-1) if name == "categorical" else actions.float() if name == "bernoulli" else actions


# Densities.


@every_head
def test_log_prob_agrees_with_torch_distributions(name):
    head = head_for(name)
    pi = head(FEATURES)
    for _ in range(20):
        actions = pi.sample()
        torch.testing.assert_close(pi.log_prob(actions), reference(name, head, FEATURES).log_prob(actions))
    assert pi.log_prob(actions).shape == (5,)


@every_head
def test_entropy_agrees_with_torch_distributions(name):
    head = head_for(name)
    torch.testing.assert_close(
        head(FEATURES).entropy(), reference(name, head, FEATURES).entropy(), rtol=2e-5, atol=2e-5
    )


@every_finite_head
def test_probabilities_sum_to_1(name):
    head, actions = head_for(name), all_actions(name)
    log_probs = head(FEATURES[:1].expand(len(actions), -1)).log_prob(actions)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_gaussian_density_integrates_to_1_and_to_its_entropy():
    pi = DiagonalGaussian(torch.tensor([[0.5, -1.0]]).double(), torch.tensor([-0.5, 0.3]).double())
    x, step = torch.linspace(-10, 10, 801, dtype=torch.float64), 20 / 800
    log_density = pi.log_prob(torch.cartesian_prod(x, x))
    assert (log_density.exp().sum() * step**2).item() == pytest.approx(1, abs=1e-6)
    assert -(log_density.exp() * log_density).sum().item() * step**2 == pytest.approx(pi.entropy().item(), abs=1e-6)


# A narrow, a usual and a broad distribution, in the middle and near a bound.
GRID = list(itertools.product([0.0, 0.7, -3.0, 8.0], [0.02, 0.5, 1.0, 3.0, math.exp(2.0)]))
LOW, HIGH = -0.5, 4.5


def squashed(mean, std):
    log_scale = math.log((HIGH - LOW) / 2)
    return SquashedGaussian(torch.tensor([[mean]]).double(), torch.tensor([std]).double().log(), log_scale)


def squashed_grid(mean, std):
    """Midpoints u of cells that cover the distribution, and the widths of the cells in the environment."""
    edges = torch.linspace(mean - 9 * std, mean + 9 * std, 100_001, dtype=torch.float64)
    # The distance to the nearer bound keeps the precision that the action itself would lose close to it.
    below, above = (HIGH - LOW) * (2 * edges).sigmoid(), (HIGH - LOW) * (-2 * edges).sigmoid()
    widths = torch.where(edges[1:] < 0, below[1:] - below[:-1], above[:-1] - above[1:])
    return ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1), widths


@pytest.mark.parametrize(("mean", "std"), GRID)
def test_the_squashed_density_of_environment_actions_integrates_to_1_and_to_its_entropy(mean, std):
    pi, (u, widths) = squashed(mean, std), squashed_grid(mean, std)
    log_density = pi.log_prob(u)
    mass = log_density.exp() * widths
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    assert -(mass * log_density).sum().item() == pytest.approx(pi.entropy().item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_entropy_of_a_squashed_gaussian_has_the_stated_error_in_value_and_gradients(dtype):
    mean, std = torch.cartesian_prod(torch.linspace(-8, 8, 33), torch.tensor([0.02, 0.3, 1.0, 3.0, 7.389, 20.0])).T
    leaves = [mean.double().unsqueeze(-1).requires_grad_(), std.double().log().unsqueeze(-1).requires_grad_()]
    noise = torch.linspace(-10, 10, 8001, dtype=torch.float64)
    weights = torch.exp(-0.5 * noise.square()) / math.sqrt(2 * math.pi) * (noise[1] - noise[0])
    u = leaves[0] + leaves[1].exp() * noise
    log_slope = 2 * math.log(2) - 2 * torch.logaddexp(u, -u)
    expected = (leaves[1].squeeze(-1) + 0.5 * math.log(2 * math.pi * math.e)) + (log_slope * weights).sum(-1)
    entropy = SquashedGaussian(*(leaf.to(dtype) for leaf in leaves)).entropy()
    error = {torch.float64: 1e-7, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(entropy.double(), expected, atol=error, rtol=0)
    gradients = (torch.autograd.grad(value.sum(), leaves, retain_graph=True) for value in (entropy, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=error, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), itertools.product([1.0, 1.7, 6.0, 60.0], repeat=2))
def test_the_beta_density_of_environment_actions_integrates_to_1_and_to_its_entropy(alpha, beta):
    cells = 40_000
    log_scale = math.log(HIGH - LOW)
    pi = Beta(torch.tensor([[alpha]]).double(), torch.tensor([[beta]]).double(), log_scale)
    x = (torch.arange(cells, dtype=torch.float64).unsqueeze(-1) + 0.5) / cells
    log_density = pi.log_prob(x)
    mass = log_density.exp() * (HIGH - LOW) / cells
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    assert -(mass * log_density).sum().item() == pytest.approx(pi.entropy().item(), abs=1e-5)


@every_head
def test_densities_are_at_least_float32_whatever_the_network_computes_in(name):
    head = head_for(name).bfloat16()
    pi = head(FEATURES.bfloat16())
    assert pi.log_prob(pi.sample()).dtype == torch.float32
    assert pi.entropy().dtype == torch.float32


# Samples.


@every_finite_head
@pytest.mark.parametrize("state", [0, 1])
def test_samples_have_the_frequencies_of_their_probabilities(name, state):
    head, actions, n = head_for(name), all_actions(name), 20_000
    # Two states in one batch: every row is drawn from a distribution of its own.
    samples = head(FEATURES[:2].repeat(n, 1)).sample(torch.Generator().manual_seed(2))[state::2]
    counts = (samples.unsqueeze(1) == actions).view(n, len(actions), -1).all(-1).sum(0)
    probabilities = reference(name, head, FEATURES[state : state + 1].expand(len(actions), -1)).log_prob(actions).exp()
    expected = probabilities.detach().double().numpy()
    assert stats.chisquare(counts, n * expected / expected.sum()).pvalue > 1e-3


@torch.no_grad()
@every_continuous_head
def test_continuous_samples_have_their_distribution_and_are_independent(name):
    head = head_for(name)
    pi = head(FEATURES[:1].expand(20_000, -1))
    samples = pi.sample(torch.Generator().manual_seed(2)).double().numpy()
    expected = reference(name, head, FEATURES[:1])
    expected = expected.distribution.base_dist.base_dist if hasattr(expected, "start") else expected.base_dist
    for d in range(2):
        if name == "beta":
            cdf = stats.beta(expected.concentration1[0, d].item(), expected.concentration0[0, d].item()).cdf
        else:
            cdf = stats.norm(expected.loc[0, d].item(), expected.scale[0, d].item()).cdf
        assert stats.kstest(samples[:, d], cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 4 / math.sqrt(20_000)


@every_head
def test_the_expected_score_is_0(name):
    """E[∇ log π(a)] = 0 for a ~ π: the density is that of the samples."""
    head, n = head_for(name), 20_000
    features = FEATURES[:1].repeat(n, 1)
    outputs = head.linear(features).detach().requires_grad_()
    head.linear = nn.Identity()
    pi = head(outputs)
    pi.log_prob(pi.sample(torch.Generator().manual_seed(3))).sum().backward()
    score = outputs.grad[:, outputs.grad.std(0) > 0].double()
    z = score.mean(0) / (score.std(0) / math.sqrt(n))
    assert len(z) >= 2
    assert z.abs().max() < 4


def score_integral(log_density, mass, *leaves):
    """∫ p ∇ log p, which is 0 where p is a density that depends on the leaves."""
    return torch.autograd.grad((mass * log_density).sum(), leaves)


@pytest.mark.parametrize(("mean", "std"), GRID)
def test_the_score_of_the_squashed_gaussian_integrates_to_0(mean, std):
    u, widths = squashed_grid(mean, std)
    leaves = torch.tensor([[mean]]).double().requires_grad_(), torch.tensor([std]).double().log().requires_grad_()
    log_density = SquashedGaussian(*leaves, math.log((HIGH - LOW) / 2)).log_prob(u)
    for score in score_integral(log_density, log_density.detach().exp() * widths, *leaves):
        assert score.abs().max() < 1e-4 / std


@pytest.mark.parametrize(("alpha", "beta"), itertools.product([1.0, 1.7, 6.0, 60.0], repeat=2))
def test_the_score_of_the_beta_integrates_to_0(alpha, beta):
    x = (torch.arange(40_000, dtype=torch.float64).unsqueeze(-1) + 0.5) / 40_000
    leaves = [torch.tensor([[c]]).double().requires_grad_() for c in (alpha, beta)]
    log_density = Beta(*leaves).log_prob(x)
    for score in score_integral(log_density, log_density.detach().exp() / 40_000, *leaves):
        # The midpoint rule is that far off where log x is infinite.
        assert score.abs().max() < 0.5 * max(alpha, beta) / 40_000


def test_the_score_of_the_gaussian_integrates_to_0():
    leaves = torch.tensor([[0.4]]).double().requires_grad_(), torch.tensor([[-0.2]]).double().requires_grad_()
    x = torch.linspace(-10, 10, 8001, dtype=torch.float64).unsqueeze(-1)
    log_density = DiagonalGaussian(*leaves).log_prob(x)
    for score in score_integral(log_density, log_density.detach().exp() * 20 / 8000, *leaves):
        assert score.abs().max() < 1e-8


@every_finite_head
def test_the_score_of_every_action_sums_to_0(name):
    head, actions = head_for(name), all_actions(name)
    log_probs = head(FEATURES[:1].expand(len(actions), -1)).log_prob(actions)
    for score in score_integral(log_probs, log_probs.detach().exp(), head.linear.bias, head.linear.weight):
        assert score.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_approximate_kl_of_samples_agrees_with_the_divergence(kind):
    n, noise = 50_000, torch.randn(2, 4, generator=torch.Generator().manual_seed(5)) / 3
    if kind == "categorical":
        old, new = (Categorical(logits.expand(n, -1)) for logits in noise)
        exact = td.kl_divergence(*(td.Categorical(logits=logits) for logits in noise))
    else:
        old, new = (DiagonalGaussian(mean.expand(n, -1), mean / 5) for mean in noise)
        exact = td.kl_divergence(*(td.Independent(td.Normal(mean, (mean / 5).exp()), 1) for mean in noise))
    actions = old.sample(torch.Generator().manual_seed(6))
    log_ratio = new.log_prob(actions) - old.log_prob(actions)
    error = (log_ratio.expm1() - log_ratio).std() / math.sqrt(n)
    assert exact > 20 * error
    assert (approximate_kl(log_ratio) - exact).abs() < 4 * error


@every_head
def test_samples_carry_no_gradient(name):
    assert not head_for(name)(FEATURES).sample().requires_grad


@every_head
def test_the_same_generator_gives_the_same_samples_and_another_gives_others(name):
    pi = head_for(name)(FEATURES[:1].expand(100, -1))
    first, again, other = (pi.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_head
def test_a_generator_goes_on_and_leaves_the_global_stream_alone(name):
    pi, generator = head_for(name)(FEATURES[:1].expand(100, -1)), torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    assert not torch.equal(pi.sample(generator), pi.sample(generator))
    assert torch.equal(torch.get_rng_state(), before)


@every_finite_head
def test_the_mode_is_the_likeliest_action(name):
    head, actions = head_for(name), all_actions(name)
    for features, mode in zip(FEATURES, head(FEATURES).mode, strict=True):
        log_probs = reference(name, head, features.expand(len(actions), -1)).log_prob(actions)
        assert torch.equal(mode, actions[log_probs.argmax()])


def test_the_mode_of_the_gaussian_is_its_mean():
    head = head_for("gaussian")
    torch.testing.assert_close(head(FEATURES).mode, reference("gaussian", head, FEATURES).mean)


def test_the_mode_of_the_squashed_gaussian_is_the_median_of_environment_actions():
    head = head_for("squashed gaussian")
    pi = head(FEATURES[:1].expand(20_001, -1))
    sample = head.env_actions(pi.sample(torch.Generator().manual_seed(4)))
    below = (sample < head.env_actions(pi.mode)).float().mean(0)
    assert (below - 0.5).abs().max() < 4 * 0.5 / math.sqrt(20_001)


def test_the_mode_of_the_beta_has_the_greatest_density():
    pi = Beta(torch.tensor([[1.0, 3.0, 1.5, 20.0]]), torch.tensor([[2.0, 1.0, 1.5, 5.0]]))
    x = torch.linspace(0, 1, 2001)[1:-1]
    densities = torch.stack(
        [Beta(pi.alpha[:, d : d + 1], pi.beta[:, d : d + 1]).log_prob(x[:, None]) for d in range(4)]
    )
    torch.testing.assert_close(pi.mode[0], x[densities.argmax(-1)], atol=6e-4, rtol=0)
    assert pi.log_prob(pi.mode).isfinite().all()


def test_the_mode_of_a_uniform_beta_is_the_middle():
    assert Beta(torch.ones(1, 2), torch.ones(1, 2)).mode.tolist() == [[0.5, 0.5]]


def test_a_beta_never_samples_its_bounds_where_the_density_is_infinite_in_logarithms():
    pi = Beta(torch.tensor([[1.0, 500.0]]).expand(50_000, -1), torch.tensor([[500.0, 1.0]]).expand(50_000, -1))
    samples = pi.sample(torch.Generator().manual_seed(7))
    assert samples.min() > 0
    assert samples.max() < 1
    assert pi.log_prob(samples).isfinite().all()


# Extremes.


@pytest.mark.parametrize("size", [50.0, 1e4])
@every_head
def test_densities_and_gradients_of_extreme_outputs_are_finite(name, size):
    head = head_for(name)
    outputs = size * torch.randn(64, head.linear.out_features).sign()
    outputs.requires_grad_()
    head.linear = nn.Identity()
    pi = head(outputs)
    actions = pi.sample()
    log_prob, entropy = pi.log_prob(actions), pi.entropy()
    assert log_prob.isfinite().all()
    assert entropy.isfinite().all()
    (log_prob + entropy).sum().backward()
    assert outputs.grad.isfinite().all()
    assert pi.mode.isfinite().all()


@pytest.mark.parametrize("mean", [-50.0, 50.0])
def test_the_density_of_a_squashed_gaussian_far_beyond_saturation_is_exact(mean):
    pi = SquashedGaussian(torch.tensor([[mean]]), torch.zeros(1))
    # 1 − tanh²u = 4 exp(−2|u|) there.
    assert pi.log_prob(pi.mode).item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 100, abs=1e-4)
    assert pi.entropy().item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e) + math.log(4) - 100, abs=1e-4)


# Standard deviations that depend on the state.


@pytest.mark.parametrize("head", ["gaussian", "squashed_gaussian"])
def test_the_std_depends_on_the_state_only_if_asked_to(head):
    for dependent in (False, True):
        made = make_head(6, BOX, head, log_std_init=-1.5, state_dependent_std=dependent)
        assert made.linear.out_features == (4 if dependent else 2)
        assert ("log_std" in dict(made.named_parameters())) == (not dependent)
        nn.init.zeros_(made.linear.bias)
        pi = made(FEATURES)
        log_std = pi.normal.log_std if head == "squashed_gaussian" else pi.log_std
        assert log_std.shape == ((5, 2) if dependent else (2,))
        assert (log_std.std(0).min() > 0) == dependent
        at_zero = made(torch.zeros(1, 6))
        log_std = at_zero.normal.log_std if head == "squashed_gaussian" else at_zero.log_std
        assert log_std.unique().tolist() == [-1.5]


def test_a_state_dependent_std_stays_within_its_bounds():
    head = make_head(6, BOX, state_dependent_std=True)
    head.linear = nn.Identity()
    log_std = head(torch.tensor([[0.0, 0.0, 100.0, -100.0]])).log_std
    assert log_std.tolist() == [[2.0, -20.0]]


def test_one_log_std_for_all_states_is_the_same_as_one_for_each():
    mean, log_std = torch.randn(5, 2), torch.tensor([-0.4, 0.9])
    for kind in (DiagonalGaussian, SquashedGaussian):
        one, each = kind(mean, log_std), kind(mean, log_std.expand(5, 2))
        actions = one.sample(torch.Generator().manual_seed(0))
        assert torch.equal(actions, each.sample(torch.Generator().manual_seed(0)))
        torch.testing.assert_close(one.log_prob(actions), each.log_prob(actions))
        torch.testing.assert_close(one.entropy(), each.entropy())


# Masks.

MASKS = {
    # Row 3 and some of the choices allow nothing: they count as unmasked.
    "categorical": torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]),
    "multi-categorical": torch.tensor(
        [
            [1, 0, 1, 0, 1, 0, 1, 1, 0],
            [0, 1, 0, 0, 0, 1, 0, 0, 1],
            [1, 1, 1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 1, 1, 0, 0, 0, 0],
        ]
    ),
}
SIZES = {"categorical": [4], "multi-categorical": [2, 4, 3]}


def allowed_choices(name):
    """The choices that each state allows, `[B][D]` lists, by hand."""
    parts = [part.split(SIZES[name]) for part in MASKS[name]]
    return [[p.nonzero().flatten().tolist() or list(range(len(p))) for p in part] for part in parts]


def masked_reference(name, head, b):
    """Of state b, the logits of the allowed choices alone: renormalised categoricals over fewer choices."""
    outputs = (FEATURES[b] @ head.linear.weight.T + head.linear.bias).view(len(SIZES[name]), -1)
    return [td.Categorical(logits=outputs[d, allowed]) for d, allowed in enumerate(allowed_choices(name)[b])]


@every_masked_head
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float32, torch.int64])
def test_masked_probabilities_and_entropies_are_those_of_fewer_choices(name, dtype):
    head, actions = head_for(name), all_actions(name)
    pi = head(FEATURES, MASKS[name].to(dtype))
    for b in range(5):
        parts, allowed = masked_reference(name, head, b), allowed_choices(name)[b]
        row = head(FEATURES[b : b + 1].expand(len(actions), -1), MASKS[name][b : b + 1].expand(len(actions), -1))
        for action, log_prob in zip(actions.view(len(actions), -1), row.log_prob(actions), strict=True):
            if all(a in choices for a, choices in zip(action.tolist(), allowed, strict=True)):
                places = [choices.index(a) for a, choices in zip(action.tolist(), allowed, strict=True)]
                expected = sum(p.log_prob(torch.tensor(i)) for p, i in zip(parts, places, strict=True))
                torch.testing.assert_close(log_prob, expected)
            else:
                assert log_prob.exp() == 0
        torch.testing.assert_close(pi.entropy()[b], sum(part.entropy() for part in parts))


@every_masked_head
def test_masked_choices_are_never_sampled_and_never_the_mode(name):
    head, n = head_for(name), 4000
    pi = head(FEATURES.repeat(n, 1), MASKS[name].repeat(n, 1))
    samples = pi.sample(torch.Generator().manual_seed(8)).view(n, 5, -1)
    modes = pi.mode.view(n, 5, -1)[0]
    for b, d in itertools.product(range(5), range(len(SIZES[name]))):
        allowed, part = allowed_choices(name)[b][d], masked_reference(name, head, b)[d]
        assert modes[b, d] == allowed[part.probs.argmax()]
        counts = samples[:, b, d].bincount(minlength=SIZES[name][d])
        assert counts[allowed].sum() == n
        if len(allowed) > 1:
            expected = part.probs.detach().double().numpy()
            assert stats.chisquare(counts[allowed], n * expected / expected.sum()).pvalue > 1e-4


@every_masked_head
def test_masked_choices_get_no_gradient_and_the_others_a_finite_one(name):
    head = head_for(name)
    width = head.linear.out_features
    outputs = torch.randn(5, width, requires_grad=True)
    head.linear = nn.Identity()
    pi = head(outputs, MASKS[name])
    (pi.log_prob(pi.sample()) + pi.entropy()).sum().backward()
    gradients = outputs.grad.view(5, len(SIZES[name]), -1)
    assert gradients.isfinite().all()
    for b, d in itertools.product(range(5), range(len(SIZES[name]))):
        allowed = allowed_choices(name)[b][d]
        forbidden = [choice for choice in range(gradients.shape[-1]) if choice not in allowed]
        assert gradients[b, d, forbidden].eq(0).all()
        assert gradients[b, d, allowed].ne(0).all() or len(allowed) == 1


@every_masked_head
def test_the_masked_score_of_every_action_sums_to_0(name):
    head, actions = head_for(name), all_actions(name)
    for b in range(5):
        features, mask = FEATURES[b : b + 1].expand(len(actions), -1), MASKS[name][b : b + 1].expand(len(actions), -1)
        log_probs = head(features, mask).log_prob(actions)
        possible = log_probs.exp() > 0
        log_probs = log_probs[possible]
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
        for score in score_integral(log_probs, log_probs.detach().exp(), head.linear.bias, head.linear.weight):
            assert score.abs().max() < 1e-5


@every_masked_head
def test_a_mask_that_allows_everything_changes_nothing(name):
    head = head_for(name)
    masked, plain = head(FEATURES, torch.ones_like(MASKS[name])), head(FEATURES)
    actions = plain.sample(torch.Generator().manual_seed(0))
    assert torch.equal(masked.sample(torch.Generator().manual_seed(0)), actions)
    assert torch.equal(masked.log_prob(actions), plain.log_prob(actions))


@every_masked_head
def test_a_masked_policy_of_extreme_logits_is_finite(name):
    head = head_for(name)
    nn.init.normal_(head.linear.weight, std=1e5)
    pi = head(FEATURES, MASKS[name])
    (pi.log_prob(pi.sample()) + pi.entropy()).sum().backward()
    assert pi.entropy().isfinite().all()
    assert head.linear.weight.grad.isfinite().all()


@every_masked_head
@pytest.mark.parametrize("wrong", ["one row", "one column", "a column too many"])
def test_a_mask_of_the_wrong_shape_is_refused(name, wrong):
    mask = MASKS[name]
    mask = {"one row": mask[0], "one column": mask[:, :1], "a column too many": torch.cat((mask, mask[:, :1]), 1)}[
        wrong
    ]
    with pytest.raises(UserError, match=rf"action_mask: .*\[5, {sum(SIZES[name])}\]"):
        head_for(name)(FEATURES, mask)


@pytest.mark.parametrize("name", [name for name in HEADS if "categorical" not in name])
def test_a_mask_is_refused_where_there_are_no_choices(name):
    with pytest.raises(UserError, match=r"action_mask: .*only for Discrete and MultiDiscrete"):
        head_for(name)(FEATURES, torch.ones(5, 3))


# Unequal numbers of choices.


def test_padded_choices_are_never_sampled():
    head = make_head(6, spaces.MultiDiscrete([1, 5, 2]))
    pi = head(FEATURES[:1].expand(20_000, -1))
    assert pi.sample().amax(0).tolist() == [0, 4, 1]
    assert (pi.mode <= torch.tensor([0, 4, 1])).all()


def test_padded_choices_leave_entropy_and_gradients_finite():
    head = make_head(6, spaces.MultiDiscrete([1, 5, 2]))
    pi = head(FEATURES)
    (pi.entropy() + pi.log_prob(pi.sample())).sum().backward()
    assert pi.entropy().isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert head.linear.bias.grad.view(3, 5)[0].eq(0).all()


# Actions as the environment wants them.

ENV_SPACES = {
    "Discrete with a start": spaces.Discrete(3, start=-5),
    "MultiDiscrete with a start": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [-3, 10]]),
    **{
        f"MultiDiscrete of {dtype.__name__}": spaces.MultiDiscrete([2, 3], dtype=dtype, start=[1, 0])
        for dtype in (np.uint8, np.int32, np.uint16, np.uint32, np.uint64)
    },
    "MultiBinary": spaces.MultiBinary((2, 3)),
    "Box": spaces.Box(np.full((2, 3), -0.5, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3) / 10),
    "scalar Box": spaces.Box(-0.1, 0.1, ()),
}


@torch.no_grad()
@pytest.mark.parametrize("space", ENV_SPACES.values(), ids=ENV_SPACES)
def test_the_environment_gets_actions_of_its_space(space):
    head = make_head(6, space)
    pi = head(FEATURES.repeat(20, 1))
    for actions in (pi.sample(), pi.mode):
        env_actions = head.env_actions(actions).numpy()
        assert len(env_actions) == 100
        assert all(space.contains(np.asarray(action)) for action in env_actions)
        assert env_actions.dtype == space.dtype


def test_the_environment_gets_actions_within_float64_bounds():
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    head = make_head(6, space)
    assert space.contains(head.env_actions(torch.full((1, 2), 5.0)).numpy()[0])


BOUNDED = {
    "lopsided": LOPSIDED,
    "shaped": ENV_SPACES["Box"],
    "scalar": spaces.Box(-0.1, 0.3, ()),
    "float64": spaces.Box(-0.1, 0.3, (2,), np.float64),
    "float16": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "widest": spaces.Box(-3e38, 3e38, (2,)),
}


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["gaussian", "squashed_gaussian", "beta"])
@pytest.mark.parametrize("space", BOUNDED.values(), ids=BOUNDED)
def test_the_environment_gets_actions_within_its_bounds_in_its_dtype(space, head, precision):
    head = make_head(6, space, head).to(precision)
    nn.init.normal_(head.linear.weight, std=30)
    pi = head(FEATURES.repeat(20, 1).to(precision))
    for actions in (pi.sample(), pi.mode):
        env_actions = head.env_actions(actions).numpy()
        assert env_actions.dtype == space.dtype
        assert all(space.contains(np.asarray(action)) for action in env_actions)


def test_a_squashed_gaussian_reaches_from_bound_to_bound():
    head = make_head(6, LOPSIDED, "squashed_gaussian")
    env_actions = head.env_actions(torch.tensor([[-99.0, -99.0], [0.0, 0.0], [99.0, 99.0], [0.5, 1.0]]))
    expected = torch.tensor(
        [[-1.0, 2.0], [-0.25, 7.0], [0.5, 12.0], [-0.25 + 0.75 * math.tanh(0.5), 7 + 5 * math.tanh(1)]]
    )
    torch.testing.assert_close(env_actions, expected)


def test_a_beta_reaches_from_bound_to_bound():
    env_actions = make_head(6, LOPSIDED, "beta").env_actions(
        torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.2, 0.1]])
    )
    torch.testing.assert_close(env_actions, torch.tensor([[-1.0, 2.0], [-0.25, 7.0], [0.5, 12.0], [-0.7, 3.0]]))


@pytest.mark.parametrize("head", ["squashed_gaussian", "beta"])
def test_a_shaped_space_counts_all_of_its_dimensions(head):
    flat = make_head(6, spaces.Box(ENV_SPACES["Box"].low.ravel(), ENV_SPACES["Box"].high.ravel()), head)
    shaped = make_head(6, ENV_SPACES["Box"], head)
    shaped.load_state_dict(flat.state_dict())
    pi, same = flat(FEATURES), shaped(FEATURES)
    actions = pi.sample()
    assert torch.equal(pi.log_prob(actions), same.log_prob(actions))
    assert torch.equal(flat.env_actions(actions).view(-1, 2, 3), shaped.env_actions(actions))


def test_discrete_actions_start_where_the_space_starts():
    head = make_head(6, spaces.Discrete(3, start=-5))
    assert head.env_actions(torch.tensor([0, 2])).tolist() == [-5, -3]


def test_multi_discrete_actions_get_the_shape_and_the_start_of_the_space():
    head = make_head(6, spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [-3, 10]]))
    assert head.env_actions(torch.tensor([[0, 2, 3, 4], [1, 0, 0, 0]])).tolist() == [
        [[1, 2], [0, 14]],
        [[2, 0], [-3, 10]],
    ]


def test_bits_get_the_shape_of_the_space():
    head = make_head(6, spaces.MultiBinary((2, 3)))
    assert head.env_actions(torch.tensor([[0.0, 1, 0, 1, 1, 0]])).tolist() == [[[0, 1, 0], [1, 1, 0]]]


def test_each_dimension_of_a_box_is_clipped_to_its_own_bounds():
    low, high = np.array([[-1, -2, -3], [-4, -5, -np.inf]]), np.array([[1, 2, 3], [4, 5, np.inf]])
    head = make_head(6, spaces.Box(low.astype(np.float32), high.astype(np.float32)))
    clipped = head.env_actions(torch.tensor([[9.0] * 6, [-9.0] * 6, [0.5] * 6]))
    assert clipped.tolist() == [[[1, 2, 3], [4, 5, 9]], [[-1, -2, -3], [-4, -5, -9]], [[0.5] * 3] * 2]


def test_the_log_prob_is_that_of_the_sample_not_of_the_clipped_action():
    head = make_head(6, spaces.Box(-0.1, 0.1, (2, 3)))
    pi = head(FEATURES)
    sample = pi.sample()
    clipped = head.env_actions(sample).flatten(1)
    assert sample.abs().max() > 0.1
    assert clipped.abs().max() <= 0.1
    torch.testing.assert_close(pi.log_prob(sample), td.Normal(pi.mean, 1.0).log_prob(sample).sum(-1))
    assert not torch.isclose(pi.log_prob(sample), pi.log_prob(clipped)).any()


# What is not supported.


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict(a=spaces.Discrete(2)),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Text(3),
        spaces.Box(np.array([[0, 1], [2, 3]]), np.array([[5, 6], [7, 8]]), dtype=np.int64),
    ],
    ids=["Tuple", "Dict", "integer Box", "Text", "integer Box with bounds in rows"],
)
def test_an_unsupported_space_is_named_in_one_line_with_those_that_are_supported(space):
    with pytest.raises(UserError) as error:
        make_head(6, space)
    message = str(error.value)
    assert "\n" not in message
    assert " ".join(str(space).split()) in message
    assert all(kind in message for kind in ("Discrete, MultiDiscrete, MultiBinary", "floating-point Box"))


# Heads by name.


class OneSidedHead(Head):
    """A head of someone's own."""

    def __init__(self, num_features, space, slope=1.0):
        super().__init__()
        self.slope = slope
        self.linear = nn.Linear(num_features, space.shape[0])

    def forward(self, features, action_mask=None):
        return DiagonalGaussian(self.slope * self.linear(features).exp(), torch.zeros(1))

    def env_actions(self, actions):
        return actions


class LinearMissing(Head):
    def __init__(self, num_features, space):
        super().__init__()

    def forward(self, features, action_mask=None):
        return DiagonalGaussian(features, torch.zeros(1))

    def env_actions(self, actions):
        return actions


class ForwardMissing(nn.Module):
    def __init__(self, num_features, space):
        super().__init__()
        self.linear = nn.Linear(num_features, 2)

    def env_actions(self, actions):
        return actions


OWN = f"{__name__}.OneSidedHead"
HEADS_MODULE = "pg_lightning.policies.heads"


@pytest.mark.parametrize(("spec", "slope"), [(OWN, 1.0), ({"class_path": OWN, "init_args": {"slope": 3.0}}, 3.0)])
def test_a_head_of_ones_own_is_named_by_its_class_path(spec, slope):
    head = make_head(6, BOX, spec, log_std_init=-1.0)
    assert isinstance(head, OneSidedHead)
    assert head.slope == slope
    assert head(FEATURES).sample().shape == (5, 2)


def test_a_head_of_ones_own_may_take_a_space_that_no_other_takes():
    assert isinstance(make_head(6, spaces.Box(0, 5, (2,), np.int64), OWN), OneSidedHead)


def test_init_args_come_before_the_general_options():
    spec = {"class_path": "squashed_gaussian", "init_args": {"state_dependent_std": True, "log_std_init": -2}}
    head = make_head(6, BOX, spec, log_std_init=1.0)
    assert head.linear.out_features == 4
    assert head.log_std_init == -2


@pytest.mark.parametrize("spec", [None, "gaussian", {"class_path": "gaussian"}, f"{HEADS_MODULE}.DiagonalGaussianHead"])
def test_the_gaussian_goes_by_many_names(spec):
    head = make_head(6, BOX, spec, log_std_init=-1)
    assert head.log_std.tolist() == [-1.0, -1.0]


UNBOUNDED = spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 1], np.float32))
REFUSED = {
    "a Box head for Discrete": (spaces.Discrete(3), {"head": "gaussian"}, r"model.head: .*Discrete\(3\).*leave"),
    "beta for MultiBinary": (spaces.MultiBinary(3), {"head": "beta"}, r"model.head: .*MultiBinary\(3\).*leave"),
    "a Box head for integers": (spaces.Box(0, 5, (2,), np.int64), {"head": "beta"}, "data.env_id: .*not supported"),
    "a categorical head for a Box": (BOX, {"head": f"{HEADS_MODULE}.CategoricalHead"}, "model.head: .*Discrete action"),
    "an unbounded squashed Gaussian": (UNBOUNDED, {"head": "squashed_gaussian"}, r"model.head: .*Box\(.*use gaussian"),
    "an unbounded beta": (UNBOUNDED, {"head": "beta"}, r"model.head: .*Box\(.*use gaussian"),
    "bounds that meet": (spaces.Box(1.0, 1.0, (2,)), {"head": "beta"}, "model.head: .*low < high"),
    "σ(s) of a Discrete": (spaces.Discrete(3), {"state_dependent_std": True}, "model.state_dependent_std: .*Discrete"),
    "σ(s) of a beta": (BOX, {"head": "beta", "state_dependent_std": True}, "model.state_dependent_std: .*BetaHead"),
    "σ(s) of one's own": (BOX, {"head": OWN, "state_dependent_std": True}, "model.state_dependent_std: .*init_args"),
    "log σ out of reach": (BOX, {"log_std_init": 3.0, "state_dependent_std": True}, "model.log_std_init: .*2, got 3"),
    "an unknown name": (BOX, {"head": "gausian"}, "model.head: .*gausian.*squashed_gaussian"),
    "an unknown option": (
        BOX,
        {"head": {"class_path": "beta", "init_args": {"log_std_init": 0.0}}},
        "model.head: .*BetaHead.*log_std_init",
    ),
    "something else": (BOX, {"head": "math.pi"}, r"model.head: 3\.14.* must be a Head"),
    "no head": (BOX, {"head": {"class_path": "torch.nn.Linear"}}, "model.head: Linear must be a Head"),
    "a head without its layer": (BOX, {"head": f"{__name__}.LinearMissing"}, "model.head: LinearMissing .*nn.Linear"),
    "half a head": (BOX, {"head": f"{__name__}.ForwardMissing"}, "model.head: ForwardMissing must be a Head"),
}


@pytest.mark.parametrize(("space", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(space, options, message):
    with pytest.raises(UserError, match=message) as error:
        make_head(6, space, **options)
    assert "\n" not in str(error.value)
