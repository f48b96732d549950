"""Torsos turn observations of their kind into features, and refuse the others in one line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from pg_lightning.algorithms import PPO
from pg_lightning.errors import UserError
from pg_lightning.policies import MLP, ActorCritic, NatureCNN
from pg_lightning.policies.torsos import BoardCNN, FirstOrderTanh, rational_tanh
from pg_lightning.rollout import Rollout

ENV_ID = "tests/Blinking-v0"


def images(*shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255, shape, dtype)


class Blinking(gym.Env[Any, Any]):
    """One image, black or white with equal chances; white asks for action 1, black for 0."""

    observation_space = images(1, 36, 36)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.white = int(self.np_random.integers(2))
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        return self._observation(), float(action == self.white), True, False, {}

    def _observation(self) -> np.ndarray:
        return np.full((1, 36, 36), 255 * self.white, np.uint8)


gym.register(ENV_ID, Blinking)


class Doubling(nn.Module):
    """A torso of the user's: `factor` times the sum of the observation, in `width` copies."""

    def __init__(self, observation_space: spaces.Box, factor: float = 2.0, width: int = 3) -> None:
        super().__init__()
        self.shape = observation_space.shape
        self.out_features = width
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, obs: Tensor) -> Tensor:
        assert obs.shape[1:] == self.shape
        return self.factor * obs.flatten(1).sum(1, keepdim=True).expand(-1, self.out_features)


SHAPES = [(3, 40, 48), (40, 48, 3), (40, 48), (1, 36, 36), (36, 36, 1), (4, 84, 84)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_every_layout_become_512_features_that_depend_on_every_channel(
    shape: tuple[int, ...], dtype: Any
) -> None:
    torso = NatureCNN(images(*shape, dtype=dtype))
    obs = torch.randint(0, 256, (2, *shape)).float().requires_grad_()
    features = torso(obs)
    assert features.shape == (2, torso.out_features) == (2, 512)
    (gradient,) = torch.autograd.grad(features[0].sum(), obs)
    assert not gradient[1].any()
    if len(shape) == 3:
        other_axes = [axis for axis in range(3) if axis != int(np.argmin(shape))]
        assert gradient[0].abs().sum(other_axes).all()
    parameters = list(torso.parameters())
    assert all(g.any() for g in torch.autograd.grad(torso(obs.detach()).sum(), parameters))


def test_the_layers_are_those_of_the_paper() -> None:
    torso = NatureCNN(images(4, 84, 84))
    convolutions = [layer for layer in torso.convolutions if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (4, 32, 8, 4),
        (32, 64, 4, 2),
        (64, 64, 3, 1),
    ]
    assert (torso.linear.in_features, torso.linear.out_features) == (7 * 7 * 64, 512)
    for layer in (*convolutions, torso.linear):
        weight = layer.weight.detach().flatten(1)
        weight = weight if len(weight) <= weight.shape[1] else weight.T
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), atol=1e-4, rtol=0)


def test_the_layouts_are_of_the_same_image() -> None:
    first, last = NatureCNN(images(3, 40, 48)), NatureCNN(images(40, 48, 3))
    last.load_state_dict(first.state_dict())
    obs = torch.randint(0, 256, (2, 3, 40, 48)).float()
    torch.testing.assert_close(first(obs), last(obs.permute(0, 2, 3, 1)))
    flat, single = NatureCNN(images(40, 48)), NatureCNN(images(1, 40, 48))
    flat.load_state_dict(single.state_dict())
    torch.testing.assert_close(flat(obs[:, 0]), single(obs[:, :1]))


def test_bytes_are_divided_by_255_and_floats_are_not() -> None:
    of_bytes, of_floats = NatureCNN(images(1, 36, 36)), NatureCNN(images(1, 36, 36, dtype=np.float32))
    of_floats.load_state_dict(of_bytes.state_dict())
    obs = torch.randint(0, 256, (2, 1, 36, 36)).float()
    torch.testing.assert_close(of_bytes(obs), of_floats(obs / 255))
    assert not torch.allclose(of_bytes(obs), of_floats(obs))


