"""Collection: steps a vector environment under a policy and writes down what happened, row by row."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pg_lightning.data.rows import DeviceRows, HostRows
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.contract import Environments
from pg_lightning.errors import UserError
from pg_lightning.rollout import Actor, Rollout


class RolloutCollector:
    """Collects rollouts of `num_steps` rows; the environments keep running from one rollout to the next.

    With whole episodes, every environment starts afresh instead and plays until an episode of its own ends at or after
    `num_steps` rows. Every episode that is begun is in the rollout to its end, long or short: to leave out those that
    take longer would favour short ones. An environment that is done waits for the others in rows that are not valid.

    Where the vector environment had to replace an environment in a step, that row is not valid: what its action led to
    is not known. The row before ends a truncated episode, whose final observation is the one that was acted on, and
    whose return is not among `episode_returns`.

    Args:
        env: a Gymnasium vector environment with array observations, in any autoreset mode, or what fulfils
            `envs.contract.Environments`. Where its tensors are on a device, so is the rollout.
        num_steps: rows T per rollout; with whole episodes the least.
        seeds: of the environments, one each, or one for an environment that draws all its copies from one stream.
        action_seed: of the noise that actions are sampled with.
        whole_episodes: as said above.
        max_episode_steps: where a rollout of whole episodes is given up, since one has no end.

    Attributes:
        env: the environments behind the contract.
        is_given_up: a rollout was begun that nobody learns from: the environments are not where the policy is.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any] | Environments,
        num_steps: int,
        seeds: list[int] | int,
        action_seed: int,
        whole_episodes: bool = False,
        max_episode_steps: int = 50_000,
    ) -> None:
        self.env = environments(env)
        self.num_steps = num_steps
        self.whole_episodes = whole_episodes
        self.max_episode_steps = max_episode_steps
        self.is_given_up = False
        self._seeds = seeds
        self._action_seed = action_seed
        self._generator: torch.Generator | None = None
        self._generator_state: tuple[str, Tensor] | None = None
        self._state: Tensor | None = None
        rows = HostRows if self.env.capabilities.device is None else DeviceRows
        self.rows: HostRows | DeviceRows = rows(self.env, num_steps, whole_episodes)
        self._reset(seeds)

    def collect(self, actor: Actor) -> Rollout:
        """One rollout under `actor` as it is now.

        Raises:
            UserError: if an observation, a reward or an action is not finite, naming the environment and the step; if
                an episode that is to be played to its end has none.
        """
        generator, first_state = self._prepared(actor)
        policy_version, env, rows, state, T = actor.policy_version, self.env, self.rows, first_state, self.num_steps
        rows.begin()
        try:
            with actor.acting():
                while rows.t < T or (self.whole_episodes and rows.episodes.any_playing()):
                    if self.whole_episodes and rows.t >= self.max_episode_steps:
                        self._refuse_endless()
                    actions, state = actor.act(rows.now, generator, False, rows.mask, state)
                    rows.actions.append(actions)
                    step = env.step(actor.env_actions(actions))
                    rows.add(step)
                    if state is not None:
                        state = rows.cleared(state, step.begins)
        except Exception:
            rows.check()
            raise
        rollout = rows.rollout(policy_version, first_state, env.restarts if env.capabilities.supervises else None)
        self._state = state
        env.trim(rows.episodes.lengths)
        if self.whole_episodes:
            self._reset()
        return rollout

    def _prepared(self, actor: Actor) -> tuple[torch.Generator, Tensor | None]:
        """The generator and the memory that the rollout begins with, on the device of the actor."""
        if self._generator is None or self._generator.device != actor.device:
            self._generator = self._new_generator(actor.device)
        if self._state is None:
            self._state = actor.initial_state(self.env.num_envs)
        elif self._state.device != actor.device:
            self._state = self._state.to(actor.device)
        return self._generator, self._state

    def _refuse_endless(self) -> None:
        if (longest := self.rows.episodes.longest()) >= self.max_episode_steps:
            raise UserError(
                f"data.whole_episodes: an episode has not ended after {longest} steps; "
                "give the environment a time limit, data.env_kwargs {max_episode_steps: ...}"
            )

    def _reset(self, seeds: list[int] | int | None = None) -> None:
        self._state = None
        self.rows.show(*self.env.reset(seeds))

    def state_dict(self) -> dict[str, Any]:
        """Where everything stands between two rollouts, in plain types and tensors."""
        generator, rows = self._generator_state, self.rows
        if self._generator is not None:
            generator = (self._generator.device.type, self._generator.get_state())
        episodes = rows.episodes.state_dict()
        return {
            **self.env.state_dict(episodes["lengths"]),
            **episodes,
            "obs": rows.now.cpu().clone(),
            "action_mask": None if rows.mask is None else rows.mask.cpu().clone(),
            "memory": None if self._state is None else self._state.cpu().clone(),
            "generator": generator,
        }

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Puts the environments, just reset, and all else where they stood.

        Returns:
            Nothing, or why the environments could not be put there; then they begin episodes from the seeds of now.
        """
        reason = self.env.load_state_dict(state, state["obs"], state["returns"], state["lengths"])
        if reason:
            self._reset(self._seeds)
            return reason
        self.rows.restore(state)
        self._state, self._generator_state = state["memory"], state["generator"]
        return ""

    def _new_generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device).manual_seed(self._action_seed)
        if self._generator_state is not None and self._generator_state[0] == device.type:
            generator.set_state(self._generator_state[1])
        return generator

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()
