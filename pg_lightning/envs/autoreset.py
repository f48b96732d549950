"""Adapters for Gymnasium's three autoreset modes: each makes a `VectorStep` of a vector environment's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from pg_lightning.envs import replay
from pg_lightning.envs.backends.vectorised import Vectorised
from pg_lightning.envs.contract import RESTARTED, Environments, EnvState, Info, VectorStep, capabilities_of
from pg_lightning.errors import UserError

Step = VectorStep[np.ndarray]


class GymnasiumEnvironments:
    """Adapts a Gymnasium vector environment with array observations to `Environments`; one subclass per autoreset mode.

    Records the actions of the current episodes if its state is saved by replaying them.

    Args:
        vector_env: the environment.
    """

    mode: ClassVar[Literal["same_step", "next_step", "disabled"]]

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        self.vector_env = vector_env
        self.num_envs = vector_env.num_envs
        self.single_observation_space = vector_env.single_observation_space
        self.single_action_space = vector_env.single_action_space
        declared = capabilities_of(vector_env)
        can_reset_some = declared.can_reset_some and self.mode == "disabled"
        self.capabilities = replace(declared, autoreset=self.mode, can_reset_some=can_reset_some)
        self._keeps_actions = declared.can_save_state == "by_replay"
        self._played: list[np.ndarray] = []
        self._trimmed = 1024
        self._nothing = np.zeros(self.num_envs, bool)
        self._in_reset_row = self._nothing

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Environments`."""
        obs, infos = self.vector_env.reset(seed=seeds)  # type: ignore[arg-type]
        self._in_reset_row = self._nothing
        return obs, _action_mask(infos)

    def trim(self, lengths: np.ndarray) -> None:
        """See `Environments`. Only trims from time to time, because trimming at every step would be slower."""
        if len(self._played) > self._trimmed:
            kept = min(int(lengths.max()), replay.MAX_REPLAY)
            del self._played[: len(self._played) - kept]
            self._trimmed = 2 * kept + 1024

    def state_dict(self, lengths: Tensor) -> EnvState:
        """See `Environments`."""
        return {
            "envs": replay.save(self.vector_env, self._played, lengths.numpy(), self._in_reset_row),
            "in_reset_row": torch.from_numpy(self._in_reset_row.copy()),
        }

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """See `Environments`."""
        reason = replay.load(self.vector_env, state["envs"], obs.numpy(), returns.numpy(), lengths.numpy())
        if not reason:
            self._in_reset_row = state["in_reset_row"].numpy().copy()
            self._played = replay.history(state["envs"])
        return reason

    @property
    def restarts(self) -> int:
        """See `Environments`."""
        restarts: int = self.vector_env.restarts if self.capabilities.supervises else 0  # type: ignore[attr-defined]
        return restarts

    def close(self) -> None:
        """See `Environments`."""
        self.vector_env.close()


class SameStep(GymnasiumEnvironments):
    """A finished episode is reset within the step."""

    mode = "same_step"

    def step(self, actions: Tensor) -> Step:
        """See `Environments`."""
        taken = actions.cpu().numpy()
        if self._keeps_actions:
            self._played.append(taken)
        obs, rewards, terminated, truncated, infos = self.vector_env.step(taken)
        done = terminated | truncated
        step = Step(obs, rewards, terminated, truncated, done, done)
        return _with_infos(step, infos, infos.get("final_obs")) if infos else step


class NextStep(GymnasiumEnvironments):
    """A finished episode is reset in the next step, which ignores its action and has reward 0."""

    mode = "next_step"

    def step(self, actions: Tensor) -> Step:
        """See `Environments`."""
        taken = actions.cpu().numpy()
        if self._keeps_actions:
            self._played.append(taken)
        obs, rewards, terminated, truncated, infos = self.vector_env.step(taken)
        done = terminated | truncated
        begins, self._in_reset_row = self._in_reset_row, done
        step = Step(obs, rewards, terminated, truncated, done, begins, valid=~begins)
        return _with_infos(step, infos) if infos else step


class Disabled(GymnasiumEnvironments):
    """A finished episode is reset only on request, which `step` makes."""

    mode = "disabled"

    def step(self, actions: Tensor) -> Step:
        """See `Environments`."""
        taken = actions.cpu().numpy()
        if self._keeps_actions:
            self._played.append(taken)
        step = self._waiting(*self.vector_env.step(taken))
        if not step.done.any():
            return step
        # The reset may write into the arrays of the step.
        obs, rewards, terminated, truncated = (np.array(x) for x in step[:4])
        first, mask = self.begin(step.done)
        if mask is not None and step.action_mask is not None:
            mask = np.where(step.done[:, None], mask, step.action_mask)
        return step._replace(
            obs=first,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            begins=step.begins | step.done,
            final_obs=obs,
            action_mask=mask,
        )

    def step_and_wait(self, actions: Tensor) -> Step:
        """See `ResettableEnvironments`."""
        return self._waiting(*self.vector_env.step(actions.cpu().numpy()))

    def begin(
        self, which: np.ndarray, seeds: Sequence[int | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `ResettableEnvironments`."""
        obs, infos = self.vector_env.reset(seed=seeds, options={"reset_mask": which})  # type: ignore[arg-type]
        return obs, _action_mask(infos, which)

    def _waiting(
        self, obs: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, infos: Info
    ) -> Step:
        step = Step(obs, rewards, terminated, truncated, terminated | truncated, self._nothing)
        return _with_infos(step, infos) if infos else step


_ADAPTERS: dict[AutoresetMode, type[SameStep | NextStep | Disabled]] = {
    AutoresetMode.SAME_STEP: SameStep,
    AutoresetMode.NEXT_STEP: NextStep,
    AutoresetMode.DISABLED: Disabled,
}


def environments(env: VectorEnv[Any, Any, Any] | Environments) -> Environments:
    """The environment as `Environments`: itself, or an adapter around Gymnasium's interface."""
    if not isinstance(env, VectorEnv):
        return env
    if not hasattr(env, "capabilities"):  # made by others
        env = Vectorised(env)
    return _ADAPTERS[AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))](env)


def _with_infos(step: Step, infos: Info, final_obs: np.ndarray | None = None) -> Step:
    begins, valid, restarted = step.begins, step.valid, None
    if RESTARTED in infos:
        restarted = infos[RESTARTED]
        begins = begins | restarted
        valid = ~restarted if valid is None else valid & ~restarted
    mask = _action_mask(infos) if "action_mask" in infos else None
    return Step(*step[:5], begins, final_obs, valid, restarted, mask, info=infos)


def _action_mask(infos: Info, which: np.ndarray | None = None) -> np.ndarray | None:
    """A copy of the masks of all environments, or of those in `which`; they must be arrays from every environment.
    If an environment gave no mask, Gymnasium fills in zeros."""
    if "action_mask" not in infos:
        return None
    masks, given = np.array(infos["action_mask"]), np.asarray(infos.get("_action_mask", True))
    if masks.dtype == object or not np.all(given if which is None else given | ~which):
        raise UserError(
            "data.env_id: info['action_mask'] must be an array (for MultiDiscrete one per component, concatenated), "
            "from every environment, in reset and in every step"
        )
    return masks
