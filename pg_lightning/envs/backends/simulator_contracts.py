"""The two contracts of simulators that return tensors: Gymnasium's five values of a step, and rsl_rl's four.

Steps and resets run in inference mode: a simulator may write in a reset into tensors that it made in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from gymnasium import Space, spaces
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pg_lightning.envs import failures
from pg_lightning.envs.backends.observations import ObservationLayout, Observations, box_of
from pg_lightning.envs.contract import Capabilities, EnvState, VectorStep
from pg_lightning.envs.seeds import Seeds, one_seed
from pg_lightning.errors import UserError

Extras = Mapping[str, object]
Values = TypeVar("Values")
FINAL_OBS = ("final_obs", "final_observation")  # Gymnasium 1.x and Isaac Lab; ManiSkill


class FiveValueEnv(Protocol):
    """A vector environment whose step returns observations, rewards, terminated, truncated and infos."""

    def reset(self, *, seed: int | None = None) -> tuple[Observations, Extras]:
        """Starts an episode in every environment."""
        ...

    def step(self, actions: Tensor) -> tuple[Observations, Tensor, Tensor | bool, Tensor | bool, Extras]:
        """One step of every environment."""
        ...


class FourValueEnv(Protocol):
    """rsl_rl's `VecEnv`, whose step returns observations, rewards, dones and extras; it may have `reset` and `seed`."""

    num_actions: int

    def get_observations(self) -> Observations | tuple[Observations, Extras]:
        """The current observations; the wrapper of MuJoCo Playground starts new episodes here."""
        ...

    def step(self, actions: Tensor) -> tuple[Observations, Tensor, Tensor, Extras]:
        """One step of every environment."""
        ...


class Simulator:
    """What the adapters of both contracts share; see `Environments`.

    Args:
        env: the simulator.
        layout: of its observations.
        actions: its single action space.
        capabilities: without `knows_final_obs`, which becomes True when the simulator first returns final observations.
    """

    restarts = 0
    _steps = 0

    def __init__(self, env: object, layout: ObservationLayout, actions: Space, capabilities: Capabilities) -> None:
        self._env = env
        self.num_envs = num_envs_of(env)
        self.layout = layout
        self.single_observation_space, self.single_action_space = layout.space, actions
        self.capabilities = capabilities
        self._reports_double = not layout.is_double
        if layout.is_double:
            rank_zero_info("data.env_id: the observations are float64, and are converted to float32")

    def trim(self, lengths: object) -> None:
        """Does nothing: earlier steps are not stored."""

    def state_dict(self, lengths: Tensor) -> EnvState:
        """Nothing: simulators have no common way to save their state."""
        return {}

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """The reason why the state cannot be restored."""
        return "a simulator does not save its state"

    def close(self) -> None:
        """Closes the simulator, if it can be closed."""
        close = getattr(self._env, "close", None)
        if callable(close):
            failures.close(self._env, "the simulator")  # type: ignore[arg-type]

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Within this context, what the simulator raises becomes one line that names the step."""
        try:
            yield
        except BaseException as error:
            failures.raise_as_line(error, (None, self._steps))
            raise

    def taken(self, actions: Tensor) -> Tensor:
        """A copy of the actions on the simulator's device; it may write into the copy."""
        return actions.to(self.layout.device, copy=True)

    def column(self, x: object, name: str) -> Tensor:
        """`[N]`, one number for each environment.

        Raises:
            UserError: if it is not, naming it.
        """
        if not isinstance(x, Tensor):
            raise UserError(
                f"data.env_id: {name} of the simulator are {type(x).__name__}, not tensors; set data.backend to vector"
            )
        if x.numel() != self.num_envs:
            raise UserError(
                f"data.env_id: {name} of the simulator have shape {list(x.shape)}, not one number for each of its "
                f"{self.num_envs} environments"
            )
        return x.reshape(self.num_envs)

    def rewards(self, rewards: Tensor) -> Tensor:
        """`[N]` float32; reports once that float64 is converted."""
        rewards = self.column(rewards, "rewards")
        if rewards.dtype == torch.float64 and self._reports_double:
            self._reports_double = False
            rank_zero_info("data.env_id: the rewards are float64, and are converted to float32")
        return rewards.float()

    def final_obs(self, extras: Extras) -> Tensor | None:
        """`[N, *obs]` the last observations of the episodes that ended in this step; None if the simulator gave none.

        Whether it did is known without a synchronisation with the device: the key is there or not.
        """
        name = next((name for name in FINAL_OBS if name in extras), None)
        if name is None or extras[name] is None:
            return None
        if not self.capabilities.knows_final_obs:
            self.capabilities = replace(self.capabilities, knows_final_obs=True)
        try:
            final_obs = self.layout.flat(extras[name])  # type: ignore[arg-type]
        except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
            raise _unlike_observations(name, self.num_envs) from error
        if len(final_obs) != self.num_envs:
            raise _unlike_observations(name, self.num_envs)
        return final_obs


