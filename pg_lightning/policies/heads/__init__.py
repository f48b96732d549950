"""Heads: map features to a distribution over actions, and its samples to actions of the environment."""

from pg_lightning.policies.heads.base import Head
from pg_lightning.policies.heads.continuous import BetaHead, DiagonalGaussianHead, SquashedGaussianHead
from pg_lightning.policies.heads.discrete import BernoulliHead, CategoricalHead, MultiCategoricalHead
from pg_lightning.policies.heads.make import make_head

__all__ = [
    "BernoulliHead",
    "BetaHead",
    "CategoricalHead",
    "DiagonalGaussianHead",
    "Head",
    "MultiCategoricalHead",
    "SquashedGaussianHead",
    "make_head",
]
