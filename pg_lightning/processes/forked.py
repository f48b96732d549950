"""The life cycle of a forked worker: its start, its messages, its end, and the cause of its death."""

from __future__ import annotations

import ctypes
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

from pg_lightning.errors import UserError
from pg_lightning.processes.signals import SIGNALS

SHUTDOWN_GRACE_S = 3.0  # that a process has to end by itself; then it is killed
LIVENESS_POLL_S = 0.2  # between two looks at whether a process lives, where its pipe and its sentinel may stay open
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class WorkerError(RuntimeError):
    """A forked process died, or raised what is not the user's mistake. The message names it and the cause."""


def require_fork(what: str, cure: str) -> None:
    """To be called before anything is forked.

    Args:
        what: the option that asks for it, and "forks …", as the beginning of the message.
        cure: what to set instead.

    Raises:
        UserError: if the system cannot fork.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(f"{what}, which this system does not support; {cure}")


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, even by SIGKILL. Linux only.

    Args:
        parent: its process id. If it is dead already, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """The signals that end a run take effect afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cause_of_death(exitcode: int | None) -> str:
    """What became of a process that ended too early, as the predicate of a sentence."""
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"exited with code {exitcode} before training ended"


def left_to_parent(*_: Any) -> None:
    """A signal handler: the signal may have gone to the whole process group, and the parent decides what it means.

    Not SIG_IGN, which programs that the worker starts would inherit.
    """


class ForkedWorker:
    """A forked process with a pipe to it.

    It is forked while signals are held and hears them once its own handlers are set. It has one thread for torch:
    OpenMP's threads do not survive a fork, and operations that count on them can hang. It dies with its parent.

    An exception of `work` travels through the pipe as the last message; `receive` raises it here.

    Args:
        work: all that the process does, `work(pipe, at_exit)`. `at_exit` takes what is to be closed after the last
            message has been sent.
        name: what messages call it; they go on with the cause of its death.
        handlers: of signals, in the process. Others are as in the parent.
        farewell: what asks it to end: a message, or a signal.
        duplex: whether the process can be sent messages.
        leads_group: it leads a process group of its own, and what it started is killed with it. Linux only.
        relays: exceptions that are raised here as they are; any other becomes a `WorkerError` with its traceback.
        siblings: workers that the parent has already, whose pipes the process must not hold open.

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
    ) -> None:
        self.name = name
        self._handlers = handlers
        self._farewell = farewell
        self._leads_group = leads_group and sys.platform == "linux"
        self._relays = relays
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe(duplex)
        ours = [self.pipe, *(sibling.pipe for sibling in siblings)]
        self._process = context.Process(target=self._live, args=(work, os.getpid(), theirs, ours), name=name)
        with signals_held():  # the process must not hear them before it has its own handlers
            self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def exitcode(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it has not been waited for."""
        return self._process.exitcode

    def is_ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `receive` need not wait: a message has come or the process has ended, if not now, then in time."""
        return self.pipe.poll(timeout_s) or self.has_ended()

    def receive(self) -> Any:
        """The next message, when it comes.

        Raises:
            WorkerError: if the process died; names the cause.
            Exception: what `work` raised, see the class.
        """
        try:
            while not self.pipe.poll(LIVENESS_POLL_S):
                # What the process started may keep the pipe open. Once it has ended its last words are in the pipe.
                if self.has_ended() and not self.pipe.poll():
                    raise EOFError
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(f"{self.name} {self.cause_of_death()}") from None
        if isinstance(message, Exception):
            raise message
        return message

    def has_ended(self) -> bool:
        """Whether it has ended. Does not wait for it in the sense of POSIX: until then its id is nobody else's."""
        if sys.platform != "linux":
            return not self._process.is_alive()
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has been waited for
            return True

    def cause_of_death(self) -> str:
        """Why it ended, as the predicate of a sentence; gives it a little time if its pipe has ended before it."""
        self._reap()
        return cause_of_death(self._process.exitcode)

    def send_signal(self, signum: int) -> None:
        """Passes a signal on, if it is still there."""
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
        """Waits for its end, to a time of `time.monotonic` at most.

        Reads what the process still sends, and be it half a message, so that it can end its sending.
        """
        sources: list[Any] = [self.pipe, self._process.sentinel]
        while not self.has_ended() and (left := deadline - time.monotonic()) > 0:
            ready = wait(sources, min(left, LIVENESS_POLL_S))
            if self._process.sentinel in ready:
                return
            if self.pipe in ready and not _read(self.pipe):
                sources.remove(self.pipe)

    def kill(self) -> None:
        """Ends the process at once, and with it what it has started if it leads a group."""
        if self._leads_group:
            with suppress(ChildProcessError, ProcessLookupError):
                # Until the process has been waited for, its id is nobody else's.
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._reap()

    def _reap(self) -> None:
        if not self.has_ended():  # `join` waits for the sentinel, which what the process started may keep open
            self._process.join(SHUTDOWN_GRACE_S)
        self._process.is_alive()  # waits for it in the sense of POSIX, if it has ended

    def _live(
        self, work: Callable[[Connection, ExitStack], None], parent: int, pipe: Connection, ours: list[Connection]
    ) -> None:
        """All of the process's life."""
        if self._leads_group:
            os.setpgid(0, 0)
        die_with(parent)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        torch.set_num_threads(1)
        for end in ours:
            end.close()
        with ExitStack() as at_exit:
            try:
                work(pipe, at_exit)
            except self._relays as error:
                pipe.send(error)
            except Exception:
                with suppress(OSError):
                    pipe.send(WorkerError(f"{self.name} failed:\n\n{traceback.format_exc()}"))


def end_all(workers: Sequence[ForkedWorker]) -> None:
    """Asks the workers to end, gives all together `SHUTDOWN_GRACE_S`, and kills those that have not; closes the pipes.

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
    """Has the workers end with an object, or with the interpreter, which would wait for them; once, whichever is first.

    Args:
        owner: the object; nothing that a worker keeps may refer to it.
        workers: those that are in the list then.

    Returns:
        What to call for ending them now.
    """
    return Finalize(owner, end_all, (workers,), exitpriority=1)


def _read(pipe: Connection) -> bytes:
    """Some bytes; none at its end."""
    with suppress(OSError):
        return os.read(pipe.fileno(), 1 << 16)
    return b""
