"""Networks: torsos, heads that turn features into action distributions, and running normalisers."""

from pg_lightning.networks.actor_critic import MLP, Activation, ActorCritic
from pg_lightning.networks.heads import Distribution, make_head
from pg_lightning.networks.normalizers import ObservationNormalizer, RewardScaler, RunningMeanVar

__all__ = [
    "MLP",
    "Activation",
    "ActorCritic",
    "Distribution",
    "ObservationNormalizer",
    "RewardScaler",
    "RunningMeanVar",
    "make_head",
]
