"""The interface of environments: the result of a step, and the capabilities of a back-end.

No other code checks the name or the type of a back-end. A back-end is either a `gymnasium.vector.VectorEnv` with an
attribute `capabilities`, which `envs.autoreset` adapts, or a class that implements `Environments`, on any device. It
must pass `tests/envs/test_contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, SupportsFloat, TypeVar

import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor

from pg_lightning.actor import Actor

ArrayT = TypeVar("ArrayT")  # np.ndarray on the host, Tensor on a device

RESTARTED = "pg_lightning/restarted"  # in the infos of a step: `[N]` bool, the environments that this step replaced

# In Gymnasium's signatures any type is allowed:
Info = dict[str, Any]  # the infos beside observations, and the options of a reset
SingleReset = tuple[Any, Info]  # the result of a reset of one environment
SingleStep = tuple[Any, SupportsFloat, bool, bool, Info]  # and of a step
EnvKwargs = dict[str, Any]  # of an environment's constructor
Carry = tuple[Tensor, ...]  # the whole state of environments on a device
EnvState = dict[str, Any]  # plain types and arrays, as in a checkpoint


class VectorStep(NamedTuple, Generic[ArrayT]):
    """One step of N environments: NumPy arrays on the host, or tensors on the environments' device.

    The environments may overwrite the arrays in the next step: copy what you keep.

    Attributes:
        obs: `[N, *obs]` observations for the next actions; after a reset within the step, the first of the new
            episode.
        rewards: `[N]` in the environment's unit.
        terminated: `[N]` bool; the task ended.
        truncated: `[N]` bool; a limit stopped the episode.
        done: `[N]` bool; terminated or truncated.
        begins: `[N]` bool; `obs` is the first of an episode.
        final_obs: indexed by environment, where both `done` and `begins` are True: the last observation of the finished
            episode. A full batch `[N, *obs]` on a device; on the host other rows are undefined. None if no
            environment was reset within the step, or the back-end does not know.
        valid: `[N]` bool, False where the environment ignored its action, or was replaced; None if all are valid.
        restarted: `[N]` bool, True where an environment failed and was replaced; it is not done. None if none was.
        action_mask: `[N, A]`, non-zero where an action is allowed in `obs`; None if the environment has no mask.
        seat_rewards: `[N, 2]` float64, with `Capabilities.num_both` the rewards of both seats, where `rewards` are of
            the one that acted; else None.
        info: other infos of the back-end, unconverted.
    """

    obs: ArrayT
    rewards: ArrayT
    terminated: ArrayT
    truncated: ArrayT
    done: ArrayT
    begins: ArrayT
    final_obs: ArrayT | None = None
    valid: ArrayT | None = None
    restarted: ArrayT | None = None
    action_mask: ArrayT | None = None
    seat_rewards: ArrayT | None = None
    info: Mapping[str, object] = {}


@dataclass(frozen=True)
class Capabilities:
    """The capabilities of a back-end.

    Attributes:
        device: of its tensors; None if it returns NumPy arrays.
        autoreset: when a finished episode is reset. With `disabled`, only on request.
        seeds: `per_env` if `reset` takes a seed for each environment; `one` if all use one random stream; `none` if
            `reset` ignores seeds.
        can_save_state: how `envs.replay` restores it: by replaying the actions of each episode, by copying its
            numbers, or not at all.
        can_reset_some: single environments can be reset, each with a seed; required for evaluation.
        supervises: replaces environments that fail, and counts them in `restarts`.
        single_instance: a process can hold only one instance; evaluation must share it with training.
        is_pure: a step is a pure function of tensors, see `PureEnvironments`.
        knows_final_obs: a step gives `final_obs` if it may have reset an environment. If False, training bootstraps
            truncated episodes from the state before. An adapter may set it when the simulator first gives them.
        num_both: number of environments, the first ones, in which the policy plays both seats of a game, one action
            at a time: see `GameEnvironments`.
        follows_policy: `follow` must be called before each rollout: see `GameEnvironments`.
    """

    device: torch.device | None = None
    autoreset: Literal["same_step", "next_step", "disabled"] = "next_step"
    seeds: Literal["per_env", "one", "none"] = "one"
    can_save_state: Literal["by_replay", "by_copy", "no"] = "no"
    can_reset_some: bool = False
    supervises: bool = False
    single_instance: bool = False
    is_pure: bool = False
    knows_final_obs: bool = True
    num_both: int = 0
    follows_policy: bool = False


class Environments(Protocol):
    """N environments that step together, in one shape for every back-end and every autoreset mode.

    Attributes:
        num_envs: N.
        single_observation_space: of one environment, a `Box`.
        single_action_space: of one environment.
        capabilities: see `Capabilities`.
    """

    num_envs: int
    single_observation_space: Space[Any]
    single_action_space: Space[Any]
    capabilities: Capabilities

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[Any, Any | None]:
        """Starts an episode in every environment.

        Args:
            seeds: one for each environment, or one for all; None continues the random streams.

        Returns:
            The first observations `[N, *obs]`, and the action mask `[N, A]` if the environment has one.
        """
        ...

    def step(self, actions: Tensor) -> VectorStep[Any]:
        """One step of every environment; finished episodes are reset according to the autoreset mode.

        Args:
            actions: `[N, *action]` as `Actor.env_actions` returns them, on any device. They are part of the rollout:
                copy them before writing into them.
        """
        ...

    def trim(self, lengths: Any) -> None:
        """Sets the lengths `[N]` of the current episodes in env steps: older actions are no longer needed."""
        ...

    def state_dict(self, lengths: Tensor) -> EnvState:
        """The state of the environments, in plain types and tensors.

        `lengths` `[N]` int64 are the env steps of the current episodes.
        """
        ...

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """Restores the state of environments that were just reset.

        Args:
            state: the result of `state_dict`.
            obs: `[N, *obs]` last observations at that time.
            returns: `[N]` float64, of the current episodes.
            lengths: `[N]` their env steps.

        Returns:
            An empty string, or the reason for failure; then the environments must be reset.
        """
        ...

    @property
    def restarts(self) -> int:
        """Number of environments replaced since the start."""
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


class PureEnvironments(Environments, Protocol):
    """Environments with `is_pure`, so that several steps can be compiled together with the policy.

    Attributes:
        carry: the state of the environments.
    """

    carry: Carry

    def noise(self, num_steps: int) -> Tensor:
        """`[num_steps, N, ...]` random numbers, a row for each step, from the environments' random stream."""
        ...

    def noise_like(self, num_steps: int) -> Tensor:
        """An uninitialised tensor like the result of `noise`."""
        ...

    def transition(self, carry: Carry, actions: Tensor, noise: Tensor) -> tuple[Carry, VectorStep[Tensor]]:
        """A step as a function of its arguments only, without synchronisation; `step` uses it.

        Args:
            carry: see above.
            actions: `[N, *action]` as `Actor.env_actions` returns them.
            noise: `[N, ...]`, one row of `noise`.

        Returns:
            The next carry, and the result of the step.
        """
        ...


