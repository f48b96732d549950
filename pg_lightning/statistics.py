"""Statistics of batches: moments that merge exactly, weighted means, standardised numbers. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

Moments = tuple[int | Tensor, Tensor, Tensor]


def moments(x: Tensor) -> Moments:
    """Number, mean `[*shape]` and biased variance `[*shape]`, in float64, of B > 0 rows `[B, *shape]`."""
    x = x.double()
    return len(x), x.mean(0), x.var(0, correction=0)


def partial_moments(x: Tensor) -> Tensor:
    """`[3, *shape]` number, mean and sum of squared deviations of rows `[B, *shape]`, in float64; zeros where B = 0."""
    x = x.double()
    mean = x.sum(0) / max(1, len(x))
    return torch.stack([torch.full_like(mean, len(x)), mean, (x - mean).square().sum(0)])


def merge_moments(parts: Tensor) -> Moments:
    """Number, mean and biased variance of all rows, from the `partial_moments` `[K, 3, *shape]` of K batches.

    The order of summation is that of the batches, so that every rank gets the same bits (Chan et al. 1979, eq. 2.1). At
    least one batch must have a row.
    """
    counts, means, squares = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count.max(), mean, (squares + counts * (means - mean).square()).sum(0) / count


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """`[M]` mean of the K rows of `x` `[K, M]`, weighted by `[K]`; a row of weight 0 may hold NaN."""
    shares = (weights / weights.sum()).unsqueeze(1)
    return torch.where(shares > 0, shares * x, 0.0).sum(0)


def standardize(x: Tensor, moments: Moments | None = None) -> Tensor:
    """`[B]` shifted to mean 0 and scaled to standard deviation 1; a single number is returned unchanged.

    Args:
        x: `[B]`.
        moments: number, mean and biased variance of the larger batch that `x` is a part of, if it is one.
    """
    if moments is None:
        return (x - x.mean()) / (x.std() + 1e-8) if len(x) > 1 else x
    count, mean, var = torch.as_tensor(moments[0]), *moments[1:]
    std = (var * count / (count - 1).clamp(min=1.0)).sqrt()
    return torch.where(count > 1, (x - mean) / (std + 1e-8), x).to(x.dtype)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Share of the variance of the returns that the critic explains, 1 − Var(G − V) / Var(G).

    1 is a perfect critic, 0 is no better than a constant, a negative value is worse than a constant. NaN if the returns
    do not vary or if there are fewer than two.

    Args:
        values: `[B]` V(s) before the update.
        returns: `[B]` targets.
    """
    if len(returns) < 2:
        return torch.full((), torch.nan, device=returns.device)
    explained = 1 - (returns - values).var() / returns.var()
    return torch.where(returns.max() > returns.min(), explained, torch.nan)
