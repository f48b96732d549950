"""Collection: steps a vector environment with a policy and records the transitions, row by row."""

from __future__ import annotations

from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.data.device_rows import DeviceRows
from pg_lightning.data.game_rows import GameRows
from pg_lightning.data.host_rows import HostRows
from pg_lightning.data.program import RolloutProgram, make_program
from pg_lightning.envs.autoreset import environments
from pg_lightning.envs.contract import Environments, GameEnvironments
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout


class RolloutCollector:
    """Collects rollouts of `num_steps` rows; the environments keep running from one rollout to the next.

    With whole episodes, every environment is reset first and plays until one of its episodes ends at or after
    `num_steps` rows. Every started episode is completed and included, short or long: leaving out those that
    take longer would favour short ones. A finished environment waits for the others in invalid rows.

    If the vector environment had to replace an environment in a step, that row is invalid, because the result of its
    action is unknown. The row before ends a truncated episode; its final observation is the last one that was acted on,
    and its return is not in `episode_returns`.

    Args:
        env: a Gymnasium vector environment with array observations, in any autoreset mode, or an object that implements
            `envs.contract.Environments`. The rollout is on the device of its tensors.
        num_steps: rows T per rollout; the minimum with whole episodes.
        seeds: of the environments, one each, or one for an environment with a single random stream.
        action_seed: seed of the noise of sampled actions.
        whole_episodes: whether rollouts consist of whole episodes.
        max_episode_steps: limit after which a rollout of whole episodes fails, because an episode does not end.
        double: whether the policy computes in float64. Then observations that need it are kept in float64, on the host.

    Attributes:
        env: the environments as `Environments`.
        is_given_up: collection was aborted mid-rollout; the environment state is ahead of the policy and must not be
            saved in a checkpoint.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any] | Environments,
        num_steps: int,
        seeds: list[int] | int,
        action_seed: int,
        whole_episodes: bool = False,
        max_episode_steps: int = 50_000,
        double: bool = False,
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
        self.rows: HostRows | DeviceRows
        if self.env.capabilities.num_both:
            self.rows = GameRows(self.env, num_steps, whole_episodes, double)
        elif self.env.capabilities.device is None:
            self.rows = HostRows(self.env, num_steps, whole_episodes, double)
        else:
            self.rows = DeviceRows(self.env, num_steps, whole_episodes)
        self._programmed: Actor | None = None
        self._program: RolloutProgram | None = None
        self._reset(seeds)

    def collect(self, actor: Actor) -> Rollout:
        """One rollout with the current `actor`.

        Raises:
            UserError: if an observation, a reward or an action is not finite, naming the environment and the step; if
                an episode that must be completed does not end.
        """
        if self.env.capabilities.follows_policy:
            cast(GameEnvironments, self.env).follow(actor)
        generator, first_state = self._prepared(actor)
        policy_version, env, rows, state, T = actor.policy_version, self.env, self.rows, first_state, self.num_steps
        rows.begin()
        try:
            with actor.acting():
                program = self._compiled(actor)
                if program is not None:
                    state = program.play(generator, state)
                while rows.t < T or (self.whole_episodes and rows.episodes.any_playing()):
                    if self.whole_episodes and rows.t >= self.max_episode_steps:
                        self._refuse_endless()
                    own = state if state is None else rows.on_turn(state)
                    actions, own = actor.act(rows.now, generator, False, rows.mask, own)
                    rows.actions.append(actions)
                    step = env.step(actor.env_actions(actions))
                    rows.add(step)
                    if state is not None and own is not None:
                        state = rows.carried(state, own, step.begins)
        except Exception:
            rows.check()
            raise
        rollout = rows.rollout(policy_version, first_state, env.restarts if env.capabilities.supervises else None)
        self._state = state
        env.trim(rows.episodes.lengths)
        if self.whole_episodes:
            self._reset()
        return rollout

    def _compiled(self, actor: Actor) -> RolloutProgram | None:
        """The program that plays a rollout, if there can be one."""
        if self._programmed is not actor:
            self._programmed, self._program = actor, None
            if isinstance(self.rows, DeviceRows) and self.rows.mask is None and not self.whole_episodes:
                self._program = make_program(self.env, actor, self.rows, self.num_steps, self._state)
        return self._program

    def _prepared(self, actor: Actor) -> tuple[torch.Generator, Tensor | None]:
        """The generator and the recurrent state at the start of the rollout, on the device of the actor."""
        if self._generator is None or self._generator.device != actor.device:
            self._generator = self._new_generator(actor.device)
        if self._state is None:
            self._state = actor.initial_state(self.rows.num_columns)
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
        """The state between two rollouts, in plain types and tensors."""
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
        """Restores the environments, which were just reset, and all other state.

        Returns:
            An empty string, or the reason for failure; then the environments start episodes with the current seeds.
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
