"""Policy gradients on Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pg_lightning.version import __version__ as __version__

if TYPE_CHECKING:
    from pg_lightning.algorithms import (
        A2C,
        A3C,
        GRPO,
        PPO,
        REINFORCE,
        RLOO,
        TRPO,
        OneStepActorCritic,
        PolicyGradientModule,
        REINFORCEBaseline,
        VTrace,
    )
    from pg_lightning.callbacks import EvaluateEverySteps
    from pg_lightning.data import RolloutDataModule
    from pg_lightning.errors import UserError
    from pg_lightning.policies import load
    from pg_lightning.rollout import Rollout
    from pg_lightning.strategies import HogwildStrategy

__all__ = [
    "A2C",
    "A3C",
    "GRPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "TRPO",
    "EvaluateEverySteps",
    "HogwildStrategy",
    "OneStepActorCritic",
    "PolicyGradientModule",
    "REINFORCEBaseline",
    "Rollout",
    "RolloutDataModule",
    "UserError",
    "VTrace",
    "load",
]

_MODULES = {
    "EvaluateEverySteps": "callbacks",
    "HogwildStrategy": "strategies",
    "Rollout": "rollout",
    "RolloutDataModule": "data",
    "UserError": "errors",
    "load": "policies",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that environment processes do not import Lightning."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'algorithms')}"), name)
