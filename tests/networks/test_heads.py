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
from pg_lightning.networks import make_head
from pg_lightning.networks.heads import DiagonalGaussian

SPACES = {
    "categorical": spaces.Discrete(4),
    "multi-categorical": spaces.MultiDiscrete([2, 4, 3]),
    "bernoulli": spaces.MultiBinary(3),
    "gaussian": spaces.Box(-1.0, 1.0, (2,)),
}
FINITE = [name for name in SPACES if name != "gaussian"]
FEATURES = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

every_head = pytest.mark.parametrize("name", SPACES)
every_finite_head = pytest.mark.parametrize("name", FINITE)


def head_for(name):
    """A head with weights large enough for its choices to be far from uniform."""
    head = make_head(6, SPACES[name], log_std_init=-0.3)
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


def reference(name, head, features):
    outputs = features @ head.linear.weight.T + head.linear.bias
    if name == "categorical":
        return td.Categorical(logits=outputs)
    if name == "multi-categorical":
        return Choices(outputs.view(-1, 3, 4), [2, 4, 3])
    if name == "bernoulli":
        return td.Independent(td.Bernoulli(logits=outputs), 1)
    return td.Independent(td.Normal(outputs, head.log_std.exp()), 1)


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
    torch.testing.assert_close(head(FEATURES).entropy(), reference(name, head, FEATURES).entropy())


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


def test_samples_of_the_gaussian_are_normal_and_independent():
    head = head_for("gaussian")
    pi = head(FEATURES[:1].expand(20_000, -1))
    samples = pi.sample(torch.Generator().manual_seed(2)).double().numpy()
    expected = reference("gaussian", head, FEATURES[:1]).base_dist
    for d in range(2):
        mean, std = expected.loc[0, d].item(), expected.scale[0, d].item()
        assert stats.kstest(samples[:, d], "norm", args=(mean, std)).pvalue > 1e-3
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


def test_the_environment_gets_actions_within_float64_bounds():
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    head = make_head(6, space)
    assert space.contains(head.env_actions(torch.full((1, 2), 5.0)).numpy()[0])


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
