"""Methods of Stable-Baselines3 that learn action values: DQN for discrete actions, SAC for continuous ones."""

from __future__ import annotations

from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.commands.references.chance import RandomPolicy
from pg_lightning.commands.references.evaluations import Arguments, Evaluations
from pg_lightning.envs import make_env
from pg_lightning.errors import UserError


class Model(Protocol):
    """What evaluations need of a model of Stable-Baselines3."""

    def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, object]:
        """Actions `[N, *action]` for observations `[N, *obs]`, and a recurrent state."""
        ...


class StableBaselines3Policy(RandomPolicy):
    """A model of Stable-Baselines3."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def act(
        self, obs: Tensor, generator: torch.Generator, deterministic: bool, mask: Tensor | None, state: None
    ) -> tuple[Tensor, None]:
        """See `Actor`."""
        return torch.from_numpy(self.model.predict(obs.numpy(), deterministic=deterministic)[0]), None


def train(method: Literal["dqn", "sac"], evaluations: Evaluations, arguments: Arguments) -> None:
    """Trains `stable_baselines3.DQN` or `.SAC`.

    Args:
        method: which.
        evaluations: with the environment and the budget.
        arguments: of the class.

    Raises:
        UserError: if Stable-Baselines3 is not installed, or refuses the arguments or the environment.
    """
    try:
        import stable_baselines3
    except ImportError as error:
        raise UserError(f'{method}: needs Stable-Baselines3; pip install "pg_lightning[bench]"') from error
    data = evaluations.data
    try:
        env = make_env(data.env_id, data.env_kwargs, data.wrappers)
        make = getattr(stable_baselines3, method.upper())
        model = make("MlpPolicy", env, seed=evaluations.seed, device="cpu", **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{method}: {error}") from error
    actor = cast(Actor, StableBaselines3Policy(model))

    def after_step(*_: object) -> bool:
        if evaluations.is_due(model.num_timesteps):
            evaluations.evaluate(actor, model.num_timesteps)
        return model.num_timesteps < data.total_steps

    model.learn(data.total_steps, callback=after_step)
    env.close()
