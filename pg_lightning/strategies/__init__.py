"""Strategies beyond Lightning's own: how a Trainer uses several processes. Importing this registers them by name."""

from pg_lightning.strategies.hogwild import HogwildStrategy, WorkerError

__all__ = ["HogwildStrategy", "WorkerError"]
