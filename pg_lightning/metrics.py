"""Metrics: what is measured of episodes and of the critic, summed over ranks by torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class EpisodeStatistics(Metric):
    """Returns and lengths of whole episodes, gathered over ranks unless `sync_on_compute` is false."""

    full_state_update = False
    returns: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("returns", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, returns: Tensor, lengths: Tensor) -> None:
        """Adds `[E]` undiscounted returns and `[E]` lengths in env steps."""
        if len(returns):
            self.returns.append(returns)
            self.lengths.append(lengths)

    def compute(self) -> tuple[Tensor, Tensor]:
        """All returns and all lengths since the last reset, `[E]` each; empty if no episode ended."""
        if not len(self.returns):
            return torch.zeros(0, device=self.device), torch.zeros(0, device=self.device)
        return dim_zero_cat(self.returns), dim_zero_cat(self.lengths)

    def collect(self) -> tuple[Tensor, Tensor]:
        """What `compute` gives, `[E]` even for one episode, which torchmetrics would squeeze; then starts anew."""
        returns, lengths = self.compute()
        self.reset()
        return torch.atleast_1d(returns), torch.atleast_1d(lengths)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Share of the variance of the returns that the critic explains, 1 − Var(G − V) / Var(G).

    1 is a perfect critic, 0 one that is no better than a constant, below 0 one that is worse. NaN where the returns do
    not vary or where there are fewer than two.

    Args:
        values: `[B]` V(s) before the update.
        returns: `[B]` targets.
    """
    if len(returns) < 2:
        return torch.full((), torch.nan, device=returns.device)
    explained = 1 - (returns - values).var() / returns.var()
    return torch.where(returns.max() > returns.min(), explained, torch.nan)
