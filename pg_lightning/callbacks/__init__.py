"""Callbacks: evaluation and checkpoints by env steps, what a resume needs, signals, progress, reports and pictures."""

from pg_lightning.callbacks.checkpoints import (
    CheckpointError,
    RunCheckpoint,
    SafeCheckpointIO,
    read_checkpoint,
    relative,
    run_folder,
)
from pg_lightning.callbacks.evaluation import EvaluateEverySteps, EvaluationReport, TrajectoryWriter
from pg_lightning.callbacks.metrics_file import ContinuedMetrics, MetricsFile
from pg_lightning.callbacks.progress import EnvStepProgress
from pg_lightning.callbacks.randomness import RandomStates
from pg_lightning.callbacks.ranks import RankWatch
from pg_lightning.callbacks.signals import StopOnSignal
from pg_lightning.callbacks.tracking import LearningCurve
from pg_lightning.callbacks.video import EvaluationVideo
from pg_lightning.callbacks.wandb import FaultTolerantWandbLogger

__all__ = [
    "CheckpointError",
    "ContinuedMetrics",
    "EnvStepProgress",
    "EvaluateEverySteps",
    "EvaluationReport",
    "EvaluationVideo",
    "FaultTolerantWandbLogger",
    "LearningCurve",
    "MetricsFile",
    "RandomStates",
    "RankWatch",
    "RunCheckpoint",
    "SafeCheckpointIO",
    "StopOnSignal",
    "TrajectoryWriter",
    "read_checkpoint",
    "relative",
    "run_folder",
]
