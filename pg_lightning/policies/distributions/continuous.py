"""Distributions over continuous actions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pg_lightning.policies.distributions.base import at_least_float32
from pg_lightning.torch_private import standard_gamma


class DiagonalGaussian:
    """D independent normals, actions `[B, D]`; mean `[B, D]`, log σ `[D]` or `[B, D]`."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = at_least_float32(mean)
        self.log_std = at_least_float32(log_std)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """μ + σ ε with ε ~ N(0, 1), `[B, D]`."""
        return self.sample_at(self.fill_(torch.empty_like(self.mean), generator))

    @property
    def noise_like(self) -> Tensor:
        """The mean."""
        return self.mean

    @staticmethod
    def fill_(noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """ε ~ N(0, 1) for each dimension."""
        return noise.normal_(generator=generator)

    def sample_at(self, noise: Tensor) -> Tensor:
        """μ + σ ε `[B, D]`."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise).detach()

    @property
    def mode(self) -> Tensor:
        """The mean `[B, D]`."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum over dimensions of log N(a; μ, σ²) `[B]`."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of log σ + log(2πe)/2 `[B]`; of the unbounded action, before it is clipped for the environment."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(self.mean).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """Sum over dimensions of (ρ² − 1)/2 − log ρ + (μ − μ')²/(2σ'²) with ρ = σ/σ' `[B]`."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * (-other.log_std).exp()
        return (0.5 * ((2 * log_ratio).expm1() + z.square()) - log_ratio).sum(-1)


# The logistic distribution as a mixture of eight normals of mean 0: weights and inverse standard deviations
# (Monahan & Stefanski 1992, "Normal scale mixture approximations to F*(z)").
_LOGISTIC_WEIGHTS = (0.00324634, 0.05151748, 0.19507791, 0.31556982, 0.27414958, 0.13107688, 0.02791242, 0.00144957)
_LOGISTIC_PRECISIONS = (1.36534081, 1.05952397, 0.83079131, 0.65073217, 0.50813543, 0.39631335, 0.30890425, 0.23821262)


def _log_tanh_slope(u: Tensor) -> Tensor:
    """log(1 − tanh²u), without the cancellation."""
    return 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))


