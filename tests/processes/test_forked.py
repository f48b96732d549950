"""The life cycle of a forked worker: it starts unharmed, its end is explained, and nothing of it is left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pg_lightning.errors import UserError
from pg_lightning.processes import (
    SHUTDOWN_GRACE_S,
    ForkedWorker,
    WorkerError,
    die_with,
    end_all,
    ended_with,
    left_to_parent,
    require_fork,
    signals_held,
    watch_children,
)
from pg_lightning.processes.signals import SIGNALS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes and files in /proc")

BIG = b"x" * 10**6  # more than a pipe holds


def state_of(pid: int) -> str:
    """A letter of /proc; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def echo(pipe: Connection, at_exit: ExitStack) -> None:
    """Sends back what it is sent, until None."""
    while (message := pipe.recv()) is not None:
        pipe.send(message)


def says(what: Callable[[], Any]) -> Callable[[Connection, ExitStack], None]:
    """Work that says one thing and waits for its farewell."""

    def work(pipe: Connection, at_exit: ExitStack) -> None:
        pipe.send(what())
        pipe.recv()

    return work


def does(what: Callable[[], Any]) -> Callable[[Connection, ExitStack], None]:
    return lambda pipe, at_exit: what()


def busy(pipe: Connection, at_exit: ExitStack) -> None:
    """Hears no farewell."""
    pipe.send("busy")
    time.sleep(1000)


def to_this_thread(signum: int) -> None:
    """To the main thread: one for the process could reach a thread of the test runner that does not hold it."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signum)


Start = Callable[..., ForkedWorker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, ends them after the test, and looks whether that left a process, a zombie, or an open file."""
    gc.collect()  # files of earlier tests
    files, mask = open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    workers: list[ForkedWorker] = []

    def start_one(work: Any, handlers: Any = None, **kwargs: Any) -> ForkedWorker:
        handlers = dict.fromkeys(SIGNALS, left_to_parent) if handlers is None else handlers
        workers.append(ForkedWorker(work, "the worker", handlers, **kwargs))
        return workers[-1]

    yield start_one
    end_all(workers)
    pids = [worker.pid for worker in workers]
    workers.clear()
    gc.collect()
    assert [state_of(pid) for pid in pids] == [""] * len(pids)
    assert multiprocessing.active_children() == []
    assert open_files() == files
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# Start.


def test_messages_go_both_ways_and_the_farewell_ends_it(start: Start) -> None:
    worker = start(echo)
    for message in ("a", [1], BIG):
        worker.pipe.send(message)
        assert worker.receive() == message
    assert not worker.is_ready()
    assert not worker.has_ended()
    begin = time.monotonic()
    end_all([worker])
    assert worker.exitcode == 0
    assert worker.has_ended()
    assert worker.pipe.closed
    with pytest.raises(WorkerError, match=r"^the worker exited with code 0"):
        worker.receive()
    assert time.monotonic() - begin < SHUTDOWN_GRACE_S


def test_a_signal_that_comes_before_its_handler_waits_for_it(start: Start) -> None:
    class SignalledFirst(dict[signal.Signals, Any]):
        def items(self) -> Any:
            for signum in SIGNALS:
                os.kill(os.getpid(), signum)
            return super().items()

    heard: list[int] = []
    handlers = SignalledFirst(dict.fromkeys(SIGNALS, lambda signum, _: heard.append(signum)))
    worker = start(says(lambda: sorted(heard)), handlers)
    assert worker.receive() == sorted(SIGNALS)


def test_a_signal_to_the_parent_waits_until_the_worker_is_known(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append("signal"))
    try:
        with signals_held():
            to_this_thread(signal.SIGTERM)
            worker = start(echo)
            order.append("known")
        assert order == ["known", "signal"]
    finally:
        signal.signal(signal.SIGTERM, before)
    worker.pipe.send(1)
    assert worker.receive() == 1


def test_signals_are_left_to_the_parent_and_programs_that_it_starts_ignore_none(start: Start) -> None:
    def ignored() -> int:
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        return int(status.partition("SigIgn:")[2].split()[0], 16)

    worker = start(says(lambda: [os.kill(os.getpid(), signum) for signum in SIGNALS] and ignored()))
    ignored_by_program = worker.receive()
    assert [ignored_by_program >> (signum - 1) & 1 for signum in (signal.SIGTERM, signal.SIGUSR1)] == [0, 0]


