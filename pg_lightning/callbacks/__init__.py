"""Callbacks: evaluation and checkpoints by env steps, state for exact resume, signals, progress, reports and plots."""

from pg_lightning.callbacks.checkpoints import RunCheckpoint
from pg_lightning.callbacks.completions import CompletionTable, CompletionWriter
from pg_lightning.callbacks.config import SaveConfig
from pg_lightning.callbacks.continued_metrics import ContinuedMetrics
from pg_lightning.callbacks.curve import LearningCurve
from pg_lightning.callbacks.evaluation import EvaluateEverySteps, EvaluationReport, TrajectoryWriter
from pg_lightning.callbacks.leaks import LeakWatch
from pg_lightning.callbacks.progress import EnvStepProgress
from pg_lightning.callbacks.randomness import RandomStates
from pg_lightning.callbacks.ranks import RankWatch
from pg_lightning.callbacks.save_times import SaveTimes
from pg_lightning.callbacks.signals import StopOnSignal
from pg_lightning.callbacks.video import EvaluationVideo

__all__ = [
    "CompletionTable",
    "CompletionWriter",
    "ContinuedMetrics",
    "EnvStepProgress",
    "EvaluateEverySteps",
    "EvaluationReport",
    "EvaluationVideo",
    "LeakWatch",
    "LearningCurve",
    "RandomStates",
    "RankWatch",
    "RunCheckpoint",
    "SaveConfig",
    "SaveTimes",
    "StopOnSignal",
    "TrajectoryWriter",
]
