"""Several steps of policy and environments as one compiled call, if a step of the environments is a pure function."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.data.device_rows import DeviceRows, PlayedRows, row_of
from pg_lightning.data.episodes import DeviceEpisodes
from pg_lightning.envs.contract import Carry, Environments, PureEnvironments
from pg_lightning.errors import one_line
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.learning.compiled import compiled
from pg_lightning.learning.direct import Direct, Results
from pg_lightning.policies import ActorCritic, NoiseDistribution

NUM_COLUMNS = len(PlayedRows._fields)
MAX_STEPS = 8  # of a call: with more, compilation takes longer and a step is hardly faster


class RolloutProgram:
    """Plays T steps, or most of them, in compiled calls of several; the noise of all is drawn at once.

    On a CPU these are the random numbers of single steps with more than 64 environments, and for Gaussian noise if a
    step has a multiple of 16 numbers; else others of the same distribution.

    Args:
        env: the environments.
        actor: the policy, on their device.
        rows: to which the steps are added.
        num_steps: T.
        pi: any distribution of the policy for N observations.
    """

    def __init__(
        self, env: PureEnvironments, actor: PolicyActor, rows: DeviceRows, num_steps: int, pi: NoiseDistribution
    ) -> None:
        self._env, self._rows = env, rows
        divisor = max(k for k in range(1, MAX_STEPS + 1) if num_steps % k == 0)
        self._per_call = divisor if divisor >= MAX_STEPS // 2 else min(MAX_STEPS, num_steps)
        self._calls = num_steps // self._per_call
        self._noise_like, self._fill = (
            pi.noise_like.new_empty(self._calls, self._per_call, *pi.noise_like.shape),
            pi.fill_,
        )
        self._steps = Direct(compiled(steps_of(env, actor, self._per_call), rows.device), rows.device)

    @torch.inference_mode(False)  # its tensors would need a compilation of their own
    @torch.no_grad()
    def compile(self, state: Tensor | None) -> None:
        """Compiles the steps, without any effect on environments and random numbers."""
        noise, env_noise = torch.ones_like(self._noise_like[0]), self._env.noise_like(self._per_call).zero_()
        arguments = noise, env_noise, *self._state(state)
        self._steps.checked(arguments, *arguments)

    @torch.inference_mode(False)
    @torch.no_grad()
    def play(self, generator: torch.Generator, state: Tensor | None) -> Tensor | None:
        """Adds T rows, or fewer if calls of equal size do not fit; the others must be single steps.

        Args:
            generator: of the noise of actions.
            state: `[N, S]` recurrent state before the rows.

        Returns:
            The recurrent state after them.
        """
        rows, env = self._rows, self._env
        noise = self._fill(torch.empty_like(self._noise_like), generator).unbind()
        env_noise = env.noise(self._calls * self._per_call).unflatten(0, (self._calls, self._per_call)).unbind()
        played, changing, call = [], self._state(state), self._steps.checked
        for own in zip(noise, env_noise, strict=True):
            arguments = *own, *changing
            results = tuple(call(arguments, *arguments).values())
            played.append(results[:NUM_COLUMNS])
            changing = results[0][-1], *results[NUM_COLUMNS:]
            call = self._steps.again
        rows.extend(PlayedRows(*map(torch.cat, zip(*played, strict=True))), *changing[1:3])
        num_carried = len(env.carry)
        env.carry = changing[3 : 3 + num_carried]
        return None if state is None else changing[-1]

    def _state(self, state: Tensor | None) -> tuple[Tensor, ...]:
        """The arguments of `steps_of` after the noise."""
        rows, env = self._rows, self._env
        tensors = rows.now, *rows.episodes[:2], *env.carry, *([] if state is None else [state])
        return tuple(map(_ordinary, tensors))


def steps_of(env: PureEnvironments, actor: PolicyActor, num_steps: int) -> Callable[..., Results]:
    """Some steps as a pure function of noise, noise of the environments, observations, returns and lengths of the
    episodes, the parts of the carry, and a recurrent state if there is one.

    The function returns the columns of `PlayedRows`, and its arguments from the returns on, after the steps.
    """
    num_carried = len(env.carry)

    def steps(noise: Tensor, env_noise: Tensor, obs: Tensor, *rest: Tensor) -> Results:
        carry: Carry = rest[2 : 2 + num_carried]
        state = rest[-1] if len(rest) > 2 + num_carried else None
        episodes = DeviceEpisodes(rest[0], rest[1], torch.ones_like(rest[1], dtype=torch.bool))
        rows = []
        for t in range(num_steps):
            pi, state = actor.distribution(obs, state)
            actions = cast(NoiseDistribution, pi).sample_at(noise[t])
            carry, step = env.transition(carry, actor.env_actions(actions), env_noise[t])
            if step.valid is not None or step.restarted is not None:
                raise TypeError("the environments have steps that are no transitions")
            row, episodes = row_of(step, obs, episodes)
            obs = row.next_obs
            if state is not None:
                state = DeviceRows.cleared(state, step.begins)
            rows.append(PlayedRows.of(row, actions))
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        after = episodes.returns, episodes.lengths, *carry, *([] if state is None else [state])
        return {str(i): x for i, x in enumerate((*columns, *after))}

    return steps


def make_program(
    env: Environments, actor: Actor, rows: DeviceRows, num_steps: int, state: Tensor | None
) -> RolloutProgram | None:
    """The program, compiled; None if the actor does not compile, or the environments have no pure step.

    If only the compilation fails, says so in one line.
    """
    if not (isinstance(actor, PolicyActor) and actor.compiles and env.capabilities.is_pure):
        return None
    if actor.device != rows.device or env.capabilities.autoreset != "same_step":
        return None
    started = time.perf_counter()
    try:
        pi = actor.distribution(rows.now, state)[0]
        if type(actor.policy).sample is not ActorCritic.sample:
            raise TypeError(f"{type(actor.policy).__name__} samples in its own way")
        if not isinstance(pi, NoiseDistribution) or _definer(pi, "sample") is not _definer(pi, "sample_at"):
            raise TypeError(f"samples of a {type(pi).__name__} distribution are not a function of noise")
        program = RolloutProgram(cast(PureEnvironments, env), actor, rows, num_steps, pi)
        program.compile(state)
    except Exception as error:
        rank_zero_info(f"model.compile: the steps of a rollout are not compiled: {one_line(error)[:200]}")
        return None
    rank_zero_info(f"model.compile: compiled the steps of a rollout in {time.perf_counter() - started:.0f} s")
    return program


def _ordinary(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x


def _definer(x: object, name: str) -> type | None:
    """The class that defines a method of an object."""
    return next((part for part in type(x).__mro__ if name in vars(part)), None)
