"""Environments in a process each, under supervision: one that dies or hangs is replaced, and the others go on."""

from __future__ import annotations

import logging
import math
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pg_lightning.envs.contract import READ, RESTARTED, Capabilities
from pg_lightning.envs.seeds import env_seed
from pg_lightning.errors import UserError
from pg_lightning.processes import GRACE, WorkerError, cause_of_death, die_with, signals_held
from pg_lightning.signals import SIGNALS

STEP, CLOSE = (pickle.dumps((name,)) for name in ("step", "close"))
PATIENCE = 0.2  # seconds between two looks at the time that is left

log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """One row for each environment, in memory that all processes see; in a worker, its own row."""

    actions: Any
    obs: Any
    final_obs: Any
    rewards: Any
    terminated: Any
    truncated: Any

    def of(self, n: int) -> Rows:
        """Row n of each, still an array where it is a single number."""
        return Rows(*(array[n : n + 1].reshape(array.shape[1:]) for array in self))


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments, each in a forked process of its own, with array observations in shared memory.

    A process that dies, raises, or gives no answer in time is killed and replaced by one that begins a fresh episode
    from a seed of its own. In the step in which that happens the environment has reward 0 and ends nothing; its
    observation is the first of the new episode, and `infos[RESTARTED]` says so. Whoever records the step must not
    learn from it.

    Of the infos only `READ` is gathered. The arrays that `step` and `reset` return are written anew by the next call; a
    final observation is a copy.

    Args:
        make: makes one environment; called in each process, and once here, for the spaces.
        num_envs: N.
        autoreset_mode: when an ended episode restarts.
        timeout: seconds that an answer may take, to the first reset with the start of the process. Time in which
            everything was suspended does not count.
        max_restarts: how many processes are replaced before the run is given up.

    Attributes:
        restarts: how many have been replaced.

    Raises:
        UserError: if the system cannot fork; by the first `reset`, if it fails in every process.
        WorkerError: by `reset` and `step`, if one more process than `max_restarts` fails. No process is left then.
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
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UserError("data.backend: async forks processes, which this system cannot; set it to sync")
        env = make()
        self.num_envs = num_envs
        self.metadata = {**env.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = env.render_mode
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        env.close()
        self.timeout = timeout
        self.max_restarts = max_restarts
        self.restarts = 0
        self._make = make
        self._mode = autoreset_mode
        self._rows = Rows(
            _shared(num_envs, self.single_action_space.shape, self.single_action_space.dtype),
            _shared(num_envs, self.single_observation_space.shape, self.single_observation_space.dtype),
            _shared(num_envs, self.single_observation_space.shape, self.single_observation_space.dtype),
            *(_shared(num_envs, (), dtype) for dtype in (np.float64, np.bool_, np.bool_)),
        )
        self._seeds: list[int | None] = [None] * num_envs
        self._has_started = False
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Also where nobody calls `close`: at the interpreter's end children are waited for.
        self._end = Finalize(self, _end, (self._processes, self._pipes), exitpriority=1)
        for n in range(num_envs):
            self._start(n)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As Gymnasium's: all environments, or those of `options["reset_mask"]`, `[N]` bool."""
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
        """As Gymnasium's; what is said of an environment that had to be replaced, see the class."""
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
        """What a method of each environment returns, or an attribute.

        Raises:
            WorkerError: if an environment gives none. It is replaced by the next `step`.
        """
        answers, broken = self._ask(dict.fromkeys(range(self.num_envs), _message("call", name, args, kwargs)))
        for cause in broken.values():
            raise WorkerError(f"data.backend async: {name}: {cause}")
        return tuple(answers[n] for n in range(self.num_envs))

    def set_attr(self, name: str, values: Any) -> None:
        """Gives each environment an attribute of its own, from a list, or all the same.

        Raises:
            WorkerError: if an environment does not take it. It is replaced by the next `step`.
        """
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        _, broken = self._ask({n: _message("set_attr", name, value) for n, value in enumerate(values)})
        for cause in broken.values():
            raise WorkerError(f"data.backend async: {name}: {cause}")

    def close_extras(self, **kwargs: Any) -> None:
        """Lets every environment close itself, if that does not take long, and ends its process."""
        self._end()

    def _start(self, n: int) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self._pipes[n : n + 1] = [ours]
        work = (os.getpid(), theirs, self._pipes, self._make, self._rows.of(n), self._mode)
        process = context.Process(target=_work, args=work, name=f"env {n}")
        with signals_held():  # the process must not hear them before it has its own handlers
            process.start()
        theirs.close()
        self._processes[n : n + 1] = [process]

    def _replace(self, broken: dict[int, str]) -> dict[int, Any]:
        """New processes for those that broke, each in a new episode; what they say of it."""
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
                    f"data.backend async: {cause}; its episode is cut and a new process begins another "
                    f"(restart {self.restarts} of at most {self.max_restarts})"
                )
                self._pipes[n].close()
                self._start(n)
            answers, broken = self._ask({n: _message("reset", self._fresh_seed(n), None) for n in broken})
            infos |= answers
        return infos

    def _fresh_seed(self, n: int) -> int | None:
        seed = self._seeds[n]
        return None if seed is None else env_seed(seed, self.restarts, n)

    def _ask(self, messages: dict[int, bytes]) -> tuple[dict[int, Any], dict[int, str]]:
        """The answers of the environments, and the causes for which there are none; those processes are ended."""
        poller = select.poll()
        waiting: dict[int, int] = {}
        for n, message in messages.items():
            pipe = self._pipes[n]
            with suppress(BrokenPipeError, ConnectionResetError):  # found out by who waits for the answer
                pipe.send_bytes(message)
            poller.register(pipe, select.POLLIN)
            waiting[pipe.fileno()] = n
        answers: dict[int, Any] = {}
        broken: dict[int, str] = {}
        left = self.timeout
        while waiting:
            pause = min(left, PATIENCE)
            ready = [file for file, _ in poller.poll(1000 * pause)]
            for file in ready:
                poller.unregister(file)
                n = waiting.pop(file)
                try:
                    is_well, answer = self._pipes[n].recv()
                except (EOFError, OSError):
                    _kill(self._processes[n])
                    is_well, answer = False, cause_of_death(self._processes[n].exitcode)
                if not is_well:
                    wait([self._processes[n].sentinel], GRACE)  # it may be closing its environment
                    _kill(self._processes[n])
                (answers if is_well else broken)[n] = answer
            if not ready:
                # Not by the clock: a program that was stopped for an hour must not find all its processes late.
                left -= pause
                if left <= 0:
                    for n in waiting.values():
                        broken[n] = f"gave no answer within data.env_timeout, {self.timeout:g} s"
                        _kill(self._processes[n])
                    break
        return answers, {n: f"env {n} (process {self._processes[n].pid}) {broken[n]}" for n in sorted(broken)}

    def _gathered(self, answers: dict[int, Any]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for n in sorted(answers):
            if answers[n]:
                infos = self._add_info(infos, answers[n], n)
        return infos


class Worker:
    """What the process of an environment does with it.

    Args:
        env: the environment.
        row: its own of the shared rows.
        mode: when it restarts.
    """

    def __init__(self, env: gym.Env, row: Rows, mode: AutoresetMode) -> None:
        self.env = env
        self.row = row
        self.mode = mode
        self.has_ended = False
        # Python's integers: environments check that an action is one, and NumPy's take ten times as long to check.
        self.action = row.actions.item if isinstance(env.action_space, gym.spaces.Discrete) else row.actions.copy

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> dict[str, Any]:
        """Begins an episode; returns what is read of its infos."""
        self.row.obs[...], info = self.env.reset(seed=seed, options=options)
        self.has_ended = False
        return _read(info)

    def step(self) -> dict[str, Any]:
        """Takes the action that is in the row, or restarts where the mode says so."""
        row = self.row
        if self.has_ended and self.mode == AutoresetMode.NEXT_STEP:
            row.rewards[...], row.terminated[...], row.truncated[...] = 0.0, False, False
            return self.reset(None, None)
        obs, row.rewards[...], terminated, truncated, info = self.env.step(self.action())
        row.terminated[...], row.truncated[...] = terminated, truncated
        self.has_ended = bool(terminated or truncated)
        if self.has_ended and self.mode == AutoresetMode.SAME_STEP:
            row.final_obs[...] = obs
            return self.reset(None, None)
        row.obs[...] = obs
        return _read(info)

    def set_attr(self, name: str, value: Any) -> None:
        """Gives the environment an attribute."""
        setattr(self.env, name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a method of the environment or of a wrapper returns, or an attribute."""
        found = self.env.get_wrapper_attr(name)
        return found(*args, **kwargs) if callable(found) else found


def _work(
    main: int,
    pipe: Connection,
    of_main: list[Connection],
    make: Callable[[], gym.Env],
    row: Rows,
    mode: AutoresetMode,
) -> None:
    """All of a process's life. The main process alone decides when it ends."""
    if sys.platform == "linux":
        os.setpgid(0, 0)  # so that what the environment starts can be killed with it
    die_with(main)
    for number in SIGNALS:  # not ignored, which programs that an environment starts would inherit
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: with more than one, operations can hang
    for ours in of_main:
        ours.close()
    env = None
    try:
        env = make()
        worker = Worker(env, row, mode)
        while (command := pipe.recv())[0] != "close":
            pipe.send((True, getattr(worker, command[0])(*command[1:])))
    except BaseException as error:  # an environment may call sys.exit
        with suppress(OSError):
            pipe.send((False, _cause(error)))
    finally:
        if env is not None:
            env.close()


def _end(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    deadline = time.monotonic() + GRACE
    with signals_held():  # a second Ctrl-C waits until no process is left
        for pipe in pipes:
            with suppress(OSError):
                pipe.send_bytes(CLOSE)
        for process in processes:
            wait([process.sentinel], max(0.0, deadline - time.monotonic()))
        for process in processes:
            _kill(process)
        for pipe in pipes:
            pipe.close()


def _kill(process: BaseProcess) -> None:
    """Ends a process at once, and all that it has started."""
    if sys.platform == "linux" and process.pid is not None:
        with suppress(ChildProcessError, ProcessLookupError):
            # Until a process has been waited for, its id is nobody else's.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(GRACE)


def _message(*command: Any) -> bytes:
    return pickle.dumps(command)


def _shared(num_envs: int, shape: Iterable[int] | None, dtype: Any) -> np.ndarray:
    """`[N, *shape]` zeros that forked processes share."""
    shape, dtype = (num_envs, *(shape or ())), np.dtype(dtype)
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype, count).reshape(shape)


def _read(info: dict[str, Any]) -> dict[str, Any]:
    return {key: info[key] for key in READ if key in info}


def _cause(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())
    return f"raised {type(error).__name__}{f': {what}' if what else ''} ({place.filename}:{place.lineno})"
