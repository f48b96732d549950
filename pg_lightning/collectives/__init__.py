"""Communication between ranks: `Alone`, `ProcessGroup` and `SharedMemory` with one interface."""

from pg_lightning.collectives.connection import all_gather_object, all_reduce_max, connect, disconnect
from pg_lightning.collectives.contract import Alone, Collectives
from pg_lightning.collectives.process_group import ProcessGroup
from pg_lightning.collectives.shared_memory import RankLost, SharedMemory

__all__ = [
    "Alone",
    "Collectives",
    "ProcessGroup",
    "RankLost",
    "SharedMemory",
    "all_gather_object",
    "all_reduce_max",
    "connect",
    "disconnect",
]