def test_normalised_bytes_are_not_divided_once_more() -> None:
    def net(space: spaces.Box) -> ActorCritic:
        return ActorCritic(space, spaces.Discrete(2), torso="nature_cnn", normalize_obs=True)

    of_bytes, of_floats = net(images(1, 36, 36)), net(images(1, 36, 36, dtype=np.float32))
    of_floats.load_state_dict(of_bytes.state_dict())
    obs = torch.randint(0, 256, (20, 1, 36, 36), dtype=torch.uint8)
    for network in (of_bytes, of_floats):
        assert network.normalizer is not None
        network.normalizer.statistics.update(obs)
    torch.testing.assert_close(of_bytes.v(obs), of_floats.v(obs.float()))


@pytest.mark.parametrize(
    "shape",
    [(3, 35, 84), (84, 35, 3), (35, 84), (5,), (), (2, 3, 40, 40), (84, 3, 84), (3, 3, 84)],
    ids=str,
)
def test_what_is_no_image_or_too_small_is_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^model\.torso: nature_cnn needs images of at least 36 x 36.*; use mlp$"):
        ActorCritic(images(*shape), spaces.Discrete(2), torso="nature_cnn")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [None, "lstm"])
def test_a_network_takes_bytes_as_they_are(shared: bool, memory: Any) -> None:
    net = ActorCritic(
        images(36, 40, 3), spaces.Discrete(2), torso="nature_cnn", shared_torso=shared, memory=memory, memory_size=8
    )
    obs = torch.randint(0, 256, (3, 36, 40, 3), dtype=torch.uint8)
    assert torch.equal(net.v(obs), net.v(obs.float()))
    assert net.pi(obs).mode.shape == (3,)


def test_rollouts_of_bytes_stay_bytes_and_are_learned_from(fit: Any) -> None:
    dtypes = set()

    class Recorder(PPO):
        def update(self, rollout: Rollout) -> dict[str, Tensor]:
            dtypes.update((rollout.obs.dtype, rollout.final_obs.dtype))
            assert set(rollout.obs.unique().tolist()) <= {0, 255}
            return super().update(rollout)

    data = {"total_steps": 1024, "num_steps": 16, "eval_every_steps": 1024, "eval_episodes": 20}
    model = {"torso": "nature_cnn", "shared_torso": True, "lr": 2e-3, "num_minibatches": 1}
    module = fit(ENV_ID, data, algorithm=Recorder, **model)
    assert dtypes == {torch.uint8}
    assert module.evaluation[0].tolist() == [1.0] * 20


# A torso by class path, as a config names it.


def doubling(**arguments: Any) -> Any:
    path = f"{Doubling.__module__}.Doubling"
    return {"class_path": path, "init_args": arguments} if arguments else path


@pytest.mark.parametrize("arguments", [{}, {"factor": 5.0, "width": 7}], ids=str)
def test_a_torso_can_be_named_by_its_class_path(arguments: dict[str, Any]) -> None:
    net = ActorCritic(spaces.Box(-1.0, 1.0, (2, 2)), spaces.Discrete(3), torso=doubling(**arguments))
    actor, critic = net.actor_torso, net.critic_torso
    assert type(actor).__name__ == type(critic).__name__ == "Doubling"
    assert actor is not critic
    width = arguments.get("width", 3)
    assert net.actor_head.linear.in_features == width
    obs = torch.rand(4, 2, 2)
    features = arguments.get("factor", 2.0) * obs.flatten(1).sum(1, keepdim=True).expand(-1, width)
    torch.testing.assert_close(net.v(obs), net.critic_head(features).squeeze(-1))  # type: ignore[misc]


def test_a_named_torso_is_trained_with_all_its_parameters(fit: Any) -> None:
    module = fit("CartPole-v1", torso=doubling(factor=0.5), memory="gru", lr=1e-2)
    factors = [torso.factor.item() for torso in (module.network.actor_torso, module.network.critic_torso)]
    assert all(factor != 0.5 for factor in factors)


def test_a_torso_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"^model\.torso: cannot import 'cnn'.*names are mlp, nature_cnn, board_cnn"):
        ActorCritic(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), torso="cnn")


# Layer normalisation.


def test_layer_norm_normalises_the_units_before_their_activation() -> None:
    torch.manual_seed(1)
    torso = MLP(3, [8, 6], "tanh", layer_norm=True)
    x = torch.randn(5, 3)
    expected = x
    for linear in torso.linears:
        units = linear(expected)
        spread = units.var(-1, correction=0, keepdim=True) + 1e-5
        expected = ((units - units.mean(-1, keepdim=True)) / spread.sqrt()).tanh()
    torch.testing.assert_close(torso(x), expected)
    assert not torch.allclose(MLP(3, [8, 6], "tanh")(x), expected, atol=0.1)


