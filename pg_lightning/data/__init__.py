"""Data: rollouts of vectorised environments as an `IterableDataset` in a `LightningDataModule`."""

from pg_lightning.data.collector import RolloutCollector
from pg_lightning.data.datamodule import RolloutDataModule
from pg_lightning.data.dataset import RolloutDataset
from pg_lightning.data.evaluation import EvaluationDataset

__all__ = ["EvaluationDataset", "RolloutCollector", "RolloutDataModule", "RolloutDataset"]
