"""One instance of environments for training and evaluation, where a process can hold only one: they take turns.

Evaluation resets the instance, which drops the current episodes of training; the next rollout starts new ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.envs import env_seed, failures
from pg_lightning.envs.contract import Environments, EnvState, VectorStep
from pg_lightning.envs.seeds import Seeds, one_seed
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout


class SharedInstance:
    """The instance, and whose turn it is. It is closed when nothing refers to it any more, at the latest at exit.

    Args:
        env: the environments.
        limit_s: seconds that closing them may take.

    Attributes:
        evaluations: number of times that an evaluation has reset the environments.
    """

    def __init__(self, env: Environments, limit_s: float = 60.0) -> None:
        self.env = env
        self.evaluations = 0
        weakref.finalize(self, failures.close, env, "the simulator", limit_s)


class SharedCollector(RolloutCollector):
    """A collector that starts new episodes after an evaluation in the same instance. Their seeds are new.

    It reports once if truncated episodes are bootstrapped without their last observations, which the back-end lost.

    Args:
        instance: the environments.
        num_steps: see `RolloutCollector`, also for the others.
        seed: of the environments.
        action_seed: of the noise of actions.
        whole_episodes: whether rollouts consist of whole episodes.
        max_episode_steps: limit of an episode in them.
    """

    def __init__(
        self,
        instance: SharedInstance,
        num_steps: int,
        seed: int,
        action_seed: int,
        whole_episodes: bool = False,
        max_episode_steps: int = 50_000,
    ) -> None:
        super().__init__(instance.env, num_steps, seed, action_seed, whole_episodes, max_episode_steps)
        self._instance, self._seed = instance, seed
        self._seen = instance.evaluations
        self._has_lost_some = False

    def collect(self, actor: Actor) -> Rollout:
        """See `RolloutCollector`."""
        self._take_turn()
        rollout = super().collect(actor)
        knows = self.env.capabilities.knows_final_obs
        if len(rollout.final_rows) and not knows and not self._has_lost_some:
            self._has_lost_some = True
            rank_zero_info(
                "data.env_id: the environments lose the last observation of truncated episodes, so training bootstraps "
                "from the value of the state before (train/bootstrap_is_approximate is 1)"
            )
        return replace(rollout, bootstrap_is_approximate=self._has_lost_some and not knows)

    def state_dict(self) -> EnvState:
        """See `RolloutCollector`; after an evaluation this is the state of the new episodes."""
        self._take_turn()
        return super().state_dict()

    def close(self) -> None:
        """Does nothing: evaluation may still need the instance."""

    def _take_turn(self) -> None:
        if self._seen != self._instance.evaluations:
            self._seen = self._instance.evaluations
            self._reset(env_seed(self._seed, self._seen))


class EvaluationTurn:
    """An evaluation in the shared instance; implements `ResettableEnvironments` with NumPy arrays.

    The environments reset themselves, so `begin` only says which new episodes count. An environment that ends an
    episode starts the next at once, and whether that one counts is known before its first step: short episodes are not
    favoured.

    Args:
        instance: the environments.
    """

    def __init__(self, instance: SharedInstance) -> None:
        self._instance, env = instance, instance.env
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.capabilities = replace(env.capabilities, device=None, can_reset_some=True, can_save_state="no")
        self._resets_in_step = env.capabilities.autoreset == "same_step"
        self._now = np.zeros(0)
        self._mask: np.ndarray | None = None
        self._done = np.zeros(self.num_envs, bool)

    def reset(self, seeds: Seeds = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Starts an episode in every environment; drops those of training."""
        self._instance.evaluations += 1
        obs, mask = self._instance.env.reset(one_seed(seeds))
        self._now, self._mask = _array(obs), _array_or_none(mask)
        return self._now, self._mask

    def step(self, actions: Tensor) -> VectorStep[np.ndarray]:
        """The same as `step_and_wait`."""
        return self.step_and_wait(actions)

    def step_and_wait(self, actions: Tensor) -> VectorStep[np.ndarray]:
        """See `ResettableEnvironments`. An unknown last observation is replaced by the one before."""
        before, step = self._now, _on_host(self._instance.env.step(actions))
        self._now, self._mask, self._done = step.obs, step.action_mask, step.done
        if not self._resets_in_step:
            return step
        last = before if step.final_obs is None else step.final_obs
        done = step.done.reshape(-1, *[1] * (step.obs.ndim - 1))
        obs, begins = np.where(done, last, step.obs), np.zeros_like(step.begins)
        return step._replace(obs=obs, begins=begins, final_obs=None)

    def begin(
        self, which: np.ndarray, seeds: Sequence[int | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The first observations of the episodes that have begun. Seeds are ignored, except that None does not count.

        Raises:
            UserError: if another episode must count in an environment whose episode has not ended.
        """
        for n in np.flatnonzero(which & ~self._done).tolist():
            if seeds is not None and seeds[n] is not None:
                raise UserError(
                    "data.eval_max_episode_steps: an evaluation episode has not ended, and this back-end cannot reset "
                    f"one environment for the next; set data.eval_episodes to at most data.num_envs = {self.num_envs}, "
                    "or give the environment a time limit"
                )
        return self._now, self._mask

    def trim(self, lengths: object) -> None:
        """Does nothing."""

    def state_dict(self, lengths: Tensor) -> EnvState:
        """Nothing: an evaluation is not resumed."""
        return {}

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """The reason why the state cannot be restored."""
        return "an evaluation is not resumed"

    @property
    def restarts(self) -> int:
        """See `Environments`."""
        return self._instance.env.restarts

    def close(self) -> None:
        """Does nothing: training may still need the instance."""


def _on_host(step: VectorStep[Tensor]) -> VectorStep[np.ndarray]:
    """A copy of a step: the environments may overwrite theirs."""
    return VectorStep(
        _array(step.obs),
        _array(step.rewards),
        _array(step.terminated),
        _array(step.truncated),
        _array(step.done),
        _array(step.begins),
        _array_or_none(step.final_obs),
        _array_or_none(step.valid),
        _array_or_none(step.restarted),
        _array_or_none(step.action_mask),
    )


def _array(x: Tensor) -> np.ndarray:
    return np.array(x.cpu())


def _array_or_none(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else _array(x)
