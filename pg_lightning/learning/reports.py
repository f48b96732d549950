"""Logs updates and evaluations: reduced over ranks, at the Trainer's interval, against env steps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pg_lightning.collectives import Collectives
from pg_lightning.learning.metrics import TrainingEpisodes, game_results, of_all_ranks, refuse_drift
from pg_lightning.learning.progress import Progress
from pg_lightning.rollout import Rollout

if TYPE_CHECKING:
    from pg_lightning.learning.module import PolicyGradientModule


class TrainingReports:
    """The clock and the episodes of training since the last report.

    Attributes:
        episodes: that ended on this rank since then.
    """

    def __init__(self) -> None:
        self.episodes = TrainingEpisodes()
        self._then = 0.0
        self._steps_then = 0

    def start(self, env_steps: int) -> None:
        """Starts the clock for `time/steps_per_second`."""
        self._then, self._steps_then = time.perf_counter(), env_steps

    def reduce(
        self,
        metrics: dict[str, Tensor],
        progress: Progress,
        rows: Sequence[int],
        collectives: Collectives,
        counts_restarts: bool,
    ) -> dict[str, float]:
        """The metrics of an update over all ranks, in one synchronisation with the device, and timing metrics.

        Args:
            metrics: of this rank.
            progress: after the update.
            rows: valid rows of each rank.
            collectives: of the training.
            counts_restarts: whether environments are replaced when they fail.
        """
        if counts_restarts:
            metrics["env/restarts"] = torch.tensor(progress.restarts, device=_device(metrics))
        metrics = of_all_ranks(metrics, self.episodes, rows, collectives)
        self.episodes.clear()
        values = torch.stack([value.detach().double() for value in metrics.values()]).tolist()
        numbers = dict(zip(metrics, values, strict=True))
        if counts_restarts:
            numbers["env/restarts"] += progress.restarts_at_resume
        then, steps_then = self._then, self._steps_then
        self.start(progress.env_steps)
        numbers["time/steps_per_second"] = (progress.env_steps - steps_then) / (self._then - then)
        return numbers


def report_update(module: PolicyGradientModule, metrics: dict[str, Tensor], rollout: Rollout) -> None:
    """Logs an update, and compares the ranks.

    Raises:
        UserError: if weights or statistics of the ranks differ.
    """
    learner, progress = module.learner, module.progress
    if rollout.log_probs is not None:
        lag = progress.previous - rollout.policy_version
        metrics["train/policy_lag"] = torch.tensor(float(lag), device=module.device)
    if rollout.bootstrap_is_approximate is not None:
        approximate = float(rollout.bootstrap_is_approximate)
        metrics["train/bootstrap_is_approximate"] = torch.tensor(approximate, device=module.device)
    for name, values in (rollout.measures or {}).items():
        metrics[f"rollout/{name}"] = values.to(module.device).mean()
    refuse_drift(module, progress.updates, learner.collectives)
    counts_restarts = rollout.env_restarts is not None
    numbers = module.reports.reduce(metrics, progress, learner.rows, learner.collectives, counts_restarts)
    publish(module, numbers | {"train/learning_rate": learner.rates.current})


def report_evaluation(module: PolicyGradientModule, prefix: str) -> dict[str, float]:
    """Logs an evaluation under `prefix`: mean and deviation of returns, mean of lengths, and the results of games;
    returns the logged values."""
    module.evaluation = module.evaluation_episodes.collect()
    returns, lengths, _ = module.evaluation
    metrics = {
        f"{prefix}/return_mean": returns.mean().item(),
        f"{prefix}/return_std": returns.std(correction=0).item(),
        f"{prefix}/length_mean": lengths.mean().item(),
    }
    if names := getattr(module.trainer.datamodule, "eval_groups", []):  # type: ignore[attr-defined]
        metrics |= {f"{prefix}/{name}": share for name, share in game_results(module.evaluation, names).items()}
    publish(module, metrics)
    return metrics


def publish(module: PolicyGradientModule, metrics: Mapping[str, float]) -> None:
    """Sends metrics to callbacks, and directly to loggers: their x-axis is env steps, exact beyond 2²⁴.

    Does not use `self.log`, which costs 0.1 to 0.3 ms per key, except outside `fit`, where the Trainer returns its
    results.
    """
    published = {**metrics, "time/env_steps": float(module.env_steps)}
    trainer: Trainer = module.trainer
    if trainer.state.fn != "fit":
        module.log_dict(published)
        return
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in published.items()})
    for logger in module.loggers:
        logger.log_metrics(published, step=module.env_steps)


def _device(metrics: Mapping[str, Tensor]) -> torch.device:
    return next(iter(metrics.values())).device
