"""The interface of `Collectives`, and `Alone`, its implementation for a single process.

Every method is a collective: all ranks must call it, in the same order, with tensors of one shape and dtype on the
Trainer's device. If one rank does not call it, the others deadlock.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pg_lightning.statistics import Moments, merge_moments, moments, partial_moments, standardize, weighted_mean


class Collectives(Protocol):
    """All-reduce and all-gather over the K ranks of a training, and statistics based on them."""

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
            x: P numbers; the last entry is reserved for the weight, which is sent with them.
            share: weight of this rank, in [0, 1]; with 0 its numbers are ignored, even NaN. If all weights are 0, the
                mean is 0.
        """
        ...

    def mean(self, value: Tensor, rows: int) -> Tensor:
        """The mean of a scalar over the rows of all ranks; base decisions on it, so that all ranks branch alike.

        Args:
            value: the mean over this rank's rows; ignored, even NaN, if it has no rows.
            rows: number of these rows.
        """
        ...

    def moments(self, x: Tensor) -> Moments:
        """Number, mean and biased variance of the numbers `[B]` of all ranks."""
        ...

    def standardize(self, x: Tensor) -> Tensor:
        """`[B]` shifted and scaled to mean 0 and standard deviation 1 over all ranks."""
        ...


class Alone:
    """A single process: nothing is sent."""

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
        """The moments of `x`."""
        return moments(x)

    def standardize(self, x: Tensor) -> Tensor:
        """Standardises `x` alone."""
        return standardize(x)


class Statistics:
    """Statistics over several ranks, based on `all_gather` and `all_reduce_`."""

    def all_gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`."""
        raise NotImplementedError

    def all_reduce_(self, x: Tensor) -> None:
        """Replaces a contiguous tensor by the sum over all ranks."""
        raise NotImplementedError

    def all_gather_together(self, *tensors: Tensor) -> list[Tensor]:
        """`[K, *shape]` of each tensor, in one message."""
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
