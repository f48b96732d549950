"""Processes that train together end together, and say which of them was at fault."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from pg_lightning.collectives import RankLost, disconnect
from pg_lightning.errors import ReportedElsewhere, UserError, named_cause_of
from pg_lightning.lightning_private import SubprocessLauncher, dismiss_observer
from pg_lightning.processes import SHUTDOWN_GRACE_S, WorkerError, cause_of_death, die_with, signals, watch_children
from pg_lightning.torch_private import default_store

# What gloo and NCCL say, among other things, when a rank is gone or too late.
COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")


class RankWatch(Callback):
    """When a rank dies or hangs, the others end too, with one line that names it and, as far as it is known, the cause.

    A rank that is gone breaks the collective that the others are in, at once; one that hangs, when the timeout of the
    process group is over. Each rank that ends leaves word of why in the store that all share: its own error, or that
    it only noticed. Whoever has left no word was killed, hangs, or has lost its host. A `UserError` that rank 0 has too
    is left to it to say.

    Lightning's own watch over the ranks that rank 0 has started would kill it before it could say all that. This one
    lets it notice first, and ends it only if it does not, as in a long step of an environment.
    """

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._watch: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the ranks that rank 0 has started end with it, were it killed, and rank 0 with them."""
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, SubprocessLauncher):
            return
        if trainer.local_rank > 0:
            die_with(os.getppid())
        elif self._watch is None:
            dismiss_observer(launcher)
            children = {f"rank {rank}": child for rank, child in _children(trainer).items()}
            self._watch = threading.Thread(
                target=watch_children, args=(children, self._noticed, _give_up), name="rank watch", daemon=True
            )
            self._watch.start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves word of this rank's error; if it is that of another, makes that the cause of the exception."""
        self._noticed.set()
        disconnect()
        ends_by_signal = not isinstance(exception, Exception)  # which all ranks have agreed on
        if trainer.world_size == 1 or ends_by_signal or not dist.is_initialized():
            return
        text = str(exception).lower()
        only_noticed = isinstance(exception, RankLost) or (
            isinstance(exception, RuntimeError) and any(words in text for words in COLLECTIVE_ERRORS)
        )
        word = "" if only_noticed else f"ended with {named_cause_of(exception)}"
        try:
            store = default_store()
            if isinstance(exception, UserError) and trainer.global_rank > 0:
                _wait_for_words(store, trainer, [0])
                if store.check([_word_of(0)]) and store.get(_word_of(0)).decode() == word:
                    exception.__cause__ = ReportedElsewhere("rank 0 ends with the same error")
            store.set(_word_of(trainer.global_rank), word)
            if isinstance(exception, UserError) and trainer.global_rank == 0:
                _wait_for_words(store, trainer, _others(trainer))  # the store ends with this process
        except RuntimeError:  # it is kept by rank 0, or by the launcher on its host
            exception.__cause__ = WorkerError("trainer.strategy: rank 0 or its host does not answer")
            return
        if only_noticed:
            culprits = _culprits(store, trainer)
            exception.__cause__ = WorkerError(f"trainer.strategy: {culprits or named_cause_of(exception)}")


def _give_up(cause: str) -> None:
    """Says it for the main thread, which may be in what nothing interrupts, and ends the process."""
    os.write(2, f"error: trainer.strategy: {cause}\n".encode())
    signals.leave(2)


def _children(trainer: Trainer) -> dict[int, subprocess.Popen[bytes]]:
    """The ranks that this one has started, which end with it in any case."""
    launcher = trainer.strategy.launcher
    procs = launcher.procs if isinstance(launcher, SubprocessLauncher) else []
    return dict(enumerate(procs, start=trainer.global_rank + 1))


def _culprits(store: dist.Store, trainer: Trainer) -> str:
    """What became of the ranks that have not just noticed, as one sentence; waits a little for them to say it."""
    _wait_for_words(store, trainer, _others(trainer))
    children = _children(trainer)
    found = []
    for rank in _others(trainer):
        if store.check([_word_of(rank)]):
            word = store.get(_word_of(rank)).decode()
        elif rank in children and children[rank].poll() is not None:
            word = cause_of_death(children[rank].returncode)
        else:
            word = "does not answer: it hangs, was killed, or has lost its host"
        if word:
            found.append(f"rank {rank} {word}")
    return "; ".join(found)


def _wait_for_words(store: dist.Store, trainer: Trainer, ranks: list[int]) -> None:
    """Until these ranks have left word, are known to be dead, or have had time enough."""
    children = _children(trainer)
    deadline = time.monotonic() + SHUTDOWN_GRACE_S
    while time.monotonic() < deadline:
        silent = [rank for rank in ranks if not store.check([_word_of(rank)])]
        if all(rank in children and children[rank].poll() is not None for rank in silent):
            return
        time.sleep(0.1)


def _others(trainer: Trainer) -> list[int]:
    return [rank for rank in range(trainer.world_size) if rank != trainer.global_rank]


def _word_of(rank: int) -> str:
    return f"pg_lightning/why rank {rank} ended"
