"""Networks: torsos, a memory, heads that turn features into action distributions, and running normalisers."""

from pg_lightning.networks.actor_critic import ActorCritic
from pg_lightning.networks.distributions import Distribution
from pg_lightning.networks.heads import Head, make_head
from pg_lightning.networks.normalizers import ObservationNormalizer, RewardScaler, RunningMeanVar, ValueNormalizer
from pg_lightning.networks.torsos import MLP, Activation, Memory, MemoryKind, NatureCNN

__all__ = [
    "MLP",
    "Activation",
    "ActorCritic",
    "Distribution",
    "Head",
    "Memory",
    "MemoryKind",
    "NatureCNN",
    "ObservationNormalizer",
    "RewardScaler",
    "RunningMeanVar",
    "ValueNormalizer",
    "make_head",
]
