"""Torsos: map observations to features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError, require

Activation = Literal["tanh", "relu", "silu", "elu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "elu": nn.functional.elu,
}


# tanh x ≈ x P(x²) / Q(x²), the minimax approximation that Eigen and XLA use; highest power first.
TANH_P = (-2.76076847e-16, 2.00018790e-13, -8.60467152e-11, 5.12229709e-8, 1.48572236e-5, 6.37261929e-4, 4.89352456e-3)
TANH_Q = (1.19825839e-6, 1.18534705e-4, 2.26843463e-3, 4.89352519e-3)
TANH_CLAMP = 7.90531111  # above it tanh is 1 in float32


def rational_tanh(x: Tensor) -> Tensor:
    """tanh to 4e-7, in operations that a compiled kernel vectorises; with the first two derivatives of tanh."""
    z = x.clamp(-TANH_CLAMP, TANH_CLAMP)
    y = _rational(z.detach())
    change = z - z.detach()  # 0, with a gradient: the Taylor series of tanh at z
    return y + (1 - y * y) * change * (1 - y * change)


def _rational(x: Tensor) -> Tensor:
    square = x * x
    numerator, denominator = (reduce(lambda total, c: total * square + c, powers) for powers in (TANH_P, TANH_Q))
    return x * numerator / denominator


class FirstOrderTanh(torch.autograd.Function):
    """`rational_tanh` whose gradient takes half the time. Its derivative in forward mode, and in some compiled code its
    second derivative, is lost: only use it in a loss that takes no gradient itself."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """tanh x."""
        return _rational(x.clamp(-TANH_CLAMP, TANH_CLAMP))

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        """Saves tanh x, which compiled code then does not compute again."""
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """(1 − tanh²x) times the gradient."""
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (1 - y * y)


_COMPILED: list[Callable[[Tensor], Tensor]] = [rational_tanh]  # for tanh in compiled code


@contextmanager
def first_order_tanh() -> Iterator[None]:
    """Within this context, compiled code uses `FirstOrderTanh`."""
    _COMPILED[0] = FirstOrderTanh.apply
    try:
        yield
    finally:
        _COMPILED[0] = rational_tanh


def orthogonal_(layer: nn.Module, gain: float) -> None:
    """Orthogonal weights times `gain`, zero biases (Saxe et al. 2014): the field's convention for policy gradients

    (Engstrom et al. 2020, Andrychowicz et al. 2021).
    """
    for name, parameter in layer.named_parameters():
        nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter, gain)


def _has_slow_tanh(x: Tensor) -> bool:
    """Whether compiled code calls a library for tanh: float32 on a CPU. An exported graph may run on other machines."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_exporting()


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation; `[B, *obs]` is flattened, to `[B, out_features]`.

    Args:
        in_features: numbers in an observation.
        hidden_sizes: widths of the layers; an empty list leaves the observation unchanged.
        activation: of every layer.
        layer_norm: normalise the units of every layer before its activation.
    """

    def __init__(
        self, in_features: int, hidden_sizes: Sequence[int], activation: Activation = "tanh", layer_norm: bool = False
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden_sizes]
        self.in_features, self.out_features = sizes[0], sizes[-1]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in hidden_sizes) if layer_norm else None
        self.activation = ACTIVATIONS[activation]
        for layer in self.linears:
            orthogonal_(layer, math.sqrt(2))

    def forward(self, obs: Tensor) -> Tensor:
        """Activations of the last hidden layer."""
        x = obs.reshape(obs.shape[0], self.in_features)  # not -1: the batch may be empty
        norms, activation = self.norms, self.activation
        if activation is torch.tanh and torch.compiler.is_compiling() and _has_slow_tanh(x):
            activation = _COMPILED[0]
        # Acting calls this once per environment step with few rows: calling each layer as a module would
        # double its cost.
        for i, layer in enumerate(self.linears):
            x = linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
            x = activation(x if norms is None else norms[i](x))
        return x


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. 2015 (Nature DQN): 32 8×8/4, 64 4×4/2, 64 3×3/1, then 512 units, all ReLU.

    Args:
        observation_space: images `[C, H, W]` or `[H, W, C]` (the smallest dimension is the channels), or
            `[H, W]`; at least 36 × 36. uint8 images are divided by 255.

    Raises:
        UserError: if the observations are not such images.
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__()
        shape = observation_space.shape
        channel_axis = int(np.argmin(shape)) if len(shape) == 3 else 0
        if len(shape) not in (2, 3) or sorted(shape)[-2] < 36 or channel_axis == 1:
            raise UserError(
                f"model.torso: nature_cnn needs images of at least 36 x 36, data.env_id has {shape}; use mlp"
            )
        self.channels_last = channel_axis == 2
        self.bytes = observation_space.dtype == np.uint8
        channels = 1 if len(shape) == 2 else min(shape)
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            features = self.convolutions(self._images(torch.zeros(1, *shape)))
        self.out_features = 512
        self.linear = nn.Linear(features.shape[1], self.out_features)
        orthogonal_(self, math.sqrt(2))

    def forward(self, obs: Tensor) -> Tensor:
        """Features `[B, 512]` of images `[B, *obs]`."""
        return torch.relu(self.linear(self.convolutions(self._images(obs))))

    def _images(self, obs: Tensor) -> Tensor:
        if obs.dim() == 3:
            obs = obs.unsqueeze(1)
        elif self.channels_last:
            obs = obs.permute(0, 3, 1, 2)
        return obs / 255 if self.bytes else obs


class BoardCNN(nn.Module):
    """3×3 convolutions that keep the size of a board, and one fully connected layer, all ReLU.

    Args:
        observation_space: a board `[H, W, C]` of C planes, whose numbers are used as they are.
        channels: of every convolution.
        num_layers: number of convolutions.
        features: width of the fully connected layer.

    Raises:
        UserError: if the observations are no board, or a size is not at least 1.
    """

    def __init__(
        self, observation_space: spaces.Box, channels: int = 32, num_layers: int = 2, features: int = 128
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("num_layers", num_layers), ("features", features)):
            require(f"model.torso: board_cnn {name}", size, 1)
        shape = observation_space.shape
        if len(shape) != 3:
            raise UserError(f"model.torso: board_cnn needs boards [H, W, C], data.env_id has {list(shape)}; use mlp")
        height, width, planes = shape
        sizes = [planes, *[channels] * num_layers]
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        self.linear = nn.Linear(channels * height * width, features)
        self.out_features = features
        orthogonal_(self, math.sqrt(2))

    def forward(self, obs: Tensor) -> Tensor:
        """Features `[B, features]` of boards `[B, H, W, C]`."""
        x = obs.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return torch.relu(self.linear(x.flatten(1)))


TORSOS: dict[str, type[nn.Module]] = {"mlp": MLP, "nature_cnn": NatureCNN, "board_cnn": BoardCNN}


def make_torso(
    space: spaces.Box, torso: ClassPath, hidden_sizes: Sequence[int], activation: Activation, layer_norm: bool
) -> nn.Module:
    """A torso for observations of a space; see `ActorCritic`.

    Raises:
        UserError: if it cannot be created for them, or has no `out_features`.
    """
    make, arguments = resolve("model.torso", torso, TORSOS)
    if make is MLP:
        return MLP(math.prod(space.shape), hidden_sizes, activation, layer_norm, **arguments)
    try:
        made: nn.Module = make(space, **arguments)
        out_features(made)
    except (TypeError, AttributeError) as error:
        raise UserError(f"model.torso: cannot make {make.__name__}(observation_space, ...): {error}") from error
    return made


def out_features(part: nn.Module | None) -> int:
    """The number of output features of a torso or a recurrent cell."""
    return cast(Any, part).out_features