def test_other_handlers_are_as_they_are_asked_for(start: Start) -> None:
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_DFL}
    worker = start(says(lambda: [signal.getsignal(signum) for signum in handlers]), handlers)
    assert worker.receive() == [signal.SIG_IGN, signal.SIG_DFL]


def test_it_has_one_thread_whatever_its_parent_has(start: Start) -> None:
    torch.set_num_threads(2)
    try:
        worker = start(says(torch.get_num_threads))
    finally:
        torch.set_num_threads(1)
    assert worker.receive() == 1


def test_it_holds_no_pipe_of_its_siblings_open(start: Start) -> None:
    """So each notices when the parent closes its pipe."""
    first = start(echo)
    second = start(echo, siblings=[first])
    first.pipe.close()
    wait_until(first.has_ended)
    assert not second.has_ended()


def test_a_system_that_cannot_fork_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fork("data.x: forks", "set it to false")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UserError, match=r"^data\.x: forks, which this system does not support; set it to false$"):
        require_fork("data.x: forks", "set it to false")


# Failures.


def divide_by_zero() -> None:
    _ = 1 / 0


def leave_a_child_and_die() -> None:
    """The child holds the pipe and the sentinel open."""
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (divide_by_zero, "failed:\n\nTraceback .*divide_by_zero.*ZeroDivisionError: division by zero\n$"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL$"),
        (leave_a_child_and_die, "was killed by SIGKILL$"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV$"),
        (lambda: os._exit(3), "exited with code 3 before training ended$"),
        (lambda: sys.exit(4), "exited with code 4 before training ended$"),
        (lambda: None, "exited with code 0 before training ended$"),
        (lambda: die_with(parent=-1), "exited with code 1 before training ended$"),
    ],
    ids=["exception", "SIGKILL", "SIGKILL with a child", "SIGSEGV", "_exit", "sys.exit", "return", "orphan"],
)
def test_its_death_is_explained(start: Start, what: Callable[[], Any], message: str) -> None:
    worker = start(does(what))
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=f"(?s)^the worker {message}"):
        worker.receive()
    assert time.monotonic() - begin < 5


def raise_(error: Exception) -> None:
    raise error


def test_mistakes_of_the_users_are_raised_as_they_are_and_so_is_what_is_relayed(start: Start) -> None:
    for error, relays in ((UserError("data.x: no"), {}), (KeyError("x"), {"relays": (KeyError,)})):
        with pytest.raises(type(error)) as caught:
            start(does(lambda error=error: raise_(error)), **relays).receive()
        assert type(caught.value) is type(error)
        assert caught.value.args == error.args


def test_last_words_are_heard_before_the_death(start: Start) -> None:
    worker = start(lambda pipe, at_exit: pipe.send("last") or os._exit(3))
    wait_until(worker.has_ended)
    assert worker.is_ready()
    assert worker.receive() == "last"
    with pytest.raises(WorkerError, match="exited with code 3"):
        worker.receive()


def test_its_failure_is_told_before_it_tidies_up(start: Start, tmp_path: Path) -> None:
    def work(pipe: Connection, at_exit: ExitStack) -> None:
        at_exit.callback(lambda: (time.sleep(1.5), (tmp_path / "closed").touch()))
        raise UserError("no")

    worker = start(work)
    with pytest.raises(UserError):
        worker.receive()
    assert not (tmp_path / "closed").exists()
    end_all([worker])
    assert (tmp_path / "closed").exists()
    assert worker.exitcode == 0


# End.


def test_those_that_do_not_end_by_themselves_share_one_grace_period_and_are_killed(start: Start) -> None:
    workers = [start(busy) for _ in range(3)]
    assert [worker.receive() for worker in workers] == ["busy"] * 3
    begin = time.monotonic()
    end_all(workers)
    assert SHUTDOWN_GRACE_S - 0.1 < time.monotonic() - begin < 2 * SHUTDOWN_GRACE_S
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 3


def test_one_that_is_stopped_ends_too(start: Start) -> None:
    worker = start(echo)
    worker.send_signal(signal.SIGSTOP)
    end_all([worker])
    assert worker.exitcode == -signal.SIGKILL


def test_one_that_sends_what_nobody_takes_ends_by_itself(start: Start, tmp_path: Path) -> None:
    def work(pipe: Connection, at_exit: ExitStack) -> None:
        at_exit.callback((tmp_path / "closed").touch)
        pipe.send(BIG)
        pipe.recv()

    worker = start(work)
    wait_until(worker.is_ready)
    begin = time.monotonic()
    end_all([worker])
    assert (worker.exitcode, (tmp_path / "closed").exists()) == (0, True)
    assert time.monotonic() - begin < SHUTDOWN_GRACE_S