def test_layer_norm_is_learned_and_kept(fit: Any) -> None:
    module = fit("CartPole-v1", layer_norm=True, lr=1e-2)
    for torso in (module.network.actor_torso, module.network.critic_torso):
        assert not torch.equal(torso.norms[0].weight, torch.ones(32))
    assert "network.actor_torso.norms.0.weight" in module.state_dict()
    plain = fit("CartPole-v1", lr=1e-2)
    assert not any("norms" in name for name in plain.state_dict())


class WithoutWidth(nn.Module):
    def __init__(self, observation_space):
        super().__init__()


@pytest.mark.parametrize(
    ("torso", "complaint"),
    [
        ({"class_path": "test_torsos.WithoutWidth", "init_args": {"depth": 2}}, "depth"),
        ("test_torsos.WithoutWidth", "out_features"),
    ],
    ids=["an argument that it does not take", "no width"],
)
def test_a_torso_that_cannot_be_made_or_does_not_say_its_width_is_named(torso, complaint):
    with pytest.raises(UserError, match=rf"model.torso: cannot make WithoutWidth.*{complaint}"):
        ActorCritic(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2), torso=torso)


@pytest.mark.parametrize("tanh", [rational_tanh, FirstOrderTanh.apply])
def test_the_tanh_of_compiled_code_is_tanh_to_5e_7_and_so_are_its_derivatives(tanh: Any) -> None:
    x = torch.linspace(-12, 12, 100_001, requires_grad=True)
    y = tanh(x)
    exact = torch.tanh(x.detach().double())
    assert (y.detach().double() - exact).abs().max() <= 5e-7
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert (slope.double() - (1 - exact.square())).abs().max() <= 1e-6
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert (bend.double() + 2 * exact * (1 - exact.square())).abs().max() <= 1e-5
    assert tanh(torch.tensor([torch.inf, -torch.inf])).tolist() == [1.0, -1.0]
    assert tanh(torch.tensor(torch.nan)).isnan()


def test_only_compiled_float32_on_a_cpu_computes_tanh_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torso = MLP(3, [4])
    obs = torch.randn(5, 3)
    eager = torso(obs)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = torso(obs)
    assert 0 < (compiled - eager).abs().max() < 1e-5
    exact = torso.double()(obs.double())
    assert torch.equal(exact, torch.tanh(torso.linears[0](obs.double())))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(torso.float()(obs), eager)


def test_a_board_moves_with_its_stones():
    """Every convolution keeps the board, so that a shifted position gives shifted features away from the border."""
    torso = BoardCNN(spaces.Box(0, 1, (9, 8, 2), np.uint8), channels=4, num_layers=3, features=5)
    board = torch.zeros(1, 9, 8, 2)
    board[0, 4, 3, 1] = 1
    x, shifted = (one.permute(0, 3, 1, 2) for one in (board, board.roll(1, 2)))
    for convolution in torso.convolutions:
        x, shifted = (torch.relu(convolution(one)) for one in (x, shifted))
    assert x.shape == (1, 4, 9, 8)
    assert x.any()
    torch.testing.assert_close(x[..., 1:6], shifted[..., 2:7])
    assert torso(board).shape == (1, 5)
    assert torso(torch.zeros(0, 9, 8, 2)).shape == (0, 5)


@pytest.mark.parametrize("shape", [(4,), (3, 3), (2, 3, 3, 2)])
def test_a_board_network_needs_a_board(shape):
    with pytest.raises(UserError, match=r"^model\.torso: board_cnn needs boards \[H, W, C\].*; use mlp$"):
        ActorCritic(spaces.Box(0, 1, shape, np.uint8), spaces.Discrete(2), torso="board_cnn")


def test_sizes_of_a_board_network_are_checked():
    torso = {"class_path": "board_cnn", "init_args": {"channels": 0}}
    with pytest.raises(UserError, match=r"^model\.torso: board_cnn channels: must be at least 1, got 0$"):
        ActorCritic(spaces.Box(0, 1, (3, 3, 2), np.uint8), spaces.Discrete(2), torso=torso)
