import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from pg_lightning.errors import UserError
from pg_lightning.policies import MLP, ActorCritic
from pg_lightning.policies.distributions import Categorical
from pg_lightning.policies.heads import CategoricalHead
from pg_lightning.rollout import Batch

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
BATCH = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))

shared_or_not = pytest.mark.parametrize("shared_torso", [False, True], ids=["separate", "shared"])


def network(observations=OBSERVATIONS, actions=None, hidden_sizes=(8, 6), activation="tanh", shared=False, norm=False):
    actions = actions or spaces.Box(-1.0, 1.0, (2,))
    options = {"hidden_sizes": list(hidden_sizes), "activation": activation, "shared_torso": shared}
    return ActorCritic(observations, actions, normalize_obs=norm, **options)


@shared_or_not
@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["Discrete", "Box"])
def test_the_parameter_groups_hold_every_parameter_exactly_once(shared_torso, actions):
    net = network(actions=actions, shared=shared_torso)
    actor, critic = net.parameter_groups()
    grouped = [id(p) for p in (*actor, *critic)]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters()}


def gradient_reaches(output, parameters):
    grads = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return [g is not None and bool(g.any()) for g in grads]


def test_separate_torsos_have_nothing_in_common():
    net = network()
    actor, critic = net.parameter_groups()
    log_prob = net.pi(BATCH).log_prob(torch.ones(5, 2))
    assert all(gradient_reaches(log_prob, actor))
    assert not any(gradient_reaches(net.pi(BATCH).log_prob(torch.ones(5, 2)), critic))
    assert all(gradient_reaches(net.v(BATCH), critic))
    assert not any(gradient_reaches(net.v(BATCH), actor))


def test_a_shared_torso_learns_from_actor_and_critic():
    net = network(shared=True)
    torso = list(net.actor_torso.parameters())
    assert all(gradient_reaches(net.pi(BATCH).log_prob(torch.ones(5, 2)), torso))
    assert all(gradient_reaches(net.v(BATCH), torso))
    assert len(list(net.parameters())) == len(list(network().parameters())) - len(torso)


@shared_or_not
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 6)], ids=str)
def test_forward_is_pi_and_v(shared_torso, norm, hidden_sizes):
    net = network(hidden_sizes=hidden_sizes, shared=shared_torso, norm=norm)
    if norm:
        net.normalizer.statistics.update(3 * BATCH + 1)
    nothing = torch.zeros(5)
    pi, values = net(Batch(BATCH, nothing, nothing, nothing, nothing))
    actions = pi.sample()
    assert torch.equal(net.v(BATCH), values)
    assert torch.equal(net.pi(BATCH).log_prob(actions), pi.log_prob(actions))
    assert values.shape == pi.log_prob(actions).shape == pi.entropy().shape == (5,)


def test_actor_and_critic_see_normalised_observations():
    net, plain = network(norm=True), network()
    plain.load_state_dict(net.state_dict(), strict=False)
    net.normalizer.statistics.update(3 * BATCH + 1)
    scaled = net.normalizer(BATCH)
    assert not torch.equal(scaled, BATCH)
    assert torch.equal(net.v(BATCH), plain.v(scaled))
    assert torch.equal(net.pi(BATCH).mode, plain.pi(scaled).mode)


def assert_orthogonal(layer, gain):
    weight = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
    torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)
    assert not layer.bias.any()


@shared_or_not
def test_weights_are_orthogonal_with_gains_that_keep_the_first_policy_near_uniform(shared_torso):
    net = network(hidden_sizes=(8, 8, 4), shared=shared_torso)
    for torso in (net.actor_torso, net.critic_torso):
        for layer in torso.linears:
            assert_orthogonal(layer, 2**0.5)
    assert_orthogonal(net.actor_head.linear, 0.01)
    assert_orthogonal(net.critic_head, 1.0)


def test_images_are_flattened():
    images = spaces.Box(0, 255, (4, 5, 3), np.uint8)
    net = network(images)
    batch = torch.randint(0, 256, (6, 4, 5, 3), dtype=torch.uint8)
    flat = network(spaces.Box(0, 255, (60,)))
    flat.load_state_dict(net.state_dict())
    assert torch.equal(net.v(batch), flat.v(batch.flatten(1).float()))
    assert net.v(batch).shape == (6,)


def test_images_are_normalised_per_pixel():
    net = network(spaces.Box(0, 255, (4, 5, 3), np.uint8), norm=True)
    batch = torch.randint(0, 256, (50, 4, 5, 3), dtype=torch.uint8)
    net.normalizer.statistics.update(batch)
    plain = network(spaces.Box(0, 255, (4, 5, 3)))
    plain.load_state_dict(net.state_dict(), strict=False)
    pixels = batch.float()
    scaled = (pixels - pixels.mean(0)) / pixels.std(0, correction=0)
    torch.testing.assert_close(net.v(batch), plain.v(scaled), atol=1e-4, rtol=1e-4)


def test_scalar_observations_are_vectors_of_one():
    assert network(spaces.Box(-1.0, 1.0, ())).v(torch.randn(5)).shape == (5,)


