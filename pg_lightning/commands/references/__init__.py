"""The methods that `compare` holds algorithms against: one file per kind, one line each in `REFERENCES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pg_lightning.commands.references.chance import random_policy
from pg_lightning.commands.references.evaluations import Arguments, Evaluations
from pg_lightning.commands.references.policy_search import annealing, cma_es, hill_climbing, search_weights
from pg_lightning.commands.references.stable_baselines3 import train
from pg_lightning.errors import UserError


class Reference(NamedTuple):
    """A reference method.

    Attributes:
        label: in tables and figures.
        run: spends the budget of env steps, with arguments from the comparison's file.
    """

    label: str
    run: Callable[[Evaluations, Arguments], None]


CHANCE = "random"
REFERENCES = {
    "dqn": Reference("DQN", partial(train, "dqn")),
    "sac": Reference("SAC", partial(train, "sac")),
    "cma_es": Reference("CMA-ES", partial(search_weights, "cma_es", cma_es)),
    "hill_climbing": Reference("hill climbing", partial(search_weights, "hill_climbing", hill_climbing)),
    "simulated_annealing": Reference("simulated annealing", partial(search_weights, "simulated_annealing", annealing)),
    CHANCE: Reference("random policy", random_policy),
}


def reference_of(name: str) -> Reference:
    """A reference method by its name.

    Raises:
        UserError: if there is none of this name.
    """
    if name not in REFERENCES:
        raise UserError(f"references: there is no {name!r}; there are {', '.join(REFERENCES)}")
    return REFERENCES[name]
