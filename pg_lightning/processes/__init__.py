"""Processes of a run: forked workers, which end with their parent, and the signals that end a run."""

from pg_lightning.processes.children import watch_children
from pg_lightning.processes.forked import (
    LIVENESS_POLL_S,
    SHUTDOWN_GRACE_S,
    ForkedWorker,
    WorkerError,
    cause_of_death,
    die_with,
    end_all,
    ended_with,
    left_to_parent,
    require_fork,
    signals_held,
)
from pg_lightning.processes.generators import (
    OwnStream,
    enter_process,
    enter_rank,
    global_states,
    name_process,
    order_generator,
    seed_generators,
    set_global_states,
)

__all__ = [
    "LIVENESS_POLL_S",
    "SHUTDOWN_GRACE_S",
    "ForkedWorker",
    "OwnStream",
    "WorkerError",
    "cause_of_death",
    "die_with",
    "end_all",
    "ended_with",
    "enter_process",
    "enter_rank",
    "global_states",
    "left_to_parent",
    "name_process",
    "order_generator",
    "require_fork",
    "seed_generators",
    "set_global_states",
    "signals_held",
    "watch_children",
]
