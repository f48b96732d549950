"""Rollouts as an `IterableDataset`: each is collected when the Trainer requests it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

from torch.utils.data import IterableDataset

from pg_lightning.actor import Actor
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.processes import signals
from pg_lightning.rollout import Rollout


class RolloutDataset(IterableDataset[Rollout]):
    """An endless sequence of rollouts, each collected on request with the current policy. With a `CollectorProcess`,
    collection starts when the previous rollout is requested, with the policy at that time.

    It has a length only because Lightning prefetches one batch from a dataset without one, which would collect
    every rollout one update too early.
    """

    def __init__(
        self, collector: RolloutCollector | CollectorProcess, actor: Actor, strategy: Any, length: int
    ) -> None:
        self.collector = collector
        self.actor = actor
        self.strategy = strategy
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Rollout]:
        """Continues from the current state of the environments: a new epoch does not reset them."""
        if not signals.are_held():
            while True:
                yield self.collector.collect(self.actor)
        strategy = self.strategy
        stops, played = False, time.monotonic()
        while True:
            learning = time.monotonic() - played
            if stops or getattr(strategy, "world_size", 1) == 1:  # with several ranks only `agree` knows of signals
                signals.raise_if_stopped(strategy)
            self.collector.is_given_up = True  # until it is certain that the policy learns from it
            rollout = signals.unless_stopped(self.collector.collect, self.actor, patience=signals.BOUNDARY_PATIENCE_S)
            stops = signals.agree(strategy, rollout is None, learning)
            self.collector.is_given_up = False
            played = time.monotonic()
            yield cast(Rollout, rollout)
