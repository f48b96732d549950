"""Ranks: processes that learn together, each from rollouts of its own, and what they tell each other.

Every function that talks to the other ranks must be called by all of them, in the same order: who does not holds up the
rest. The tensors must be where the Trainer learns: NCCL knows no others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

Gather = Callable[[Tensor], Tensor]


def gather(x: Tensor) -> Tensor:
    """`[K, *shape]`: the tensors `[*shape]` of all K ranks, in the order of their ranks."""
    gathered = x.new_empty(distributed.get_world_size(), *x.shape)
    distributed.all_gather(list(gathered.unbind()), x.contiguous())
    return gathered


def add_up(x: Tensor) -> None:
    """Replaces a tensor by the sum over all ranks."""
    distributed.all_reduce(x)


def moments(x: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean `[*shape]` and variance `[*shape]` (the biased one), in float64, of the rows of all ranks.

    Each tells its number, mean and sum of squared deviations, and all add them up in the same order (Chan et al. 1979,
    eq. 2.1): the same bits on every rank.

    Args:
        x: `[B, *shape]`; B may differ from rank to rank and be 0, though not on all.
        gather: what brings the tensors `[3, *shape]` of all ranks together.
    """
    x = x.double()
    mean = x.sum(0) / max(1, len(x))
    own = torch.stack([torch.full_like(mean, len(x)), mean, (x - mean).square().sum(0)])
    counts, means, squares = gather(own).unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count.max(), mean, (squares + counts * (means - mean).square()).sum(0) / count


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """`[M]` the mean of the K rows of `x` `[K, M]`, weighted by `[K]`; rows without weight may hold NaN."""
    shares = (weights / weights.sum()).unsqueeze(1)
    return torch.where(shares > 0, shares * x, 0.0).sum(0)
