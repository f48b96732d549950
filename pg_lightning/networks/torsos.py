"""Torsos: from observations to features, and a memory between the two and the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import linear

from pg_lightning.errors import UserError

Activation = Literal["tanh", "relu", "silu", "elu"]
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "silu": nn.functional.silu, "elu": nn.functional.elu}
IN_NUMPY: dict[Any, Callable[[np.ndarray, np.ndarray], Any]] = {
    torch.tanh: np.tanh,
    torch.relu: lambda x, out: np.maximum(x, 0, out=out),
}
MemoryKind = Literal["lstm", "gru"]


def orthogonal_(layer: nn.Module, gain: float) -> None:
    """Orthogonal weights times `gain`, zero biases (Saxe et al. 2014): the field's convention for policy gradients

    (Engstrom et al. 2020, Andrychowicz et al. 2021).
    """
    for name, parameter in layer.named_parameters():
        nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter, gain)


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation; `[B, *obs]` is flattened, to `[B, out_features]`.

    Args:
        in_features: numbers in an observation.
        hidden_sizes: widths of the layers; none leaves the observation as it is.
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
        """Features of the last hidden layer, activated."""
        x = obs.reshape(obs.shape[0], self.in_features)  # not -1: there may be no rows
        norms, activation = self.norms, self.activation
        # Acting calls this once per environment step with a handful of rows: calling each layer as a module would
        # double its cost.
        for i, layer in enumerate(self.linears):
            x = linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
            x = activation(x if norms is None else norms[i](x))
        return x

    @property
    def has_numpy_form(self) -> bool:
        """Whether `in_numpy` can express it: not with layer norm, nor with another activation than tanh and ReLU."""
        return self.norms is None and self.activation in IN_NUMPY

    def in_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """The same function of `[B, in_features]` float32 arrays, with the weights where they are in memory.

        NumPy's calls cost a third of torch's, which is what counts at a handful of rows.
        """
        linears = cast(list[nn.Linear], list(self.linears))
        layers = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linears]
        activation = IN_NUMPY[self.activation]

        def forward(x: np.ndarray) -> np.ndarray:
            for weight, bias in layers:
                x = x @ weight
                x += bias
                activation(x, x)
            return x

        return forward


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. 2015 (Nature DQN): 32 8×8/4, 64 4×4/2, 64 3×3/1, then 512 units, all ReLU.

    Args:
        observation_space: images `[C, H, W]` or `[H, W, C]` (the smallest of the three is taken for the channels), or
            `[H, W]`; of at least 36 × 36. Bytes are divided by 255.

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


class Memory(nn.Module):
    """An LSTM or a GRU; its state `[N, S]` is the output and, of an LSTM, the cell (S twice the size).

    Weights are orthogonal, biases zero.

    Args:
        kind: `lstm` (Hochreiter & Schmidhuber 1997) or `gru` (Cho et al. 2014).
        in_features: width F of what comes in.
        size: width H of the output.
    """

    def __init__(self, kind: MemoryKind, in_features: int, size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(in_features, size) if kind == "lstm" else nn.GRUCell(in_features, size)
        self.out_features = size
        self.state_size = 2 * size if kind == "lstm" else size
        orthogonal_(self.cell, 1.0)

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: features `[N, F]` and state `[N, S]` to outputs `[N, H]` and the next state `[N, S]`."""
        if isinstance(self.cell, nn.GRUCell):
            out = self.cell(features, state)
            return out, out
        out, cell = self.cell(features, tuple(state.chunk(2, -1)))
        return out, torch.cat([out, cell], -1)

    def unroll(self, features: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """All rows, one after the other; gradients flow back through them, but not beyond the first.

        Args:
            features: `[T, N, F]`.
            state: `[N, S]` before the first row.
            starts: `[T, N]` bool; the state is cleared before these rows.

        Returns:
            Outputs `[T, N, H]` and the states `[T, N, S]` after each row.
        """
        outputs, states = [], []
        goes_on = ~starts.unsqueeze(-1)
        for x, keep in zip(features, goes_on, strict=True):
            out, state = self(x, state * keep)
            outputs.append(out)
            states.append(state)
        return torch.stack(outputs), torch.stack(states)
