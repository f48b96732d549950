"""Environments that implement the contract themselves: what they return must have its shapes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pg_lightning.envs.contract import Environments, VectorStep
from pg_lightning.errors import UserError, one_line

Shape = tuple[int, ...]


class Shapes:
    """The shapes of observations and rewards of N environments; a mismatch would be broadcast without an error.

    Args:
        env: the environments.

    Attributes:
        obs: `(N, *obs)`.
        rewards: `(N,)`.
        are_bytes: whether observations must be uint8.
    """

    def __init__(self, env: Environments) -> None:
        space = env.single_observation_space
        self.obs: Shape = (env.num_envs, *(space.shape or ()))
        self.rewards: Shape = (env.num_envs,)
        self.are_bytes = space.dtype == np.uint8
        self._space = one_line(space)

    def check_obs(self, obs: np.ndarray | Tensor) -> None:
        """Refuses observations of other shapes, or of another dtype if they must be bytes.

        Raises:
            UserError: naming both.
        """
        if tuple(obs.shape) != self.obs or (self.are_bytes and obs.dtype not in (np.uint8, torch.uint8)):
            raise self._misfit("observations", obs)

    def of_step(self, step: VectorStep[np.ndarray] | VectorStep[Tensor]) -> UserError:
        """The error for a step whose observations or rewards have other shapes."""
        is_obs = tuple(step.obs.shape) != self.obs
        return self._misfit("observations", step.obs) if is_obs else self._misfit("rewards", step.rewards)

    def _misfit(self, name: str, x: np.ndarray | Tensor) -> UserError:
        return UserError(
            f"data.env_id: the environments returned {name} of shape {list(x.shape)} and dtype {x.dtype}; they must "
            f"return observations {list(self.obs)} of {self._space} and rewards {list(self.rewards)}"
        )
