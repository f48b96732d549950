"""Actor and critic: two networks, or one torso with two heads."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn.functional import linear

from pg_lightning.errors import UserError
from pg_lightning.networks.heads import Distribution, make_head
from pg_lightning.networks.normalizers import ObservationNormalizer

Activation = Literal["tanh", "relu", "silu", "elu"]
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "silu": nn.functional.silu, "elu": nn.functional.elu}


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation; `[B, in_features]` to `[B, out_features]`.

    Weights are orthogonal with gain √2 and biases zero, the field's convention for policy gradients
    (Engstrom et al. 2020, Andrychowicz et al. 2021).
    """

    def __init__(self, in_features: int, hidden_sizes: list[int], activation: Activation) -> None:
        super().__init__()
        sizes = [in_features, *hidden_sizes]
        self.out_features = sizes[-1]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.activation = ACTIVATIONS[activation]
        for layer in self.linears:
            orthogonal_(layer, math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the last hidden layer, activated."""
        # Acting calls this once per environment step with a handful of rows: calling each layer as a module would
        # double its cost.
        for layer in self.linears:
            x = self.activation(linear(x, layer.weight, layer.bias))  # type: ignore[arg-type]
        return x


def orthogonal_(layer: nn.Module, gain: float) -> None:
    """Orthogonal weights times `gain`, zero biases (Saxe et al. 2014)."""
    assert isinstance(layer, nn.Linear)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


class ActorCritic(nn.Module):
    """π(·|s) and V(s) for vector observations.

    Args:
        observation_space: a `Box`; images and other shapes are flattened.
        action_space: see `make_head`.
        hidden_sizes: widths of the hidden layers.
        activation: between the layers.
        shared_torso: one torso under both heads instead of one each.
        log_std_init: initial log σ of a Gaussian policy.
        normalize_obs: scale observations by their running mean and variance.

    Raises:
        UserError: if a space is not supported.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: list[int],
        activation: Activation,
        shared_torso: bool,
        log_std_init: float,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        if not isinstance(observation_space, spaces.Box):
            raise UserError(f"data.env_id: observation space {observation_space} has no vector form")
        self.normalizer = ObservationNormalizer(observation_space.shape) if normalize_obs else None
        in_features = math.prod(observation_space.shape)
        self.actor_torso = MLP(in_features, hidden_sizes, activation)
        self.critic_torso = self.actor_torso if shared_torso else MLP(in_features, hidden_sizes, activation)
        self.actor_head = make_head(self.actor_torso.out_features, action_space, log_std_init)
        self.critic_head = nn.Linear(self.critic_torso.out_features, 1)
        orthogonal_(self.actor_head.linear, 0.01)
        orthogonal_(self.critic_head, 1.0)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The actor's parameters and the critic's; a shared torso belongs to the actor's."""
        actor = [*self.actor_torso.parameters(), *self.actor_head.parameters()]
        critic = [*self.critic_head.parameters()]
        if self.critic_torso is not self.actor_torso:
            critic = [*self.critic_torso.parameters(), *critic]
        return actor, critic

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """π(·|s) and V(s) `[B]` for observations `[B, *obs]`, running a shared torso once."""
        x = self._vector(obs)
        features = self.actor_torso(x)
        critic_features = features if self.critic_torso is self.actor_torso else self.critic_torso(x)
        return self.actor_head(features), self._values(critic_features)

    def pi(self, obs: Tensor) -> Distribution:
        """π(·|s) for observations `[B, *obs]`."""
        return self.actor_head(self.actor_torso(self._vector(obs)))

    def v(self, obs: Tensor) -> Tensor:
        """V(s) `[B]` for observations `[B, *obs]`."""
        return self._values(self.critic_torso(self._vector(obs)))

    def _vector(self, obs: Tensor) -> Tensor:
        obs = obs.to(self.critic_head.weight.dtype)
        if self.normalizer is not None:
            obs = self.normalizer(obs)
        return obs.reshape(len(obs), -1)

    def _values(self, features: Tensor) -> Tensor:
        values = self.critic_head(features).squeeze(-1)
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
