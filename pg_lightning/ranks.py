"""Ranks: processes that learn together, each from rollouts of its own, and what they tell each other.

Every function that talks to the other ranks must be called by all of them, in the same order: who does not holds up the
rest. The tensors must be where the Trainer learns: NCCL knows no others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

Gather = Callable[[Tensor], Tensor]
Moments = tuple[int | Tensor, Tensor, Tensor]


def gather(x: Tensor) -> Tensor:
    """`[K, *shape]`: the tensors `[*shape]` of all K ranks, in the order of their ranks."""
    gathered = x.new_empty(distributed.get_world_size(), *x.shape)
    distributed.all_gather(list(gathered.unbind()), x.contiguous())
    return gathered


def gather_together(*tensors: Tensor) -> list[Tensor]:
    """Several tensors of one dtype in one message: `[K, *shape]` of each."""
    gathered = gather(torch.cat([x.flatten() for x in tensors]))
    parts = gathered.split([x.numel() for x in tensors], 1)
    return [part.reshape(-1, *x.shape) for part, x in zip(parts, tensors, strict=True)]


def add_up(x: Tensor) -> None:
    """Replaces a tensor by the sum over all ranks."""
    distributed.all_reduce(x)


def moments(x: Tensor) -> Moments:
    """Number, mean `[*shape]` and variance `[*shape]` (the biased one), in float64, of B > 0 rows `[B, *shape]`."""
    x = x.double()
    return len(x), x.mean(0), x.var(0, correction=0)


def sums(x: Tensor) -> Tensor:
    """`[3, *shape]` number, mean and sum of squared deviations of rows `[B, *shape]`, in float64; 0 where B is."""
    x = x.double()
    mean = x.sum(0) / max(1, len(x))
    return torch.stack([torch.full_like(mean, len(x)), mean, (x - mean).square().sum(0)])


def merged(sums: Tensor) -> Moments:
    """Number, mean and variance (the biased one) of the rows of all ranks, from the `sums` `[K, 3, *shape]` of each.

    All add them up in the same order, to the same bits (Chan et al. 1979, eq. 2.1). There must be a row on some rank.
    """
    counts, means, squares = sums.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count.max(), mean, (squares + counts * (means - mean).square()).sum(0) / count


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """`[M]` the mean of the K rows of `x` `[K, M]`, weighted by `[K]`; rows without weight may hold NaN."""
    shares = (weights / weights.sum()).unsqueeze(1)
    return torch.where(shares > 0, shares * x, 0.0).sum(0)
