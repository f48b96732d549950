"""Environments in one process each, under supervision: a process that dies or hangs is replaced."""

from __future__ import annotations

import logging
import pickle
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pg_lightning.envs import failures
from pg_lightning.envs.backends.env_worker import Rows, serve, shared_zeros
from pg_lightning.envs.contract import RESTARTED, Capabilities, Info, SingleReset
from pg_lightning.envs.seeds import env_seed
from pg_lightning.errors import UserError
from pg_lightning.processes import (
    LIVENESS_POLL_S,
    SHUTDOWN_GRACE_S,
    ForkedWorker,
    WorkerError,
    ended_with,
    left_to_parent,
    require_fork,
    signals_held,
)
from pg_lightning.processes.signals import SIGNALS

STEP = pickle.dumps(("step",))

log = logging.getLogger(__name__)


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments, each in its own forked process, with array observations in shared memory.

    A process that dies, raises, or does not answer in time is killed and replaced by one that starts a new episode
    with its own seed. In that step the environment has reward 0 and neither terminates nor truncates; its
    observation is the first of the new episode, and `infos[RESTARTED]` is set. The caller must not treat the step as a
    transition.

    Only the action masks are gathered from the infos. The arrays that `step` and `reset` return are overwritten by the
    next call; a final observation is a copy.

    Args:
        make: makes one environment; called in each process, and once here, for the spaces.
        num_envs: N.
        autoreset_mode: when a finished episode is reset.
        timeout: seconds that an answer may take; for the first reset, including the start of the process. Time in which
            the whole program was suspended does not count.
        max_restarts: number of replacements after which the next failure ends the run.

    Attributes:
        restarts: number of replacements so far.

    Raises:
        UserError: if the system cannot fork; by the first `reset`, if it fails in every process; by `reset` and `step`,
            if an environment returns anything else than its spaces and Gymnasium's interface promise.
        WorkerError: by `reset` and `step`, if more than `max_restarts` processes fail. No process is left then.
    """

    capabilities = Capabilities(seeds="per_env", can_save_state="by_replay", can_reset_some=True, supervises=True)

    def __init__(
        self,
        make: Callable[[], gym.Env],
        num_envs: int,
        autoreset_mode: AutoresetMode,
        timeout: float = 60.0,
        max_restarts: int = 100,
    ) -> None:
        require_fork("data.backend: async forks processes", "set it to sync")
        env = make()
        self.num_envs = num_envs
        self.metadata = {**env.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = env.render_mode
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        failures.close(env, limit_s=timeout)
        self.timeout = timeout
        self.max_restarts = max_restarts
        self.restarts = 0
        self._make = make
        self._mode = autoreset_mode
        self._rows = Rows(
            shared_zeros(num_envs, self.single_action_space.shape, self.single_action_space.dtype),
            shared_zeros(num_envs, self.single_observation_space.shape, self.single_observation_space.dtype),
            shared_zeros(num_envs, self.single_observation_space.shape, self.single_observation_space.dtype),
            *(shared_zeros(num_envs, (), dtype) for dtype in (np.float64, np.bool_, np.bool_)),
        )
        self._seeds: list[int | None] = [None] * num_envs
        self._has_started = False
        self._workers: list[ForkedWorker] = []
        self._end = ended_with(self, self._workers)
        for n in range(num_envs):
            self._start(n)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each environment."""
        return tuple(worker.pid for worker in self._workers)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None) -> SingleReset:
        """As in Gymnasium: all environments, or those of `options["reset_mask"]`, `[N]` bool."""
        options = dict(options or {})
        chosen = np.flatnonzero(options.pop("reset_mask", np.ones(self.num_envs, bool))).tolist()
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + n for n in range(self.num_envs)]
        for n in chosen:
            self._seeds[n] = self._seeds[n] if seed[n] is None else seed[n]
        infos, broken = self._ask({n: _message("reset", seed[n], options or None) for n in chosen})
        if not self._has_started and len(broken) == self.num_envs:
            self.close()
            raise UserError(f"data.env_id: no environment can be reset: {broken[0]}")
        self._has_started = True
        infos |= self._replace(broken)
        return self._rows.obs, self._gathered(infos)

    def step(self, actions: Any) -> tuple[Any, ...]:
        """As in Gymnasium; for replaced environments, see the class."""
        rows = self._rows
        rows.actions[...] = actions
        answers, broken = self._ask(dict.fromkeys(range(self.num_envs), STEP))
        if broken:
            answers |= self._replace(broken)
            for array in (rows.rewards, rows.terminated, rows.truncated):
                array[list(broken)] = 0
        infos = self._gathered(answers)
        if self._mode == AutoresetMode.SAME_STEP:
            for n in np.flatnonzero(rows.terminated | rows.truncated).tolist():
                infos = self._add_info(infos, {"final_obs": rows.final_obs[n].copy()}, n)
        if broken:
            infos[RESTARTED] = np.isin(np.arange(self.num_envs), list(broken))
        return rows.obs, rows.rewards, rows.terminated, rows.truncated, infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method of each environment, or returns an attribute.

        Raises:
            WorkerError: if an environment does not answer. It is replaced by the next `step`.
        """
        answers, broken = self._ask(dict.fromkeys(range(self.num_envs), _message("call", name, args, kwargs)))
        for cause in broken.values():
            raise WorkerError(f"data.backend async: {name}: {cause}")
        return tuple(answers[n] for n in range(self.num_envs))

    def set_attr(self, name: str, values: object) -> None:
        """Sets an attribute of each environment, from a list, or one value for all.

        Raises:
            WorkerError: if an environment fails. It is replaced by the next `step`.
        """
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        _, broken = self._ask({n: _message("set_attr", name, value) for n, value in enumerate(values)})
        for cause in broken.values():
            raise WorkerError(f"data.backend async: {name}: {cause}")

    def close_extras(self, **kwargs: object) -> None:
        """Lets every environment close itself within a short time, and ends its process."""
        self._end()

    def _start(self, n: int) -> None:
        with signals_held():  # until the worker is stored where `close` finds it
            worker = ForkedWorker(
                partial(serve, self._make, self._rows.of(n), self._mode, n),
                name=f"env {n}",
                handlers=dict.fromkeys(SIGNALS, left_to_parent),
                farewell=("close",),
                leads_group=True,
                siblings=self._workers,
            )
            self._workers[n : n + 1] = [worker]

    def _replace(self, broken: dict[int, str]) -> dict[int, Any]:
        """Starts new processes for those that failed, each with a new episode; returns the infos of their resets."""
        infos: dict[int, Any] = {}
        while broken:
            for n, cause in broken.items():
                if self.restarts == self.max_restarts:
                    self.close()
                    raise WorkerError(
                        f"data.max_env_restarts: environments have failed more than {self.max_restarts} times, "
                        f"the last: {cause}"
                    )
                self.restarts += 1
                log.warning(
                    f"data.backend async: {cause}; its episode is truncated and a new process starts another "
                    f"(restart {self.restarts} of at most {self.max_restarts})"
                )
                self._workers[n].pipe.close()
                self._start(n)
            answers, broken = self._ask({n: _message("reset", self._fresh_seed(n), None) for n in broken})
            infos |= answers
        return infos

    def _fresh_seed(self, n: int) -> int | None:
        seed = self._seeds[n]
        return None if seed is None else env_seed(seed, self.restarts, n)

    def _ask(self, messages: dict[int, bytes]) -> tuple[dict[int, Any], dict[int, str]]:
        """The answers of the environments, and the causes of missing answers; the processes of the latter are ended."""
        poller = select.poll()
        waiting: dict[int, int] = {}
        for n, message in messages.items():
            pipe = self._workers[n].pipe
            with suppress(BrokenPipeError, ConnectionResetError):  # detected when the answer is awaited
                pipe.send_bytes(message)
            poller.register(pipe, select.POLLIN)
            waiting[pipe.fileno()] = n
        answers: dict[int, Any] = {}
        broken: dict[int, str] = {}
        refused: dict[int, UserError] = {}
        left = self.timeout
        while waiting:
            pause = min(left, LIVENESS_POLL_S)
            ready = [file for file, _ in poller.poll(1000 * pause)]
            for file in ready:
                poller.unregister(file)
                n = waiting.pop(file)
                worker = self._workers[n]
                try:
                    is_well, answer = worker.pipe.recv()
                    if isinstance(answer, UserError):
                        refused[n] = answer
                    if not is_well:
                        worker.wait_until(time.monotonic() + SHUTDOWN_GRACE_S)  # it may be closing its environment
                        worker.kill()
                except (EOFError, OSError):
                    worker.kill()
                    is_well, answer = False, worker.cause_of_death()
                (answers if is_well else broken)[n] = answer
            if not ready:
                # Not by the clock: after the program was suspended for an hour, its processes must not count as late.
                left -= pause
                if left <= 0:
                    for n in waiting.values():
                        broken[n] = f"did not answer within data.env_timeout, {self.timeout:g} s"
                        self._workers[n].kill()
                    break
        if refused:
            self.close()
            raise refused[min(refused)]
        return answers, {n: f"env {n} (process {self._workers[n].pid}) {broken[n]}" for n in sorted(broken)}

    def _gathered(self, answers: dict[int, Any]) -> Info:
        infos: Info = {}
        for n in sorted(answers):
            if answers[n]:
                infos = self._add_info(infos, answers[n], n)
        return infos


def _message(*command: object) -> bytes:
    return pickle.dumps(command)
