"""Algorithms: each is a LightningModule in its own file."""

from pg_lightning.algorithms.a2c import A2C
from pg_lightning.algorithms.a3c import A3C
from pg_lightning.algorithms.actor_critic import OneStepActorCritic
from pg_lightning.algorithms.grpo import GRPO
from pg_lightning.algorithms.ppo import PPO
from pg_lightning.algorithms.reinforce import REINFORCE
from pg_lightning.algorithms.reinforce_baseline import REINFORCEBaseline
from pg_lightning.algorithms.rloo import RLOO
from pg_lightning.algorithms.trpo import TRPO
from pg_lightning.algorithms.vtrace import VTrace
from pg_lightning.learning import PolicyGradientModule

__all__ = [
    "A2C",
    "A3C",
    "GRPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "TRPO",
    "OneStepActorCritic",
    "PolicyGradientModule",
    "REINFORCEBaseline",
    "VTrace",
]