class FiveValues(Simulator):
    """A vector environment of Gymnasium, or a simulator with the same methods (Isaac Lab, mjlab, ManiSkill).

    Args:
        env: the simulator.
        autoreset: when it resets a finished episode.
    """

    @torch.inference_mode()
    def __init__(self, env: FiveValueEnv, autoreset: Literal["same_step", "next_step"]) -> None:
        self.env = env
        core = getattr(env, "unwrapped", env)
        space = getattr(env, "single_observation_space", getattr(core, "single_observation_space", None))
        layout = ObservationLayout(_values(env.reset(), 2, "reset")[0], space)
        capabilities = Capabilities(
            layout.device, autoreset, single_instance=True, knows_final_obs=autoreset == "next_step"
        )
        actions = getattr(env, "single_action_space", getattr(core, "single_action_space", None))
        if actions is None:
            raise UserError(
                "data.env_id: the simulator has no single_action_space, the action space of one environment"
            )
        super().__init__(env, layout, box_of(actions), capabilities)
        self._resets_next = autoreset == "next_step"
        self._in_reset_row = torch.zeros(self.num_envs, dtype=torch.bool, device=layout.device)

    @torch.inference_mode()
    def reset(self, seeds: Seeds = None) -> tuple[Tensor, Tensor | None]:
        """See `Environments`; the first of several seeds is used for all."""
        with self.reported():
            result = self.env.reset(seed=one_seed(seeds))
        obs, extras = _values(result, 2, "reset")
        self._in_reset_row = torch.zeros_like(self._in_reset_row)
        return self.layout.flat(obs), _action_mask(extras)

    @torch.inference_mode()
    def step(self, actions: Tensor) -> VectorStep[Tensor]:
        """See `Environments`."""
        self._steps += 1
        with self.reported():
            result = self.env.step(self.taken(actions))
        obs, rewards, terminated, truncated, extras = _values(result, 5, "step")
        terminated, truncated = self._flags(terminated, "terminated"), self._flags(truncated, "truncated")
        done = terminated | truncated
        begins, final_obs, valid = done, None, None
        if self._resets_next:
            begins, self._in_reset_row = self._in_reset_row, done
            valid = ~begins
        else:
            final_obs = self.final_obs(extras)
        ends = (terminated, truncated, done, begins)
        mask = _action_mask(extras)
        return VectorStep(
            self.layout.flat(obs), self.rewards(rewards), *ends, final_obs, valid, None, mask, info=extras
        )

    def _flags(self, x: Tensor | bool, name: str) -> Tensor:
        if isinstance(x, bool):
            return torch.full((self.num_envs,), x, device=self.layout.device)
        return self.column(x, f"the flags {name}").bool()


class FourValues(Simulator):
    """rsl_rl's `VecEnv` (Isaac Lab's and mjlab's wrappers, MuJoCo Playground, Genesis).

    `dones` are truncated where `extras["time_outs"]` are non-zero, and terminated elsewhere. The interface does not
    tell whether an episode also terminated in the step of its time limit.

    Args:
        env: the simulator.
    """

    @torch.inference_mode()
    def __init__(self, env: FourValueEnv) -> None:
        self.env = env
        layout = ObservationLayout(self._first())
        seeds: Literal["one", "none"] = "one" if callable(getattr(env, "seed", None)) else "none"
        capabilities = Capabilities(layout.device, "same_step", seeds, single_instance=True, knows_final_obs=False)
        actions = spaces.Box(-np.inf, np.inf, (env.num_actions,), np.float32)
        super().__init__(env, layout, actions, capabilities)

    @torch.inference_mode()
    def reset(self, seeds: Seeds = None) -> tuple[Tensor, None]:
        """See `Environments`; the first of several seeds is used, if the simulator has a method `seed`."""
        seed = getattr(self.env, "seed", None)
        with self.reported():
            if callable(seed) and one_seed(seeds) is not None:
                seed(one_seed(seeds))
            first = self._first()
        return self.layout.flat(first), None

    @torch.inference_mode()
    def step(self, actions: Tensor) -> VectorStep[Tensor]:
        """See `Environments`."""
        self._steps += 1
        with self.reported():
            result = self.env.step(self.taken(actions))
        obs, rewards, dones, extras = _values(result, 4, "step")
        done, time_outs = self.column(dones, "dones").bool(), extras.get("time_outs")
        # Time-outs are set in any dtype, and may be left over from an earlier step.
        truncated = torch.zeros_like(done)
        if isinstance(time_outs, Tensor):
            truncated = done & self.column(time_outs, "extras['time_outs']").bool()
        ends = (done & ~truncated, truncated, done, done)
        return VectorStep(self.layout.flat(obs), self.rewards(rewards), *ends, self.final_obs(extras), info=extras)

    def _first(self) -> Observations:
        """The first observations of new episodes.

        From `reset` if there is one: the wrapper of MuJoCo Playground also starts new episodes in `get_observations`.
        """
        reset = getattr(self.env, "reset", None)
        first = reset() if callable(reset) else None
        obs = self.env.get_observations() if first is None else first
        return obs[0] if isinstance(obs, tuple) else obs


def num_envs_of(env: object) -> int:
    """Number of environments of a simulator; wrappers of single environments do not pass it on."""
    for part in (env, getattr(env, "unwrapped", env)):
        if isinstance(count := getattr(part, "num_envs", None), int):
            return count
    return 0


def _values(result: Values, count: int, method: str) -> Values:
    """The values that a method returned, if they are as many as they must be and the last one is a dictionary."""
    if not isinstance(result, tuple) or len(result) != count or not hasattr(result[-1], "get"):
        given = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise UserError(
            f"data.env_id: {method} of the simulator returned {given}; it must return {count}, the last a dictionary"
        )
    return result


def _unlike_observations(name: str, num_envs: int) -> UserError:
    return UserError(
        f"data.env_id: infos[{name!r}] of the simulator must have the structure of its observations, for all "
        f"{num_envs} environments"
    )


def _action_mask(extras: Extras) -> Tensor | None:
    mask = extras.get("action_mask")
    return mask if isinstance(mask, Tensor) else None
