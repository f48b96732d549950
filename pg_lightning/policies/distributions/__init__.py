"""Distributions over actions: samples, log-probabilities, entropies and KL divergences.

Lighter than `torch.distributions`: no validation, lazy evaluation. Results are float32 or better in any precision.
"""

from pg_lightning.policies.distributions.base import Distribution, NoiseDistribution, at_least_float32
from pg_lightning.policies.distributions.continuous import Beta, DiagonalGaussian, SquashedGaussian
from pg_lightning.policies.distributions.discrete import Bernoulli, Categorical, MultiCategorical

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "MultiCategorical",
    "NoiseDistribution",
    "SquashedGaussian",
    "at_least_float32",
]
