"""Asynchronous workers: `Trainer(accelerator="cpu", strategy="hogwild", devices=4)` forks four processes to fit.

Each runs the Trainer's own loop as a single process: there are no collectives, and gradients are not averaged. The
workers share only what the module put into shared memory before the fork. Only worker 0 evaluates, logs and saves.
"""

from __future__ import annotations

import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.lightning_private import Launcher, LaunchingStrategy, call_and_handle_interrupt
from pg_lightning.processes import LIVENESS_POLL_S, ForkedWorker, WorkerError, end_all, require_fork, signals_held
from pg_lightning.processes.signals import Stopped

TEARDOWN_GRACE_S = 30.0  # for the workers to clean up, after all have reported how they ended


class HogwildStrategy(LaunchingStrategy):
    """One worker process for each of the Trainer's `devices`, forked by `fit`.

    To Lightning each is a single device: `trainer.world_size` is 1, and every collective returns its input.
    `trainer.global_rank` is the worker's index. `validate`, `test` and `predict` run in the calling process.

    Attributes:
        launched_at: when the workers of this `fit` were forked, in nanoseconds: equal in all of them, and different in
            the next `fit`. A worker may start after others have ended, so the first worker of a `fit` is found by it.
    """

    strategy_name = "hogwild"

    def __init__(self) -> None:
        super().__init__("cpu")
        # Lightning fills these in from the Trainer's `devices` and `num_nodes`.
        self.parallel_devices: list[torch.device] = []
        self.num_nodes = 1
        self.handed_over = False
        self.launched_at = 0

    @property
    def num_workers(self) -> int:
        """Number of processes that `fit` forks."""
        return len(self.parallel_devices)

    @property
    def is_global_zero(self) -> bool:
        """Whether this process evaluates, logs and saves.

        False in the main process while the workers train, and if they failed: its weights are then the initial ones.
        """
        return self.global_rank == 0 and not self.handed_over

    def make_launcher(self) -> HogwildLauncher:
        """The launcher that forks the workers.

        Raises:
            UserError: if they cannot be forked, or cannot share memory.
        """
        if not isinstance(self.accelerator, CPUAccelerator):
            raise UserError(
                "trainer.accelerator: the hogwild strategy runs on CPUs only; set trainer.accelerator to cpu"
            )
        if self.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes: trainer.strategy hogwild shares the memory of one machine; "
                f"set trainer.num_nodes to 1 (it is {self.num_nodes})"
            )
        require_fork("trainer.strategy: hogwild forks processes", "choose ddp or auto")
        return HogwildLauncher(self)


