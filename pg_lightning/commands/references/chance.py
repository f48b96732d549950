"""A policy with random actions, which does not learn: the return of chance."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.analysis.curves import SPEED
from pg_lightning.commands.references.evaluations import Arguments, Evaluations


class RandomPolicy:
    """What evaluations need of an `Actor`, with random actions from the action space."""

    device = torch.device("cpu")

    def __init__(self, space: gym.Space) -> None:
        self.space = space

    def acting(self) -> AbstractContextManager[None]:
        """See `Actor`."""
        return nullcontext()

    def initial_state(self, num_envs: int) -> None:
        """See `Actor`."""
        return None

    def act(
        self, obs: Tensor, generator: torch.Generator, deterministic: bool, mask: Tensor | None, state: None
    ) -> tuple[Tensor, None]:
        """See `Actor`."""
        self.space.seed(int(torch.randint(2**31, (), generator=generator)))
        masks = [None] * len(obs) if mask is None else [row.numpy().astype(np.int8) for row in mask]
        return torch.from_numpy(np.stack([self.space.sample(row) for row in masks])), None

    def env_actions(self, actions: Tensor) -> Tensor:
        """See `Actor`."""
        return actions


def random_policy(evaluations: Evaluations, arguments: Arguments) -> None:
    """Evaluates random actions once, at the end of the budget."""
    data = evaluations.data
    evaluations.evaluate(cast(Actor, RandomPolicy(data.action_space)), data.total_steps)
    del evaluations.rows[-1][SPEED]  # nothing was trained
