"""How a Trainer spreads over processes, beyond Lightning's own strategies. Importing this registers them by name."""

from pg_lightning.strategies.hogwild import HogwildStrategy, WorkerError

__all__ = ["HogwildStrategy", "WorkerError"]
