"""Makes a batch of a rollout: values, advantages, returns, and the normalisation of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pg_lightning.collectives import Collectives
from pg_lightning.policies import ActorCritic
from pg_lightning.returns import gae
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.statistics import standardize

Normalize = bool | Literal["per_rank"]
TokenNormalizer = Literal["sequence", "tokens", "constant"]


@torch.no_grad()
def gae_targets(
    rollout: Rollout, network: ActorCritic, gamma: float, gae_lambda: float, with_log_probs: bool = False
) -> tuple[Tensor, ...]:
    """GAE(λ) advantages, λ-returns and values, from the critic before the update, and log π(a|s) if asked for, `[T, N]`
    each."""
    values, next_values = network.values(rollout)
    advantages = gae(
        rollout.rewards,
        values,
        next_values,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma,
        gae_lambda,
    )
    targets = advantages, advantages + values, values
    if not with_log_probs:
        return targets
    return *targets, log_probs_of(Batch.of(rollout, *targets), network).view_as(values)


def rows_per_column(rows: Sequence[int], columns: int) -> float:
    """The mean number of valid rows of a column over all ranks, each with as many columns.

    Args:
        rows: valid rows of each rank.
        columns: of each rank.
    """
    return sum(rows) / (columns * len(rows))


def sequence_weights(valid: Tensor, normalizer: TokenNormalizer, tokens: float) -> Tensor:
    """The weight of each token, so that a mean over the tokens of all ranks has the normaliser's form.

    Args:
        valid: `[T, N]` bool; every column has at least one valid row.
        normalizer: see `GRPO`.
        tokens: mean number of valid rows of a column, over all ranks.

    Returns:
        `[T, N]`.
    """
    T, N = valid.shape
    match normalizer:
        case "tokens":
            return torch.ones(T, N, device=valid.device)
        case "sequence":
            return (tokens / valid.sum(0)).expand(T, N)
        case "constant":
            return torch.full((T, N), tokens / T, device=valid.device)


def log_probs_of(batch: Batch, network: ActorCritic) -> Tensor:
    """log π(a|s) `[B]` of the actions taken."""
    return network.policy(batch).log_prob(batch.actions)


@torch.no_grad()
def log_probs_by_parts(batch: Batch, network: ActorCritic, size: int | None) -> Tensor:
    """As `log_probs_of`, without gradient, for at most so many rows at a time, or one environment."""
    if batch.sequences is None or size is None or len(batch) <= size:
        return log_probs_of(batch, network)
    valid = batch.sequences.valid
    rows = torch.zeros(valid.shape, dtype=torch.int64, device=valid.device)
    rows[valid] = torch.arange(len(batch), device=valid.device)
    environments = torch.arange(valid.shape[1], device=valid.device).split(max(1, size // len(valid)))
    order = torch.cat([rows[:, chosen][valid[:, chosen]] for chosen in environments])
    found = torch.cat([log_probs_of(batch.of_environments(chosen), network) for chosen in environments])
    return found[order.argsort()]


@torch.no_grad()
def make_batch(
    network: ActorCritic,
    rollout: Rollout,
    targets: Sequence[Tensor],
    normalize_advantage: Normalize,
    collectives: Collectives,
) -> Batch:
    """The valid rows of a rollout with their targets, in the critic's unit; updates the statistics of returns.

    Args:
        network: with the critic.
        rollout: of this rank.
        targets: advantages, returns and values `[T, N]`, in the unit of the rewards.
        normalize_advantage: shift and scale advantages to mean 0 and standard deviation 1, over the rows of all ranks
            or, with `per_rank`, of each rank separately.
        collectives: of the training.
    """
    batch = Batch.of(rollout, *targets)
    normalizer = network.value_normalizer
    if normalizer is not None:
        normalizer.update(collectives.moments(batch.returns), cast(nn.Linear, network.critic_head))
        batch.returns, batch.old_values = normalizer(batch.returns), normalizer(batch.old_values)
    batch.advantages = normalized(batch.advantages, normalize_advantage, collectives)
    return batch


def normalized(advantages: Tensor, how: Normalize, collectives: Collectives) -> Tensor:
    """`[B]` unchanged, or standardised over the rows of all ranks, or of this rank."""
    if how == "per_rank":
        return standardize(advantages)
    return collectives.standardize(advantages) if how else advantages
