"""The contract of environments: what a step gives, and what a back-end can do. Nobody asks for its name or its type.

A back-end is either a `gymnasium.vector.VectorEnv` with an attribute `capabilities`, which `envs.autoreset` adapts, or
a class of its own that fulfils `Environments`, on any device. `tests/envs/test_contract.py` is what it must pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor

ArrayT = TypeVar("ArrayT")  # np.ndarray on the host, Tensor on a device

RESTARTED = "pg_lightning/restarted"  # in the infos of a step: `[N]` bool, the environments that were replaced in it
READ = ("action_mask", "final_obs")  # the infos that collection and evaluation read


class VectorStep(NamedTuple, Generic[ArrayT]):
    """One step of N environments: NumPy arrays on the host, or tensors on the environments' device.

    The environments may write into the same arrays at the next step: copy what is to be kept.

    Attributes:
        obs: `[N, *obs]` observations that the next actions answer; after a reset within the step, the first of the new
            episode.
        rewards: `[N]` in the environment's unit.
        terminated: `[N]` bool; the task ended.
        truncated: `[N]` bool; the episode was cut by a limit.
        done: `[N]` bool; terminated or truncated.
        begins: `[N]` bool; `obs` is the first of an episode.
        final_obs: indexed by environment, where it is both done and begins: the last observation of the episode that
            ended. A full batch `[N, *obs]` on a device; on the host other rows may hold anything. None where no
            environment was reset within the step, or the back-end does not know.
        valid: `[N]` bool, False where the environment ignored its action, or was replaced; None if all are valid.
        restarted: `[N]` bool, True where an environment broke and was replaced; it is not done. None if none was.
        action_mask: `[N, A]`, non-zero where an action is allowed in `obs`; None if the environment does not say.
        info: what else the back-end said, never converted.
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
    info: Mapping[str, object] = {}


@dataclass(frozen=True)
class Capabilities:
    """What a back-end can do.

    Attributes:
        device: where its tensors are; None if it gives NumPy arrays.
        autoreset: when an ended episode restarts. With `disabled`, only when it is told to.
        seeds: `per_env` if `reset` takes a seed for each environment; `one` if all draw from one stream.
        can_save_state: how `envs.replay` brings it back: by repeating the actions of each episode, by copying its
            numbers, or not at all.
        can_reset_some: single environments can be reset, each with a seed: an evaluation needs that.
        supervises: replaces environments that break, and counts them in `restarts`.
        single_instance: a process can hold only one; evaluation has to use the one that training uses.
        capturable: a step can be recorded in a CUDA graph: fixed shapes and addresses, no synchronisation.
    """

    device: torch.device | None = None
    autoreset: Literal["same_step", "next_step", "disabled"] = "next_step"
    seeds: Literal["per_env", "one"] = "one"
    can_save_state: Literal["by_replay", "by_copy", "no"] = "no"
    can_reset_some: bool = False
    supervises: bool = False
    single_instance: bool = False
    capturable: bool = False


class Environments(Protocol):
    """N environments that step together, in one shape for every back-end and every autoreset mode.

    Attributes:
        num_envs: N.
        single_observation_space: of one environment, a `Box`.
        single_action_space: of one environment.
        capabilities: see there.
    """

    num_envs: int
    single_observation_space: Space[Any]
    single_action_space: Space[Any]
    capabilities: Capabilities

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[Any, Any | None]:
        """Begins an episode in every environment.

        Args:
            seeds: one for each environment, or one for all; None goes on with the random numbers of before.

        Returns:
            The first observations `[N, *obs]`, and the action mask `[N, A]` if the environment has one.
        """
        ...

    def step(self, actions: Tensor) -> VectorStep[Any]:
        """One step of every environment; those whose episode has ended begin another, as the back-end does it.

        Args:
            actions: `[N, *action]` as `Actor.env_actions` gives them, on any device.
        """
        ...

    def trim(self, lengths: Any) -> None:
        """Says how many env steps each episode under way has, `[N]`: older actions are not needed any more."""
        ...

    def state_dict(self, lengths: Tensor) -> dict[str, Any]:
        """Where the environments stand, in plain types and tensors.

        `lengths` `[N]` int64 are the env steps of the episodes under way.
        """
        ...

    def load_state_dict(self, state: dict[str, Any], obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """Puts environments that were just reset where they stood.

        Args:
            state: what `state_dict` gave.
            obs: `[N, *obs]` last observations of that time.
            returns: `[N]` float64, of the episodes under way.
            lengths: `[N]` their env steps.

        Returns:
            Nothing, or why that could not be done; then the environments have to be reset.
        """
        ...

    @property
    def restarts(self) -> int:
        """How many environments have been replaced since the start."""
        ...

    def close(self) -> None:
        """Ends the environments."""
        ...


class ResettableEnvironments(Environments, Protocol):
    """Environments with `can_reset_some`, whose episodes begin when they are told to."""

    def step_and_wait(self, actions: Tensor) -> VectorStep[Any]:
        """As `step`, but an environment whose episode has ended waits for `begin`."""
        ...

    def begin(self, which: Any, seeds: Sequence[int | None] | None = None) -> tuple[Any, Any | None]:
        """Begins an episode where `which` `[N]` is True.

        Args:
            which: `[N]` bool.
            seeds: one for each of the N environments; None goes on with the random numbers of before.

        Returns:
            Observations `[N, *obs]` and action mask `[N, A]` of all environments; the mask only of those that begin.
        """
        ...


def capabilities_of(env: VectorEnv[Any, Any, Any]) -> Capabilities:
    """What a Gymnasium vector environment says of itself; of one that says nothing, the least."""
    return getattr(env, "capabilities", Capabilities())