class GameEnvironments(Environments, Protocol):
    """Games of two seats, of which a policy plays one or, in the first `num_both` environments, both.

    Attributes:
        seats: `[N]` int64, 0 or 1, the seat for which the next action is.
    """

    seats: np.ndarray

    def follow(self, actor: Actor) -> None:
        """Shows the policy of the next rollout, so that a copy of it can join the opponents."""
        ...


class ResettableEnvironments(Environments, Protocol):
    """Environments with `can_reset_some`, whose episodes start on request."""

    def step_and_wait(self, actions: Tensor) -> VectorStep[Any]:
        """Like `step`, but an environment whose episode has ended waits for `begin`."""
        ...

    def begin(self, which: Any, seeds: Sequence[int | None] | None = None) -> tuple[Any, Any | None]:
        """Starts an episode where `which` `[N]` is True.

        Args:
            which: `[N]` bool.
            seeds: one for each of the N environments; None continues the random streams.

        Returns:
            Observations `[N, *obs]` of all environments, and the action mask `[N, A]`, which is only set for the new
            episodes.
        """
        ...


def capabilities_of(env: VectorEnv[Any, Any, Any]) -> Capabilities:
    """The declared capabilities of a Gymnasium vector environment; the minimum if it declares none."""
    return getattr(env, "capabilities", Capabilities())
