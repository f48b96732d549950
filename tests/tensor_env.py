"""A vector environment on a device: CartPole-like, of torch tensors only, with the reset inside the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pg_lightning.envs.contract import Capabilities, VectorStep


class TensorCartPole:
    """A pole on a cart, linearised. It falls at 0.2 rad; an episode is cut after `limit` steps.

    Rewards, ends and observations live in buffers that every step writes into, as simulators do.

    Args:
        num_envs: N.
        limit: env steps after which an episode is cut.
        knows_final_obs: gives the last observations of episodes, as a full batch in every step.
    """

    single_observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    single_action_space = spaces.Discrete(2)
    restarts = 0

    def __init__(self, num_envs: int, limit: int = 12, knows_final_obs: bool = True, device: str = "cpu") -> None:
        self.num_envs, self.limit, self.knows_final_obs = num_envs, limit, knows_final_obs
        self.device = torch.device(device)
        self.capabilities = Capabilities(
            device=self.device, autoreset="same_step", single_instance=True, knows_final_obs=knows_final_obs
        )
        self._generator = torch.Generator(self.device)
        self._obs = torch.zeros(num_envs, 4, device=self.device)
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._rewards = torch.ones(num_envs, device=self.device)

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[Tensor, None]:
        if isinstance(seeds, int):
            self._generator.manual_seed(seeds)
        self._obs.copy_(self._first())
        self._steps.zero_()
        return self._obs, None

    def step(self, actions: Tensor) -> VectorStep[Tensor]:
        x, v, angle, w = self._obs.unbind(1)
        force = 2.0 * actions.to(self.device) - 1.0
        moved = torch.stack([x + 0.02 * v, v + 0.2 * force, angle + 0.02 * w, w + 0.3 * angle - 0.3 * force], 1)
        self._steps += 1
        terminated, truncated = moved[:, 2].abs() > 0.2, self._steps >= self.limit
        done = terminated | truncated
        self._obs.copy_(torch.where(done[:, None], self._first(), moved))
        self._steps.masked_fill_(done, 0)
        self._rewards.copy_(1.0 - moved[:, 0].abs())
        final_obs = moved if self.knows_final_obs else None
        return VectorStep(self._obs, self._rewards, terminated, truncated, done, done, final_obs)

    def trim(self, lengths: Any) -> None:
        pass

    def state_dict(self, lengths: Tensor) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        return "this back-end cannot save its state"

    def close(self) -> None:
        pass

    def _first(self) -> Tensor:
        return 0.3 * torch.rand(self.num_envs, 4, generator=self._generator, device=self.device) - 0.15
