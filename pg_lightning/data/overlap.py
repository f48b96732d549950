"""Overlap: a forked process plays the next rollout while the Trainer learns from the last."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor

from pg_lightning import signals
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.errors import UserError
from pg_lightning.processes import GRACE, WorkerError, cause_of_death, die_with, signals_held
from pg_lightning.rollout import Actor, Rollout
from pg_lightning.signals import SIGNALS


class CollectorProcess:
    """A `RolloutCollector` in a process of its own, one rollout ahead.

    Whoever asks for a rollout gets the one that the process has played, and the process plays the next with the weights
    of now. So the first rollout is of the weights of the first call, the second too, and from then on each is of the
    weights of the call before. A rollout brings the log-probabilities under the policy that acted.

    The process acts on a CPU, on weights in shared memory that are written only while it waits. Rollouts come through a
    pipe, so that none is overwritten: for 8 x 128 rows of CartPole that takes 0.1 ms, where an update takes 40.

    Args:
        make_collector: called in the process; the environments live there.

    Attributes:
        is_given_up: a rollout was asked for that nobody learns from: the environments are not where the policy is.
    """

    def __init__(self, make_collector: Callable[[], RolloutCollector]) -> None:
        self._make_collector = make_collector
        self._weights: list[Tensor] = []
        self._ahead: Rollout | None = None
        self._failure: UserError | WorkerError | None = None
        self._process: BaseProcess | None = None
        self.is_given_up = False

    def collect(self, actor: Actor) -> Rollout:
        """The rollout under way, when it is done; the next begins, under `actor` as it is now.

        Raises:
            UserError: if the collector raised it.
            WorkerError: if it raised that or anything else, or the process died.
        """
        if self._failure is not None:
            raise self._failure
        if self._process is None:
            self._start(actor)
            self._play(actor)
        rollout, self._ahead = self._ahead or _unpacked(self._receive()), None
        self._play(actor)
        return rollout

    def state_dict(self) -> dict[str, Any] | None:
        """The rollout under way, which is of weights that are no more, and where the collector stands after it; None
        before the first, where that rollout fails, which whoever asks for it is told, and where a signal leaves no time
        to wait for it."""
        if self._process is None or self._failure is not None:
            return None
        if self._ahead is None and not self._comes_soon():
            self.is_given_up = True
            return None
        try:
            self._ahead = self._ahead or _unpacked(self._receive())
            return {"ahead": vars(self._ahead), "collector": self._asked("state_dict")}
        except (UserError, WorkerError) as error:
            self._failure = error
            return None

    def load_state_dict(self, state: dict[str, Any] | None, actor: Actor) -> str:
        """Starts the process from that state; returns nothing, or why its environments could not be put there."""
        if state is None:
            return "it had not begun"
        self._start(actor)
        reason: str = self._asked("load_state_dict", state["collector"])
        if reason:
            self._play(actor)
        else:
            self._ahead = Rollout(**state["ahead"])
        return reason

    def close(self) -> None:
        """Ends the process, and with it the environments; the rollout under way is lost."""
        if self._process is not None:
            self._end()
            self._weights = []

    def _start(self, actor: Actor) -> None:
        # Copied before the fork: a forked process cannot use the GPU of its parent, not even to move weights off it.
        acting = copy(actor)
        acting.policy = deepcopy(actor.policy).to("cpu").share_memory()
        self._weights = _tensors(acting)
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self._work, args=(os.getpid(), theirs, acting))
        with signals_held():  # the process must not hear them before it has its own handlers
            self._process.start()
        theirs.close()
        # Also where nobody calls `close`: at the interpreter's end children are waited for.
        self._end = Finalize(self, _end, (self._process, self._pipe), exitpriority=1)

    def _play(self, actor: Actor) -> None:
        for shared, tensor in zip(self._weights, _tensors(actor), strict=True):
            shared.detach().copy_(tensor.detach())
        with suppress(OSError):  # a process that has died meanwhile is found out by who waits for its rollout
            self._pipe.send(actor.policy_version)

    def _asked(self, method: str, *arguments: Any) -> Any:
        """What a method of the collector returns, after the rollout under way."""
        with suppress(OSError):
            self._pipe.send((method, arguments))
        return self._receive()

    def _comes_soon(self) -> bool:
        assert self._process is not None
        while not self._pipe.poll(0.2) and self._process.is_alive():
            if not signals.may_wait():
                return False
        return True

    def _receive(self) -> Any:
        assert self._process is not None
        try:
            # Looks for the dead by itself: what the environments started may keep the pipe open.
            while not self._pipe.poll(0.2):
                if not self._process.is_alive() and not self._pipe.poll():
                    raise EOFError
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(GRACE)
            raise _error(cause_of_death(self._process.exitcode)) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _work(self, main: int, pipe: Connection, actor: Actor) -> None:
        """What the process does: all of its life is here."""
        die_with(main)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # It may have gone to the whole group: then the main process decides. Not ignored, which programs that an
        # environment starts would inherit.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: with more than one, operations can hang
        self._pipe.close()
        collector = None
        try:
            collector = self._make_collector()
            while (message := pipe.recv()) is not None:
                if isinstance(message, tuple):
                    method, arguments = message
                    pipe.send(getattr(collector, method)(*arguments))
                    continue
                rollout = collector.collect(actor)
                pipe.send(_packed(replace(rollout, policy_version=message, log_probs=actor.log_probs(rollout))))
        except (UserError, WorkerError) as error:
            pipe.send(error)
        except Exception:
            with suppress(OSError):
                pipe.send(_error(f"failed:\n\n{traceback.format_exc()}"))
        finally:
            if collector is not None:
                collector.close()


def _end(process: BaseProcess, pipe: Connection) -> None:
    """Lets the process close its environments after the rollout under way, if that does not take long."""
    deadline = time.monotonic() + GRACE
    with signals_held():  # a second Ctrl-C waits until no process is left
        with suppress(OSError):
            pipe.send(None)
            while process.is_alive() and time.monotonic() < deadline:
                # Read, and be it half a message, so that it can end its sending.
                if pipe.poll(0.05) and not os.read(pipe.fileno(), 1 << 16):
                    break
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
        pipe.close()


def _error(cause: str) -> WorkerError:
    return WorkerError(f"data.overlap: the process that plays the rollouts {cause}")


def _tensors(actor: Actor) -> list[Tensor]:
    return [*actor.policy.parameters(), *actor.policy.buffers()]


def _packed(rollout: Rollout) -> dict[str, Any]:
    """The bytes of each tensor as an array, with the dtype: pickled tensors take ten times as long."""
    values = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    return {
        name: (value.view(torch.uint8).numpy(), value.dtype) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _unpacked(values: dict[str, Any]) -> Rollout:
    for name, value in values.items():
        if isinstance(value, tuple):
            array, dtype = value
            values[name] = torch.from_numpy(array).view(dtype)
    return Rollout(**values)