class HogwildLauncher(Launcher):
    """Forks the workers, waits for them, and returns the results of worker 0."""

    def __init__(self, strategy: HogwildStrategy) -> None:
        self._strategy = strategy
        self._workers: list[ForkedWorker] = []

    @property
    def is_interactive_compatible(self) -> bool:
        """Forked processes need no script."""
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Runs one of the Trainer's entry points: `fit` in the workers, any other in this process.

        Raises:
            WorkerError: if a worker died, failed, or was stopped for longer than the `env_timeout` of the datamodule.
                The other workers have ended by then.
            UserError: if a worker raised it; likewise Lightning's `MisconfigurationException`.
        """
        self._strategy.handed_over = False
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return function(*args, **kwargs)
        _ = trainer.log_dir  # loggers choose a version here: every process must use the same folder
        self._strategy.handed_over = True
        self._strategy.launched_at = time.monotonic_ns()
        with _sigterm_raises():
            try:
                # The datamodule is one of the arguments; Lightning attaches it later.
                parts = (*args, *kwargs.values())
                limit = min((getattr(part, "env_timeout", math.inf) for part in parts), default=math.inf)
                self._start(trainer, partial(function, *args, **kwargs), limit)
                outcomes = self._outcomes()
                deadline = time.monotonic() + TEARDOWN_GRACE_S
                for worker in self._workers:
                    worker.wait_until(deadline)
            finally:
                with signals_held():
                    end_all(self._workers)
                    self._workers.clear()
        self._strategy.handed_over = False
        _take_over(trainer, outcomes[0])

    def kill(self, signum: int) -> None:
        """Forwards a signal to the workers."""
        for worker in self._workers:
            worker.send_signal(signum)

    def _start(self, trainer: Any, fit: Callable[[], Any], stopped_limit_s: float) -> None:
        with signals_held():  # until all workers are started and can be ended
            for rank in range(self._strategy.num_workers):
                worker = ForkedWorker(
                    partial(self._work, rank, trainer, fit),
                    name=_name(rank),
                    # Ctrl-C and a closed terminal reach all processes; the main process then ends the workers.
                    handlers={
                        signal.SIGINT: signal.SIG_IGN,
                        signal.SIGHUP: signal.SIG_IGN,
                        signal.SIGTERM: signal.SIG_DFL,
                        signal.SIGUSR1: signal.SIG_DFL,
                    },
                    farewell=signal.SIGTERM,
                    duplex=False,
                    relays=(UserError, WorkerError, MisconfigurationException),
                    siblings=self._workers,
                    key=(rank,),
                    stopped_limit_s=stopped_limit_s,
                )
                self._workers.append(worker)

    def _work(self, rank: int, trainer: Any, fit: Callable[[], Any], pipe: Connection, _: ExitStack) -> None:
        """The main function of a worker: it fits as a single process; worker 0 sends its results."""
        strategy = self._strategy
        strategy.global_rank = strategy.local_rank = rank
        cast(Any, rank_zero_only).rank = rank
        strategy.handed_over = False
        strategy.drop_launcher()
        if rank > 0:
            trainer.limit_val_batches = 0
            trainer.profiler = PassThroughProfiler()
        try:
            call_and_handle_interrupt(trainer, fit)
        except SIGTERMException:
            raise WorkerError(f"{_name(rank)} was stopped by SIGTERM") from None
        except Stopped as stop:
            raise WorkerError(f"{_name(rank)} was {stop}") from None
        pipe.send(_results(trainer) if rank == 0 else None)

    def _outcomes(self) -> dict[int, Any]:
        """One result per worker, by rank; the first failure of any is raised."""
        outcomes: dict[int, Any] = {}
        while waiting := [rank for rank in range(len(self._workers)) if rank not in outcomes]:
            wait([self._workers[rank].pipe for rank in waiting], LIVENESS_POLL_S)
            for rank in waiting:
                if self._workers[rank].is_ready():
                    outcomes[rank] = self._workers[rank].receive()
        return outcomes


def _name(rank: int) -> str:
    return f"strategy hogwild: worker {rank}"


def _results(trainer: Any) -> bytes:
    """The results of worker 0 for the main process, copied out of shared memory."""
    buffer = io.BytesIO()
    results = {
        "weights": trainer.lightning_module.state_dict(),
        "metrics": trainer.callback_metrics,
        "callbacks": {callback.state_key: callback.state_dict() for callback in trainer.callbacks},
        "progress": trainer.fit_loop.state_dict(),
    }
    torch.save(results, buffer)
    return buffer.getvalue()


def _take_over(trainer: Any, results: bytes) -> None:
    taken = torch.load(io.BytesIO(results), weights_only=False)
    model = trainer.lightning_module
    # Shared tensors are already here, and newer than worker 0's copy, which may have ended before the others.
    shared = {name for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor) and tensor.is_shared()}
    own = {name: tensor for name, tensor in taken["weights"].items() if name not in shared}
    model.load_state_dict(own, strict=False)
    trainer.callback_metrics.update(taken["metrics"])
    for callback in trainer.callbacks:
        if state := taken["callbacks"].get(callback.state_key):
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = state["dirpath"]  # set in the worker; a state of another folder would be ignored
            callback.load_state_dict(state)
    trainer.fit_loop.load_state_dict(taken["progress"])
    trainer.state.status, trainer.state.stage = TrainerStatus.FINISHED, None


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM raise an exception, so that clean-up runs; an existing handler is called too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        if callable(before):
            before(signum, frame)
        raise SIGTERMException(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


StrategyRegistry.register(
    HogwildStrategy.strategy_name, HogwildStrategy, "forked workers, no collectives", override=True
)
