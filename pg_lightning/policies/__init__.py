"""Policies: torsos, recurrent cells, heads that map features to action distributions, and running normalisers."""

from pg_lightning.policies.actor_critic import ActorCritic
from pg_lightning.policies.contract import Policy
from pg_lightning.policies.distributions import Distribution, NoiseDistribution
from pg_lightning.policies.heads import Head, make_head
from pg_lightning.policies.make import make_policy
from pg_lightning.policies.normalizers import ObservationNormalizer, RewardScaler, RunningMeanVar, ValueNormalizer
from pg_lightning.policies.recurrent import Memory, MemoryKind
from pg_lightning.policies.torsos import MLP, Activation, NatureCNN
from pg_lightning.policies.trained import TrainedPolicy, load

__all__ = [
    "MLP",
    "Activation",
    "ActorCritic",
    "Distribution",
    "Head",
    "Memory",
    "MemoryKind",
    "NatureCNN",
    "NoiseDistribution",
    "ObservationNormalizer",
    "Policy",
    "RewardScaler",
    "RunningMeanVar",
    "TrainedPolicy",
    "ValueNormalizer",
    "load",
    "make_head",
    "make_policy",
]
