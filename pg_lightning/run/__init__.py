"""The files of a run and the loggers that write them: folder, checkpoints, metrics, config, trackers."""

from pg_lightning.run.checkpoints import (
    CheckedCheckpointIO,
    CheckpointError,
    SafeCheckpointIO,
    read_checkpoint,
    read_own_checkpoint,
)
from pg_lightning.run.folder import last_checkpoint, relative, run_folder
from pg_lightning.run.metrics_file import MetricsFile
from pg_lightning.run.trackers import FaultTolerantWandbLogger

__all__ = [
    "CheckedCheckpointIO",
    "CheckpointError",
    "FaultTolerantWandbLogger",
    "MetricsFile",
    "SafeCheckpointIO",
    "last_checkpoint",
    "read_checkpoint",
    "read_own_checkpoint",
    "relative",
    "run_folder",
]
