"""The life cycle of a forked worker: start, messages, end, and the cause of its death."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import torch

from pg_lightning.errors import UserError, show_traceback
from pg_lightning.processes.generators import enter_process, key_of_fork
from pg_lightning.processes.signals import SIGNALS

SHUTDOWN_GRACE_S = 3.0  # for a process to end by itself before it is killed
LIVENESS_POLL_S = 0.2  # between two checks that a process lives, because its pipe and its sentinel may stay open
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class WorkerError(RuntimeError):
    """A forked process died, or raised an exception that is not a user error. The message names it and the cause."""


def require_fork(what: str, cure: str) -> None:
    """Checks that the system can fork; call it before anything is forked.

    Args:
        what: the option that needs it, and "forks …", as the beginning of the message.
        cure: the setting to use instead.

    Raises:
        UserError: if the system cannot fork.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(f"{what}, which this system does not support; {cure}")


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies, even by SIGKILL. Linux only.

    Args:
        parent: its process id. If it is already dead, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """Delays the signals that end a run until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cause_of_death(exitcode: int | None) -> str:
    """The cause of a premature end of a process, as the predicate of a sentence."""
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"exited with code {exitcode} before training ended"


def left_to_parent(*_: Any) -> None:
    """A signal handler that does nothing: the parent handles signals that go to the whole process group.

    SIG_IGN would be inherited by programs that the worker starts.
    """


class ForkedWorker:
    """A forked process with a pipe to it.

    It is forked while signals are held, and receives them after its own handlers are set. torch has one thread in it:
    OpenMP's threads do not survive a fork, and operations that rely on them can hang. It dies with its parent. It has
    its own global random generators: see `processes.generators`.

    An exception of `work` is sent through the pipe as the last message; `receive` raises it here.

    Args:
        work: the main function of the process, `work(pipe, at_exit)`. `at_exit` takes resources to close after the last
            message has been sent.
        name: the subject of messages, which continue with the cause of its death.
        handlers: signal handlers in the process. Other signals have the parent's handlers.
        farewell: how it is asked to end: a message, or a signal.
        duplex: whether messages can be sent to the process.
        leads_group: whether it leads its own process group, so that its child processes are killed with it. Linux only.
        relays: exceptions that are raised here unchanged; others become a `WorkerError` with their traceback.
        siblings: existing workers of the parent, whose pipes the process must not keep open.
        key: of its random generators; by default it follows from the parent's.
        stopped_limit_s: the value of `data.env_timeout`: seconds for which it may be stopped, by SIGSTOP for example.

    Attributes:
        pipe: the parent's end.
        pid: its process id.
    """

    def __init__(
        self,
        work: Callable[[Connection, ExitStack], None],
        name: str,
        handlers: Mapping[signal.Signals, Any],
        farewell: Any = None,
        *,
        duplex: bool = True,
        leads_group: bool = False,
        relays: tuple[type[Exception], ...] = (UserError, WorkerError),
        siblings: Sequence[ForkedWorker] = (),
        key: tuple[int, ...] = (),
        stopped_limit_s: float = math.inf,
    ) -> None:
        self.name = name
        self._stopped_limit_s, self._stopped_since = stopped_limit_s, math.inf
        self._handlers = handlers
        self._farewell = farewell
        self._leads_group = leads_group and sys.platform == "linux"
        self._relays = relays
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe(duplex)
        ours = [self.pipe, *(sibling.pipe for sibling in siblings)]
        arguments = work, os.getpid(), key or key_of_fork(), theirs, ours
        self._process = context.Process(target=self._live, args=arguments, name=name)
        with signals_held():  # the process must not receive them before its own handlers are set
            self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def exitcode(self) -> int | None:
        """Its exit status, or minus the signal that killed it; None until it has been waited for."""
        return self._process.exitcode

    def is_ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `receive` returns at once, now or within `timeout_s`: a message has come or the process has ended."""
        return self.pipe.poll(timeout_s) or self.has_ended() or self._is_stopped()

    def receive(self) -> Any:
        """Waits for the next message.

        Raises:
            WorkerError: if the process died or is stopped.
            Exception: any exception of `work`, see the class.
        """
        try:
            while not self.pipe.poll(LIVENESS_POLL_S):
                # Child processes may keep the pipe open. The last messages of an ended process are in the pipe.
                if self.has_ended() and not self.pipe.poll():
                    raise EOFError
                if self._is_stopped():
                    self.kill()
                    limit = f"data.env_timeout, {self._stopped_limit_s:g} s"
                    raise WorkerError(f"{self.name} was stopped by a signal and did not continue within {limit}")
            message, self._stopped_since = self.pipe.recv(), math.inf
        except (EOFError, OSError):
            raise WorkerError(f"{self.name} {self.cause_of_death()}") from None
        if isinstance(message, Exception):
            raise message
        return message

    def has_ended(self) -> bool:
        """Whether it has ended. Does not reap the process: until then its process id is not reused."""
        if sys.platform != "linux":
            return not self._process.is_alive()
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has been reaped
            return True

    def _is_stopped(self) -> bool:
        """Whether it has been stopped for longer than it may be, since this was first asked."""
        if self._stopped_limit_s == math.inf or sys.platform != "linux" or self.has_ended():
            return False
        stopped = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        self._stopped_since = min(self._stopped_since, time.monotonic()) if stopped else math.inf
        return time.monotonic() - self._stopped_since >= self._stopped_limit_s

    def cause_of_death(self) -> str:
        """The cause of its end, as the predicate of a sentence; waits briefly if its pipe was closed before its end."""
        self._reap()
        return cause_of_death(self._process.exitcode)

    def send_signal(self, signum: int) -> None:
        """Sends a signal if the process still exists."""
        if not self.has_ended():
            os.kill(self.pid, signum)

    def ask_to_end(self) -> None:
        """Sends it the farewell."""
        with suppress(OSError):  # it may be dead
            if isinstance(self._farewell, signal.Signals):
                self.send_signal(self._farewell)
            else:
                self.pipe.send(self._farewell)

    def wait_until(self, deadline: float) -> None:
        """Waits for its end, at most until `deadline` of `time.monotonic`.

        Reads everything that the process still sends, even incomplete messages, so that it can finish sending.
        """
        sources: list[Any] = [self.pipe, self._process.sentinel]
        while not self.has_ended() and (left := deadline - time.monotonic()) > 0:
            ready = wait(sources, min(left, LIVENESS_POLL_S))
            if self._process.sentinel in ready:
                return
            if self.pipe in ready and not _read(self.pipe):
                sources.remove(self.pipe)

    def kill(self) -> None:
        """Ends the process at once; if it leads a group, also its child processes."""
        if self._leads_group:
            with suppress(ChildProcessError, ProcessLookupError):
                # Until the process is reaped, its process id is not reused.
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._reap()

    def _reap(self) -> None:
        if not self.has_ended():  # `join` waits for the sentinel, which child processes may keep open
            self._process.join(SHUTDOWN_GRACE_S)
        self._process.is_alive()  # reaps it, if it has ended

    def _live(
        self,
        work: Callable[[Connection, ExitStack], None],
        parent: int,
        key: tuple[int, ...],
        pipe: Connection,
        ours: list[Connection],
    ) -> None:
        """The main function of the process."""
        if self._leads_group:
            os.setpgid(0, 0)
        die_with(parent)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        torch.set_num_threads(1)
        enter_process(*key)
        for end in ours:
            end.close()
        with ExitStack() as at_exit:
            try:
                work(pipe, at_exit)
            except self._relays as error:
                show_traceback(error)
                pipe.send(error)
            except Exception:
                with suppress(OSError):
                    pipe.send(WorkerError(f"{self.name} failed:\n\n{traceback.format_exc()}"))


def end_all(workers: Sequence[ForkedWorker]) -> None:
    """Asks the workers to end, waits `SHUTDOWN_GRACE_S` in total, and kills the remaining ones; closes the pipes.

    Signals take effect afterwards: a second Ctrl-C waits until no process is left.
    """
    deadline = time.monotonic() + SHUTDOWN_GRACE_S
    with signals_held():
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.wait_until(deadline)
        for worker in workers:
            worker.kill()
            worker.pipe.close()


def ended_with(owner: object, workers: list[ForkedWorker]) -> Finalize:
    """Ends the workers with an object or with the interpreter (which would wait for them), whichever is first.

    Args:
        owner: the object; a worker must not keep a reference to it.
        workers: the list of workers, read at the end.

    Returns:
        A function that ends them now.
    """
    return Finalize(owner, end_all, (workers,), exitpriority=1)


def _read(pipe: Connection) -> bytes:
    """Reads some bytes; none at the end of the pipe."""
    with suppress(OSError):
        return os.read(pipe.fileno(), 1 << 16)
    return b""
