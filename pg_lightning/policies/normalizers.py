"""Running statistics, stored as buffers of the module so that they are part of its checkpoint.

They are updated once per rollout, never inside one: acting and learning use the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pg_lightning.statistics import Moments, moments
from pg_lightning.torch_private import ExactBuffers

EPSILON = 1e-8  # is added to variances before the root


class RunningMeanVar(ExactBuffers):
    """Mean and variance per dimension over all data so far, by Chan's parallel update, in float64.

    Half precision does not convert these buffers: bfloat16 cannot count beyond 256.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Adds a batch `[B, *shape]`; an empty batch changes nothing."""
        if len(batch):
            self.merge(*moments(batch))

    @torch.no_grad()
    def merge(self, n: int | Tensor, mean: Tensor, var: Tensor) -> None:
        """Adds data given by its number, mean `[*shape]` and (biased) variance `[*shape]`."""
        total = self.count + n
        delta = mean - self.mean
        m2 = self.var * self.count + var * n + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(m2 / total)
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """`shape`; 1 where the data does not vary."""
        varies = self.var > 1e-8 * self.mean.square()
        return torch.where(varies, (self.var + EPSILON).sqrt(), 1.0)

    def sums(self) -> Tensor:
        """`[3, *shape]` number, sum and sum of squares of the data, which can be added over processes."""
        count = self.count.expand_as(self.mean)
        return torch.stack([count, count * self.mean, count * (self.var + self.mean.square())])

    def load_sums(self, sums: Tensor) -> None:
        """Sets mean and variance from `sums`, unless their number is 0."""
        count, total, squares = sums
        if count.max() > 0:
            self.count.copy_(count.max())
            self.mean.copy_(total / count)
            self.var.copy_((squares / count - self.mean.square()).clamp(min=0.0))


class ObservationNormalizer(nn.Module):
    """(s − μ) / σ per dimension, clipped to ±`clip`."""

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__()
        self.statistics = RunningMeanVar(shape)
        self.clip = clip

    def forward(self, obs: Tensor) -> Tensor:
        """Observations `[B, *obs]` of any dtype, to floating point."""
        std = (self.statistics.var + EPSILON).sqrt()
        scaled = (obs - self.statistics.mean.to(obs.dtype)) / std.to(obs.dtype)
        return scaled.clamp(-self.clip, self.clip)

    def of_columns(self, columns: Sequence[slice]) -> ObservationNormalizer:
        """A normaliser for some columns of vector observations."""
        statistics = self.statistics
        mean, var = (torch.cat([x[part] for part in columns]) for x in (statistics.mean, statistics.var))
        part = ObservationNormalizer(tuple(mean.shape), self.clip)
        part.statistics.load_state_dict({"mean": mean, "var": var, "count": statistics.count})
        return part


class RewardScaler(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return, clipped to ±`clip`.

    The mean is not subtracted, because that would change the optimal policy. The scale of a rollout is fixed before its
    values are bootstrapped, so rewards and values are in the same unit.

    Attributes:
        discounted_returns: `[N]` of the current episodes; None before the first rollout.
    """

    def __init__(self, gamma: float, clip: float = 10.0) -> None:
        super().__init__()
        self.statistics = RunningMeanVar(())
        self.gamma = gamma
        self.clip = clip
        self.discounted_returns: Tensor | None = None

    def restart(self) -> None:
        """Resets the running returns of aborted episodes; the statistics stay."""
        self.discounted_returns = None

    @torch.no_grad()
    def follow(self, rewards: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """Updates R ← γ R + r over `[T, N]` rows, restarting at the end of each episode: `[B]`, for the statistics."""
        running = self.discounted_returns if self.discounted_returns is not None else torch.zeros_like(rewards[0])
        seen = []
        for reward, end, ok in zip(rewards, done, valid, strict=True):
            running = torch.where(ok, self.gamma * running + reward, running)
            seen.append(running)
            running = running * ~end
        self.discounted_returns = running
        return torch.stack(seen)[valid]

    def forward(self, rewards: Tensor) -> Tensor:
        """Scaled rewards, in the input shape."""
        return (rewards / self.statistics.std.to(rewards.dtype)).clamp(-self.clip, self.clip)


class ValueNormalizer(nn.Module):
    """The critic learns (G − μ) / σ instead of the target G; μ and σ are those of all targets so far.

    When they change, the output layer is rescaled so that no value changes: PopArt (van Hasselt et al. 2016, eq. 2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics = RunningMeanVar(())

    def forward(self, returns: Tensor) -> Tensor:
        """Converts targets from the unit of the rewards to that of the critic."""
        mean, std = self._mean_std()
        return (returns - mean.to(returns.dtype)) / std.to(returns.dtype)

    def restore(self, values: Tensor) -> Tensor:
        """Converts the critic's output to the unit of the rewards."""
        mean, std = self._mean_std()
        return values * std.to(values.dtype) + mean.to(values.dtype)

    @torch.no_grad()
    def update(self, returns: Moments, output: nn.Linear) -> None:
        """Adds targets in the unit of the rewards, and rescales the critic's output layer."""
        old_mean, old_std = self._mean_std()
        self.statistics.merge(*returns)
        mean, std = self._mean_std()
        output.weight.mul_((old_std / std).to(output.weight.dtype))
        output.bias.copy_((old_std * output.bias + old_mean - mean) / std)

    def _mean_std(self) -> tuple[Tensor, Tensor]:
        # Cloned, because the statistics are updated in place.
        return self.statistics.mean.clone(), self.statistics.std
