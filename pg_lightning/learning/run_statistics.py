"""Running statistics of rewards and observations: reduced over ranks once per rollout, applied around its update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pg_lightning.collectives import Collectives
from pg_lightning.policies import ObservationNormalizer, RewardScaler
from pg_lightning.policies.normalizers import EPSILON
from pg_lightning.rollout import Rollout
from pg_lightning.statistics import Moments, merge_moments, moments, partial_moments


@dataclass
class RolloutMoments:
    """The moments of the rollouts of all ranks.

    Attributes:
        rows: valid rows of each rank.
        returns: moments of the discounted returns, if rewards are scaled.
        obs: moments of the observations, if they are normalised.
    """

    rows: list[int]
    returns: Moments | None = None
    obs: Moments | None = None

    @property
    def env_steps(self) -> int:
        """Env steps of all ranks."""
        return sum(self.rows)


class RunStatistics:
    """The statistics that are updated once per rollout: of rewards before the update, of observations after it.

    Args:
        reward_scaler: or None if rewards are not scaled.
        normalizer: of observations, or None.
    """

    def __init__(self, reward_scaler: RewardScaler | None, normalizer: ObservationNormalizer | None) -> None:
        self.reward_scaler = reward_scaler
        self.normalizer = normalizer
        self._is_first = True

    def start(self, device: torch.device, episodes_go_on: bool) -> None:
        """Starts training: discounted returns continue with continued episodes, or start from 0."""
        if self.reward_scaler is None:
            return
        if not episodes_go_on:
            self.reward_scaler.restart()
        elif self.reward_scaler.discounted_returns is not None:
            self.reward_scaler.discounted_returns = self.reward_scaler.discounted_returns.to(device)

    def reduce(self, rollout: Rollout, collectives: Collectives) -> RolloutMoments:
        """The rows and moments of the rollouts of all ranks, in one message."""
        batches: dict[str, Tensor] = {}
        if self.reward_scaler is not None:
            batches["returns"] = self.reward_scaler.follow(rollout.rewards, rollout.done, rollout.valid)
        if self.normalizer is not None:
            batches["obs"] = rollout.obs[:-1][rollout.valid]
        if collectives.world_size == 1:
            found = {name: moments(x) for name, x in batches.items()} if rollout.env_steps else {}
            return RolloutMoments([rollout.env_steps], **found)
        count = torch.tensor(rollout.env_steps, dtype=torch.float64, device=rollout.rewards.device)
        counts, *parts = collectives.all_gather_together(count, *map(partial_moments, batches.values()))
        rows = [int(n) for n in counts.tolist()]
        found = dict(zip(batches, map(merge_moments, parts), strict=True)) if sum(rows) else {}
        return RolloutMoments(rows, **found)

    def scale_rewards(self, rollout: Rollout, seen: RolloutMoments) -> Rollout:
        """The rollout with scaled rewards; the statistics include its own returns."""
        if self.reward_scaler is None:
            return rollout
        if seen.returns is not None:
            if self._is_first:
                report_vanishing("model.scale_rewards: returns", seen.returns)
            self.reward_scaler.statistics.merge(*seen.returns)
        return replace(rollout, rewards=self.reward_scaler(rollout.rewards))

    def normalize_next(self, seen: RolloutMoments) -> None:
        """Updates the observation statistics with this rollout, for the next rollout."""
        if self.normalizer is not None and seen.obs is not None:
            if self._is_first:
                report_vanishing("model.normalize_obs: observations", seen.obs)
            self.normalizer.statistics.merge(*seen.obs)
        self._is_first = False


def report_vanishing(what: str, moments: Moments) -> None:
    """Reports numbers that vary so little that normalisation, which divides by √(σ² + 1e-8), leaves them near 0.

    Not those that vary by rounding only.

    Args:
        what: the option, and the numbers that it normalises.
        moments: their number, mean and variance.
    """
    _, mean, var = moments
    rounding = (1e-6 * mean).square().clamp(min=1e-24)
    entries = ((var > rounding) & (var < EPSILON)).flatten().nonzero().flatten().tolist()
    if entries:
        smallest = var.flatten()[entries].min().sqrt().item()
        named = ", ".join(map(str, entries[:5])) + (" ..." if len(entries) > 5 else "")
        which = f" (entries {named})" if var.dim() else ""
        rank_zero_warn(
            f"{what}{which} have a standard deviation of {smallest:.1g}, and are nearly 0 after normalisation, which "
            "divides by at least 1e-4; scale them in the environment"
        )