def test_activations_differ():
    x = torch.randn(20, 3)
    features = {}
    for activation in ("tanh", "relu", "silu", "elu"):
        torch.manual_seed(0)
        features[activation] = MLP(3, [8], activation)(x)
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(features.values(), 2))
    assert features["relu"].min() == 0
    assert features["tanh"].abs().max() < 1


def test_the_initial_log_std_is_the_one_asked_for():
    net = ActorCritic(OBSERVATIONS, spaces.Box(-1.0, 1.0, (2,)), log_std_init=-1.5)
    assert net.pi(BATCH).log_std.tolist() == [-1.5, -1.5]


def test_values_of_a_half_precision_network_are_float32():
    assert network().bfloat16().v(BATCH).dtype == torch.float32


def test_an_observation_space_without_vector_form_is_named():
    with pytest.raises(UserError, match=r"Discrete\(3\)"):
        network(spaces.Discrete(3))


class Products(TorchDispatchMode):
    """Counts the matrix products that torch computes."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += "mm" in operation.name() or "linear" in operation.name()
        return operation(*args, **(kwargs or {}))


def acts_in_numpy(net, obs):
    with Products() as products:
        net.sample(obs, torch.Generator().manual_seed(0), None, net.initial_state(len(obs)))
    return products.count == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "relu"}, {"normalize_obs": True}, {"hidden_sizes": []}, {"shared_torso": True}],
    ids=str,
)
@pytest.mark.parametrize(
    ("actions", "head"),
    [
        (spaces.Discrete(3, start=1), None),
        *((spaces.Box(-1, 1, (2,)), name) for name in ("gaussian", "squashed_gaussian")),
    ],
    ids=["categorical", "gaussian", "squashed"],
)
def test_the_numpy_path_samples_the_same_policy_and_follows_the_weights(actions, head, options):
    net = ActorCritic(spaces.Box(-1, 1, (2, 3)), actions, head=head, **options)
    obs = torch.randn(8, 2, 3).repeat_interleave(8, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for _ in range(2):
            pi = net.act(obs)[0]
            with net.acting():
                assert acts_in_numpy(net, obs)
                samples = torch.stack([net.sample(obs, generator)[0] for _ in range(700)])
            assert not acts_in_numpy(net, obs)
            assert samples.dtype == pi.sample(generator).dtype
            assert samples[0].shape == pi.sample(generator).shape
            # Each of the 8 observations, 5,600 times.
            seen, mean = samples.unflatten(1, (8, 8)).transpose(1, 2).flatten(0, 1).double(), pi.mode[::8]
            if head is None:
                for choice, probability in enumerate(pi.log_probs[::8].exp().T):
                    share = (seen == choice).double().mean(0)
                    np.testing.assert_allclose(share, probability, atol=4 * 0.5 / 5600**0.5)
            else:
                std = net.actor_head.log_std.exp()
                np.testing.assert_allclose((seen.mean(0) - mean) / std, 0, atol=4.5 / 5600**0.5)
                np.testing.assert_allclose(seen.std(0) / std, 1, atol=4.5 / (2 * 5600) ** 0.5)
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


def test_noise_is_not_used_twice():
    net = ActorCritic(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        drawn = []
        for _ in range(3):
            with net.acting():
                drawn += [net.sample(torch.zeros(8, 1), generator)[0] for _ in range(40)]
    assert len(torch.cat(drawn).unique()) == 3 * 40 * 8


class TemperedHead(CategoricalHead):
    def forward(self, features, action_mask=None):
        return Categorical(super().forward(features, action_mask).logits / 10)


class ColdHead(CategoricalHead):
    def distribution(self, outputs, action_mask=None):
        return super().distribution(outputs * 10, action_mask)


def test_noise_has_the_shape_of_the_outputs():
    net = ActorCritic(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), net.acting():
        net.sample(torch.zeros(1, 1), generator)
        assert len(net.sample(torch.zeros(4, 1), generator)[0].unique()) == 4


class HalvingHead(CategoricalHead):
    def __init__(self, num_features, space):
        super().__init__(num_features, space)

        class Halving(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x) / 2

        self.linear = Halving(num_features, int(space.n))


@pytest.mark.parametrize(
    "options",
    [
        {"head": f"{__name__}.HalvingHead"},
        {"layer_norm": True},
        {"activation": "elu"},
        {"memory": "gru"},
        {"head": f"{__name__}.TemperedHead"},
        {"head": f"{__name__}.ColdHead"},
    ],
    ids=str,
)
def test_what_numpy_cannot_express_acts_in_torch(options):
    net = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), **options)
    obs = torch.randn(4, 3)
    with net.acting():
        assert not acts_in_numpy(net, obs)
    plain = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    with plain.acting():
        assert acts_in_numpy(plain, obs)
        assert not acts_in_numpy(plain, obs.repeat(50, 1)), "torch is faster for many rows"
    with plain.double().acting():
        assert not acts_in_numpy(plain, obs)
    with torch.autocast("cpu", torch.bfloat16), plain.float().acting():
        assert not acts_in_numpy(plain, obs)
