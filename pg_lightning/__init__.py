"""Policy gradients on Lightning: rollouts in, every Trainer feature out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pg_lightning.algorithms import PPO, PolicyGradientModule
    from pg_lightning.callbacks import EvaluateEverySteps
    from pg_lightning.data import RolloutDataModule
    from pg_lightning.errors import UserError
    from pg_lightning.rollout import Rollout

__version__ = "0.1.0"
__all__ = ["PPO", "EvaluateEverySteps", "PolicyGradientModule", "Rollout", "RolloutDataModule", "UserError"]

_MODULES = {
    "PPO": "algorithms",
    "PolicyGradientModule": "algorithms",
    "EvaluateEverySteps": "callbacks",
    "RolloutDataModule": "data",
    "UserError": "errors",
    "Rollout": "rollout",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: an environment in a process of its own needs no Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
