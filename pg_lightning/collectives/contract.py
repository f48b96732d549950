"""What ranks exchange: the contract of `Collectives`, and `Alone`, which fulfils it for a single process.

Every method is a collective: all ranks must call it, in the same order, with tensors of one shape and dtype on the
device that the Trainer learns on. A rank that does not call deadlocks the others.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pg_lightning.statistics import Moments, merge_moments, moments, partial_moments, standardize, weighted_mean


class Collectives(Protocol):
    """All-reduce and all-gather over the K ranks of a training, and the statistics made of them."""

    @property
    def world_size(self) -> int:
        """K, the number of ranks."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`: the tensors `[*shape]` of all ranks, in the order of the ranks."""
        ...

    def all_gather_together(self, *tensors: Tensor) -> list[Tensor]:
        """`[K, *shape]` of each of several tensors of one dtype, in one message."""
        ...

    def average_(self, x: Tensor, share: float) -> None:
        """Replaces the contiguous vector `x` `[P + 1]` by the weighted mean over the ranks.

        Args:
            x: P numbers; the last entry is a place for the weight, which travels with them.
            share: weight of this rank, in [0, 1]; with 0 its numbers do not count, though they be NaN. Where all are 0
                the mean is 0.
        """
        ...

    def mean(self, value: Tensor, rows: int) -> Tensor:
        """The mean of a scalar over the rows of all ranks: what they decide by, so that all decide alike.

        Args:
            value: the mean over this rank's rows; without rows it does not count, though it be NaN.
            rows: how many they are.
        """
        ...

    def moments(self, x: Tensor) -> Moments:
        """Number, mean and biased variance of the numbers `[B]` of all ranks."""
        ...

    def standardize(self, x: Tensor) -> Tensor:
        """`[B]` shifted and scaled to mean 0 and standard deviation 1 together with those of the other ranks."""
        ...


class Alone:
    """One process: nothing travels."""

    world_size = 1

    def all_gather(self, x: Tensor) -> Tensor:
        """`[1, *shape]`."""
        return x.unsqueeze(0)

    def all_gather_together(self, *tensors: Tensor) -> list[Tensor]:
        """`[1, *shape]` of each."""
        return [x.unsqueeze(0) for x in tensors]

    def average_(self, x: Tensor, share: float) -> None:
        """Leaves the vector as it is."""

    def mean(self, value: Tensor, rows: int) -> Tensor:
        """The value."""
        return value

    def moments(self, x: Tensor) -> Moments:
        """Those of `x`."""
        return moments(x)

    def standardize(self, x: Tensor) -> Tensor:
        """`x` by itself."""
        return standardize(x)


class Statistics:
    """What every group of several ranks makes of its `all_gather`."""

    def all_gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`."""
        raise NotImplementedError

    def all_reduce_(self, x: Tensor) -> None:
        """Replaces a contiguous tensor by the sum over all ranks."""
        raise NotImplementedError

    def all_gather_together(self, *tensors: Tensor) -> list[Tensor]:
        """`[K, *shape]` of each, in one message."""
        gathered = self.all_gather(torch.cat([x.flatten() for x in tensors]))
        parts = gathered.split([x.numel() for x in tensors], 1)
        return [part.reshape(-1, *x.shape) for part, x in zip(parts, tensors, strict=True)]

    def average_(self, x: Tensor, share: float) -> None:
        """One all-reduce of the weighted numbers and the weight, and one division."""
        if share:
            x[:-1] *= share
        else:
            x[:-1].zero_()
        x[-1].fill_(share)
        self.all_reduce_(x)
        x[:-1] /= x[-1].clamp(min=torch.finfo(x.dtype).tiny)

    def mean(self, value: Tensor, rows: int) -> Tensor:
        """Weighted by the rows of each rank."""
        gathered = self.all_gather(torch.stack([value.double(), value.new_tensor(rows, dtype=torch.float64)]))
        return weighted_mean(gathered[:, :1], gathered[:, 1]).squeeze(0)

    def moments(self, x: Tensor) -> Moments:
        """Merged from those of each rank, in the order of the ranks."""
        return merge_moments(self.all_gather(partial_moments(x)))

    def standardize(self, x: Tensor) -> Tensor:
        """By the moments of all ranks."""
        return standardize(x, self.moments(x))