class SquashedGaussian:
    """Normals squashed into bounds, a = low + (high − low)(tanh u + 1)/2 (Haarnoja et al. 2018, appendix C).

    The actions of the algorithm are the values u before squashing, `[B, D]`, so tanh is never inverted; densities and
    entropies are those of the environment's actions a.

    Args:
        mean: `[B, D]` mean of u.
        log_std: `[D]` or `[B, D]` log σ of u.
        log_scale: Σ log((high − low)/2) over the D dimensions.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, log_scale: float = 0.0) -> None:
        self.normal = DiagonalGaussian(mean, log_std)
        self.log_scale = log_scale

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """u = μ + σ ε with ε ~ N(0, 1), `[B, D]`."""
        return self.normal.sample(generator)

    @property
    def noise_like(self) -> Tensor:
        """The mean of u."""
        return self.normal.mean

    fill_ = staticmethod(DiagonalGaussian.fill_)

    def sample_at(self, noise: Tensor) -> Tensor:
        """u = μ + σ ε `[B, D]`."""
        return self.normal.sample_at(noise)

    @property
    def mode(self) -> Tensor:
        """The mean of u `[B, D]`. Its squashed value is the median of a, not the mode: the convention of the field."""
        return self.normal.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """log-density of a `[B]`, given u: Σ log N(u; μ, σ²) − log(1 − tanh²u) − log((high − low)/2)."""
        return self.normal.log_prob(actions) - _log_tanh_slope(actions).sum(-1) - self.log_scale

    def entropy(self) -> Tensor:
        """Differential entropy of a `[B]`: that of u plus E[log |da/du|], differentiable in μ and σ.

        log(1 − tanh²u) = 2 log 2 − 2 E|u − t| with t logistic of scale 1/2. With t as a mixture of normals, u − t is a
        mixture of normals too, and E|·| of a normal has a closed form. The error is below 1e-7 per dimension, in the
        value and in the gradients with respect to μ and log σ, for every μ and σ.
        """
        mean, variance = self.normal.mean.unsqueeze(-1), (2 * self.normal.log_std).exp().unsqueeze(-1)
        weights, precisions = mean.new_tensor((_LOGISTIC_WEIGHTS, _LOGISTIC_PRECISIONS))
        variance = variance + 0.25 / precisions.square()
        distance = (2 / math.pi * variance).sqrt() * (-0.5 * mean.square() / variance).exp()
        distance = distance + mean * (mean / (2 * variance).sqrt()).erf()
        slope = 2 * math.log(2) - 2 * (weights * distance).sum(-1)
        return self.normal.entropy() + slope.sum(-1) + self.log_scale

    def kl(self, other: SquashedGaussian) -> Tensor:
        """The KL of the normals `[B]`: both use the same squashing, and a bijection does not change the KL."""
        return self.normal.kl(other.normal)


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


class Beta:
    """D independent beta distributions within bounds, a = low + (high − low) x (Chou et al. 2017).

    The actions of the algorithm are x, `[B, D]`, which float32 keeps away from 0 and 1; densities and entropies
    are those of the environment's actions a. In float32 the gamma functions cancel to about 1e-6 (α + β) per
    dimension, as in `torch.distributions`.

    Args:
        alpha: `[B, D]`, at least 1.
        beta: `[B, D]`, at least 1.
        log_scale: Σ log(high − low) over the D dimensions.
    """

    def __init__(self, alpha: Tensor, beta: Tensor, log_scale: float = 0.0) -> None:
        self.alpha = at_least_float32(alpha)
        self.beta = at_least_float32(beta)
        self.log_scale = log_scale

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """x = g / (g + h) with g ~ Gamma(α) and h ~ Gamma(β), `[B, D]`."""
        gammas = standard_gamma(torch.stack((self.alpha, self.beta)).detach(), generator)
        return self._inside(gammas[0] / gammas.sum(0))

    @property
    def mode(self) -> Tensor:
        """(α − 1) / (α + β − 2), and 1/2 where the distribution is uniform, `[B, D]`."""
        tiny = 1e-30
        return self._inside((self.alpha - 1 + tiny) / (self.alpha - 1 + (self.beta - 1) + 2 * tiny))

    def log_prob(self, actions: Tensor) -> Tensor:
        """log-density of a `[B]`, given x: Σ (α − 1) log x + (β − 1) log(1 − x) − log B(α, β) − log(high − low)."""
        a, b = self.alpha, self.beta
        log_density = (a - 1) * actions.log() + (b - 1) * (-actions).log1p() - _log_beta(a, b)
        return log_density.sum(-1) - self.log_scale

    def entropy(self) -> Tensor:
        """Differential entropy of a `[B]`, by digamma functions."""
        a, b = self.alpha, self.beta
        entropy = _log_beta(a, b) - (a - 1) * a.digamma() - (b - 1) * b.digamma() + (a + b - 2) * (a + b).digamma()
        return entropy.sum(-1) + self.log_scale

    def kl(self, other: Beta) -> Tensor:
        """Sum over dimensions of log B' − log B + (α − α')ψ(α) + (β − β')ψ(β) + (α' − α + β' − β)ψ(α + β), `[B]`."""
        # In float64, because the gamma functions are much larger than their difference.
        alpha, beta, other_alpha, other_beta = (x.double() for x in (self.alpha, self.beta, other.alpha, other.beta))
        a, b, both = alpha - other_alpha, beta - other_beta, (alpha + beta).digamma()
        slopes = a * (alpha.digamma() - both) + b * (beta.digamma() - both)
        return (_log_beta(other_alpha, other_beta) - _log_beta(alpha, beta) + slopes).sum(-1).to(self.alpha.dtype)

    @staticmethod
    def _inside(x: Tensor) -> Tensor:
        margin = torch.finfo(torch.float32).eps
        return x.clamp(margin, 1 - margin)