def test_a_farewell_may_be_a_signal(start: Start) -> None:
    worker = start(busy, {signal.SIGTERM: signal.SIG_DFL}, farewell=signal.SIGTERM, duplex=False)
    assert worker.receive() == "busy"
    begin = time.monotonic()
    end_all([worker])
    assert worker.exitcode == -signal.SIGTERM
    assert time.monotonic() - begin < SHUTDOWN_GRACE_S
    worker.send_signal(signal.SIGTERM)  # to nobody


def test_a_signal_while_workers_end_takes_effect_afterwards(start: Start) -> None:
    """As a second Ctrl-C: the parent would leave workers behind."""
    worker = start(busy)
    worker.receive()
    found: list[bool] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(is_running(worker.pid)))
    timer = threading.Timer(0.5, to_this_thread, [signal.SIGUSR1])
    try:
        timer.start()
        end_all([worker])
        timer.join()
        wait_until(lambda: found)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [False]


@pytest.mark.parametrize("leads_group", [True, False])
def test_what_it_started_is_killed_with_it_if_it_leads_a_group(start: Start, leads_group: bool) -> None:
    worker = start(says(lambda: subprocess.Popen(["sleep", "1000"]).pid), leads_group=leads_group)
    child = worker.receive()
    try:
        end_all([worker])
        assert worker.exitcode == 0
        if leads_group:
            wait_until(lambda: not is_running(child))
        else:
            assert is_running(child)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_what_one_that_ended_by_itself_has_left_is_killed_too(start: Start) -> None:
    """Looking whether it has ended must not give its process group up."""
    worker = start(lambda pipe, at_exit: pipe.send(subprocess.Popen(["sleep", "1000"]).pid), leads_group=True)
    child = worker.receive()
    try:
        wait_until(worker.has_ended)
        worker.kill()
        assert worker.exitcode == 0
        wait_until(lambda: not is_running(child))
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_it_ends_with_its_owner_and_no_file_stays_open(start: Start) -> None:
    class Owner:
        pass

    files = open_files()
    for is_called in (True, False):
        owner, worker = Owner(), ForkedWorker(echo, "the worker", {})
        end = ended_with(owner, [worker])
        pid = worker.pid
        if is_called:
            end()
        del owner
        assert worker.exitcode == 0
        del worker, end
        gc.collect()
        assert state_of(pid) == ""
    assert open_files() == files


SCRIPT = """
import time
from pathlib import Path
from pg_lightning.processes import ForkedWorker, ended_with

class Owner:
    pass

def work(pipe, at_exit):
    pipe.send("busy")
    time.sleep(1000)

owner = Owner()
worker = ForkedWorker(work, "the worker", {})
end = ended_with(owner, [worker])
worker.receive()
print(worker.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["", "time.sleep(1000)"], ids=["exits", "is killed"])
def test_it_dies_with_its_parent(end: str) -> None:
    """Which does not close it: it comes to its end, or is killed by SIGKILL."""
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT + end], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = 0
    try:
        pid = int(parent.stdout.readline())
        if end:
            assert is_running(pid)
            parent.kill()
        assert parent.wait(SHUTDOWN_GRACE_S + 5) == (-signal.SIGKILL if end else 0)
        wait_until(lambda: not is_running(pid))
    finally:
        parent.kill()
        parent.stdout.close()
        if pid and is_running(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("ends", "noticed", "said"),
    [
        (["exit 0", "exit 0"], False, []),
        (["exit 0", "kill -KILL $$"], False, ["rank 2 was killed by SIGKILL"]),
        (["exit 3", "exit 4"], False, ["rank 1 exited with code 3 before training ended"]),
        (["kill -KILL $$", "sleep 60"], True, []),
    ],
)
def test_a_watch_gives_up_for_a_child_that_died_and_that_nobody_notices(ends, noticed, said):
    children = {f"rank {i}": subprocess.Popen(["sh", "-c", end]) for i, end in enumerate(ends, start=1)}
    event, found = threading.Event(), []
    if noticed:
        event.set()
    watch_children(children, event, found.append, patience=0.1)
    for child in children.values():
        child.kill()
        child.wait()
    assert [words.split("; ")[0] for words in found] == said
