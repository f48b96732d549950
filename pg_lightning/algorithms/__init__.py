"""Algorithms: LightningModules that learn from rollouts, one file each."""

from pg_lightning.algorithms.base import PolicyGradientModule
from pg_lightning.algorithms.ppo import PPO

__all__ = ["PPO", "PolicyGradientModule"]
