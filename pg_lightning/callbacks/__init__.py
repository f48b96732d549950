"""Callbacks: evaluation by env steps, progress, what a resume needs, reports and pictures."""

from pg_lightning.callbacks.evaluation import EvaluateEverySteps, EvaluationReport, TrajectoryWriter
from pg_lightning.callbacks.metrics_file import ContinuedMetrics, MetricsFile
from pg_lightning.callbacks.progress import EnvStepProgress
from pg_lightning.callbacks.randomness import RandomStates
from pg_lightning.callbacks.ranks import RankWatch
from pg_lightning.callbacks.tracking import EnvStepAxis, LearningCurve

__all__ = [
    "ContinuedMetrics",
    "EnvStepAxis",
    "EnvStepProgress",
    "EvaluateEverySteps",
    "EvaluationReport",
    "LearningCurve",
    "MetricsFile",
    "RandomStates",
    "RankWatch",
    "TrajectoryWriter",
]
