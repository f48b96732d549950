"""Processes that train together end together, and say which of them was at fault."""

from __future__ import annotations

import os
import subprocess
import time

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from pg_lightning.collectives import RankLost, disconnect
from pg_lightning.errors import ReportedElsewhere, UserError, named_cause_of
from pg_lightning.lightning_private import SubprocessLauncher
from pg_lightning.processes import SHUTDOWN_GRACE_S, WorkerError, cause_of_death, die_with
from pg_lightning.torch_private import default_store

# What gloo and NCCL say, among other things, when a rank is gone or too late.
COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")


class RankWatch(Callback):
    """When a rank dies or hangs, the others end too, with one line that names it and, as far as it is known, the cause.

    A rank that is gone breaks the collective that the others are in, at once; one that hangs, when the timeout of the
    process group is over. Each rank that ends leaves word of why in the store that all share: its own error, or that
    it only noticed. Whoever has left no word was killed, hangs, or has lost its host. A `UserError` that rank 0 has too
    is left to it to say.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the ranks that rank 0 has started end with it, were it killed."""
        if trainer.local_rank > 0 and isinstance(trainer.strategy.launcher, SubprocessLauncher):
            die_with(os.getppid())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves word of this rank's error; if it is that of another, makes that the cause of the exception."""
        disconnect()
        ends_by_signal = not isinstance(exception, Exception)  # which all ranks have agreed on
        if trainer.world_size == 1 or ends_by_signal or not dist.is_initialized():
            return
        children = _children(trainer)
        text = str(exception).lower()
        only_noticed = isinstance(exception, RankLost) or (
            isinstance(exception, RuntimeError) and any(words in text for words in COLLECTIVE_ERRORS)
        )
        word = "" if only_noticed else f"ended with {named_cause_of(exception)}"
        try:
            store = default_store()
            if isinstance(exception, UserError) and trainer.global_rank > 0:
                _wait_for_words(store, [0])
                if store.check([_word_of(0)]) and store.get(_word_of(0)).decode() == word:
                    exception.__cause__ = ReportedElsewhere("rank 0 ends with the same error")
            store.set(_word_of(trainer.global_rank), word)
            if isinstance(exception, UserError) and trainer.global_rank == 0:
                _wait_for_words(store, _others(trainer))  # the store ends with this process
        except RuntimeError:  # it is kept by rank 0, or by the launcher on its host
            exception.__cause__ = WorkerError("trainer.strategy: rank 0 or its host does not answer")
            return
        if only_noticed:
            culprits = _culprits(store, trainer, children)
            exception.__cause__ = WorkerError(f"trainer.strategy: {culprits or named_cause_of(exception)}")


def _children(trainer: Trainer) -> dict[int, subprocess.Popen[bytes]]:
    """The ranks that this one has started, taken from Lightning's observer: it would kill this process before it could
    say which of them has died. They end with this process in any case."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, SubprocessLauncher):
        return {}
    children = dict(enumerate(launcher.procs, start=trainer.global_rank + 1))
    launcher.procs.clear()
    return children


def _culprits(store: dist.Store, trainer: Trainer, children: dict[int, subprocess.Popen[bytes]]) -> str:
    """What became of the ranks that have not just noticed, as one sentence; waits a little for them to say it."""
    _wait_for_words(store, _others(trainer))
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


def _wait_for_words(store: dist.Store, ranks: list[int]) -> None:
    deadline = time.monotonic() + SHUTDOWN_GRACE_S
    while time.monotonic() < deadline and not all(store.check([_word_of(rank)]) for rank in ranks):
        time.sleep(0.1)


def _others(trainer: Trainer) -> list[int]:
    return [rank for rank in range(trainer.world_size) if rank != trainer.global_rank]


def _word_of(rank: int) -> str:
    return f"pg_lightning/why rank {rank} ended"
