"""Environments as tensors on a device: a task's pure functions, a time limit, and a reset within the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import gymnasium as gym
import torch
from torch import Tensor

from pg_lightning.envs.backends.vectorised import REFUSALS, refused_field
from pg_lightning.envs.contract import Capabilities, Carry, VectorStep
from pg_lightning.envs.seeds import Seeds, one_seed
from pg_lightning.envs.tasks import classics, exact
from pg_lightning.errors import UserError, cause_of


class TensorTask(Protocol):
    """The rules of an environment, for N of them at once, as pure functions.

    Attributes:
        num_uniforms: number of random numbers that a reset uses.
    """

    @property
    def num_uniforms(self) -> int:
        """Number of random numbers for the first state of an episode."""
        ...

    def first(self, uniform: Tensor) -> Tensor:
        """First states `[N, S]` of episodes, from `[N, num_uniforms]` uniform numbers in [0, 1)."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Observations `[N, *obs]` of states `[N, S]`."""
        ...

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next states `[N, S]`, rewards `[N]` and whether the task has ended `[N]` bool.

        `actions` `[N, *action]` have the shape, range and dtype of the action space, or torch's equivalent dtype.
        """
        ...


TASKS: dict[str, type[TensorTask]] = {
    "CartPole-v0": classics.CartPole,
    "CartPole-v1": classics.CartPole,
    "Pendulum-v1": classics.Pendulum,
    "Acrobot-v1": classics.Acrobot,
    "MountainCar-v0": classics.MountainCar,
    "MountainCarContinuous-v0": classics.MountainCarContinuous,
    "pg_lightning/ConstantReward-v0": exact.DelayedReward,
    "pg_lightning/DelayedReward-v0": exact.DelayedReward,
    "pg_lightning/ObservedReward-v0": exact.ObservedReward,
    "pg_lightning/Recall-v0": exact.Recall,
    "pg_lightning/GreyCells-v0": exact.GreyCells,
}


class TensorEnvironments:
    """N environments of one task, which share one random stream on their device. See `Environments`.

    A step does not synchronise with the device: random numbers are drawn for all environments, even without a reset.

    Args:
        env_id: a Gymnasium id in `TASKS`, possibly after `module:`; spaces and time limit are Gymnasium's.
        num_envs: N.
        env_kwargs: arguments of the task, and `max_episode_steps`.
        device: of the tensors.
        dtype: of the states.

    Raises:
        UserError: if there is no such task, or it does not have an argument.
    """

    restarts = 0
    capabilities = Capabilities(torch.device("cpu"), "same_step", can_save_state="by_copy", is_pure=True)

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        env_kwargs: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        name = env_id.rpartition(":")[2]  # before it, the module that registers the id
        if name not in TASKS:
            raise UserError(f"data.backend: device has {', '.join(TASKS)}, not {env_id!r}; use sync or vector")
        try:
            env = gym.make(env_id, disable_env_checker=True, **(env_kwargs or {}))
            assert env.spec is not None
            self.task: TensorTask = TASKS[name](**env.spec.kwargs)
        except REFUSALS as error:
            raise UserError(f"{refused_field(error)}: cannot make {env_id!r} on a device: {cause_of(error)}") from error
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        limit = env.spec.max_episode_steps
        env.close()
        self.num_envs, self.limit = num_envs, None if limit == -1 else limit
        self.device, self.dtype = torch.device(device), dtype
        self.capabilities = replace(self.capabilities, device=self.device)
        self._generator = torch.Generator(self.device)
        self.carry = self._first()

    def noise(self, num_steps: int) -> Tensor:
        """See `PureEnvironments`: `[num_steps, N, num_uniforms]` uniform numbers for the first states of episodes."""
        return self.noise_like(num_steps).uniform_(generator=self._generator)

    def noise_like(self, num_steps: int) -> Tensor:
        """See `PureEnvironments`."""
        shape = num_steps, self.num_envs, self.task.num_uniforms
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def transition(self, carry: Carry, actions: Tensor, noise: Tensor) -> tuple[Carry, VectorStep[Tensor]]:
        """See `PureEnvironments`: the carry has states `[N, S]` and env steps of the current episodes `[N]`."""
        state, steps = carry
        moved, rewards, terminated = self.task.step(state, actions)
        steps = steps + 1
        truncated = torch.zeros_like(terminated) if self.limit is None else steps >= self.limit
        done = terminated | truncated
        state = torch.where(done.unsqueeze(-1), self.task.first(noise), moved)
        obs, final_obs = self.task.observe(state), self.task.observe(moved)
        step = VectorStep(obs, rewards, terminated, truncated, done, done, final_obs)
        return (state, steps.masked_fill(done, 0)), step

    def reset(self, seeds: Seeds = None) -> tuple[Tensor, None]:
        """See `Environments`; the first of several seeds is used for all."""
        if (seed := one_seed(seeds)) is not None:
            self._generator.manual_seed(seed)
        self.carry = self._first()
        return self.task.observe(self.carry[0]), None

    def step(self, actions: Tensor) -> VectorStep[Tensor]:
        """See `Environments`."""
        self.carry, step = self.transition(self.carry, actions.to(self.device), self.noise(1)[0])
        return step

    def trim(self, lengths: object) -> None:
        """Does nothing: earlier steps are not stored."""

    def state_dict(self, lengths: Tensor) -> dict[str, Any]:
        """See `Environments`."""
        envs = {
            "device": self.device.type,
            "state": self.carry[0].cpu().clone(),
            "steps": self.carry[1].cpu().clone(),
            "generator": self._generator.get_state(),
        }
        return {"envs": envs}

    def load_state_dict(self, state: dict[str, Any], obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """See `Environments`."""
        envs = state["envs"]
        if envs["device"] != self.device.type:
            return f"its random numbers were drawn on {envs['device']}, not on {self.device.type}"
        self.carry = envs["state"].to(self.device, self.dtype), envs["steps"].to(self.device)
        self._generator.set_state(envs["generator"])
        return ""

    def close(self) -> None:
        """Does nothing: there are no resources to release."""

    def _first(self) -> Carry:
        return self.task.first(self.noise(1)[0]), torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
