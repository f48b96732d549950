"""`model.compile: auto` compiles if a run takes enough gradient steps to make up for the time that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lightning.pytorch.utilities import rank_zero_info

from pg_lightning.learning.backward import has_compiler
from pg_lightning.policies import ActorCritic

if TYPE_CHECKING:
    from pg_lightning.learning.module import PolicyGradientModule

# Measured with two networks of 64-64 and minibatches of 64 to 256 rows. The decision is computed from these instead of
# measured times, so that a run with the same settings, or its continuation, decides alike.
SAVED = 0.5e-3  # s, by a compiled gradient step; the least that was measured
COST = 40.0  # s, of compiling everything once


class Data(Protocol):
    """The size of a rollout.

    Attributes:
        num_envs: environments of a process.
        num_steps: of each of them.
    """

    num_envs: int
    num_steps: int


def decide(module: PolicyGradientModule, data: Data | None) -> None:
    """Decides whether a run with `model.compile: auto` compiles, and says why in one line."""
    if not module.compiles_if_it_pays:
        return
    steps = gradient_steps(module, data)
    obstacle = _obstacle(module, data)
    pays = not obstacle and steps * SAVED > COST
    for part in (module.actor, module.learner, module.learner.backward):
        part.compiles = pays
    reason = obstacle or f"{steps:,} gradient steps save some {steps * SAVED:.0f} s, compiling takes some {COST:.0f} s"
    rank_zero_info(f"model.compile auto: {'on' if pays else 'off'}: {reason}")


def gradient_steps(module: PolicyGradientModule, data: Data | None) -> int:
    """Gradient steps of a process in the whole budget; at least one per rollout."""
    if data is None:
        return 0
    workers: int = module.trainer.world_size * getattr(module.trainer.strategy, "num_workers", 1)
    rollouts = module.total_steps // (data.num_envs * data.num_steps * workers)
    per_rollout: int = getattr(module, "num_epochs", 1) * getattr(module, "num_minibatches", 1)
    return rollouts * per_rollout


def _obstacle(module: PolicyGradientModule, data: Data | None) -> str:
    if module.network.has_memory or not isinstance(module.network, ActorCritic):
        return "updates of this policy are not compiled"
    if getattr(data, "rows_vary", False):
        return "the number of rows varies"
    return "" if has_compiler() else "there is no C++ compiler"
