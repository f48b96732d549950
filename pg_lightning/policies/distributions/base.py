"""The interface of distributions over actions."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

D = TypeVar("D", bound="Distribution")


class Distribution(Protocol):
    """π(·|s) for a batch of states."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions `[B, *action]`, drawn without gradient."""
        ...

    @property
    def mode(self) -> Tensor:
        """The deterministic actions `[B, *action]`."""
        ...

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) `[B]`, summed over the dimensions of an action."""
        ...

    def entropy(self) -> Tensor:
        """Differential or Shannon entropy in nats `[B]`."""
        ...

    def kl(self: D, other: D) -> Tensor:
        """KL(self ‖ other) in nats `[B]`, to a distribution of the same class over the same actions; differentiable.

        Its second derivative with respect to the parameters of `other`, at equality, is the Fisher information.
        """
        ...


@runtime_checkable
class NoiseDistribution(Protocol):
    """A distribution whose sample is a function of its parameters and of noise that does not depend on them.

    So noise can be drawn for many steps at once, and a step can be a pure function.
    """

    @property
    def noise_like(self) -> Tensor:
        """A tensor of the shape, dtype and device of the noise."""
        ...

    @staticmethod
    def fill_(noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """Fills a tensor of any shape with noise."""
        ...

    def sample_at(self, noise: Tensor) -> Tensor:
        """The sample `[B, *action]` for this noise."""
        ...


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32; other dtypes are unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
