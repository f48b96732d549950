"""The recurrent cell between torso and heads: an LSTM or a GRU, one step at a time or unrolled over a rollout."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pg_lightning.policies.torsos import orthogonal_

MemoryKind = Literal["lstm", "gru"]


class Memory(nn.Module):
    """An LSTM or a GRU; its state `[N, S]` is the output and, for an LSTM, also the cell (S twice the size).

    Weights are orthogonal, biases zero.

    Args:
        kind: `lstm` (Hochreiter & Schmidhuber 1997) or `gru` (Cho et al. 2014).
        in_features: width F of the input.
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
        """All rows, in sequence; gradients flow back through them, but not beyond the first.

        Args:
            features: `[T, N, F]`.
            state: `[N, S]` before the first row.
            starts: `[T, N]` bool; the state is reset before these rows.

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
