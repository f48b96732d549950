"""Targets: pure functions from rewards and values, time first, `[T, N]`.

Two masks with different jobs run through this file. `terminated` stops the *bootstrap*: nothing follows the state, so
its value is zero. `done` (terminated or truncated) stops the *recursion*: the next row belongs to another episode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pg_lightning.ranks import Gather, Moments


def reward_to_go(rewards: Tensor, done: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """Discounted return from each step to the end of its episode (Sutton & Barto 2018, eq. 3.8 and 3.9).

        G_t = r_t + γ (1 − done_t) G_{t+1}

    Args:
        rewards: `[T, N]`.
        done: `[T, N]` bool, the episode is over.
        valid: `[T, N]` bool; rows that are not get return 0.
        gamma: discount factor γ in [0, 1].

    Returns:
        Returns `[T, N]`. Those of episodes that do not end within the T rows lack what was still to come: see
        `unfinished`.
    """
    return _sums_of_what_follows(rewards * valid, gamma * (valid & ~done))


def unfinished(done: Tensor, valid: Tensor) -> Tensor:
    """`[T, N]` bool; valid rows whose episode does not end within the T rows: their return is not known."""
    ends_later = done.flip(0).cummax(0).values.flip(0)
    return valid & ~ends_later


def episode_index(timesteps: Tensor, valid: Tensor) -> Tensor:
    """Numbers the episodes of T rows of N environments from 0.

    Args:
        timesteps: `[T, N]`, 0 where an episode begins.
        valid: `[T, N]` bool.

    Returns:
        `[B]` int64, the episode of every valid row, in the order of `rewards[valid]`.
    """
    T, N = valid.shape
    of_environment = ((timesteps == 0) & valid).cumsum(0)
    numbers = of_environment + torch.arange(N, device=valid.device) * (T + 1)
    return torch.unique(numbers[valid], return_inverse=True)[1]


def episode_return(returns: Tensor, timesteps: Tensor, valid: Tensor) -> Tensor:
    """The return of the whole episode, G_0, for each of its steps.

    Args:
        returns: `[T, N]` reward-to-go.
        timesteps: `[T, N]`, 0 where an episode begins.
        valid: `[T, N]` bool.

    Returns:
        `[T, N]`; 0 in rows that are not valid.
    """
    carried = torch.zeros_like(returns[0])
    rows = []
    for at_start, first, ok in zip(returns, timesteps == 0, valid, strict=True):
        carried = torch.where(first, at_start, carried)
        rows.append(carried * ok)
    return torch.stack(rows)


def mean_of_other_episodes(returns: Tensor, episodes: Tensor, gather: Gather | None = None) -> Tensor:
    """For every row the mean of G over the rows of all *other* episodes: a baseline from the batch itself.

    It does not depend on the row's own actions, so it leaves the mean of the gradient where it is. A mean that includes
    the row's own episode would shrink it.

    Args:
        returns: `[B]` G.
        episodes: `[B]` int64, the episode of every row, numbered from 0.
        gather: brings the tensors of all ranks together, each of which has episodes of its own.

    Returns:
        `[B]`; 0 if there is only one episode.
    """
    sums = torch.zeros(len(returns), dtype=returns.dtype, device=returns.device).index_add_(0, episodes, returns)
    counts = torch.bincount(episodes, minlength=len(returns)).to(returns.dtype)
    total, count = sums.sum(), counts.sum()
    if gather is not None:
        total, count = gather(torch.stack([total, count])).sum(0)
    return ((total - sums) / (count - counts).clamp(min=1.0))[episodes]


def standardize(x: Tensor, moments: Moments | None = None) -> Tensor:
    """`[B]` shifted to mean 0 and scaled to standard deviation 1; a single number has neither and stays.

    Args:
        x: `[B]`.
        moments: number, mean and biased variance of what `x` is a part of, if it is one.
    """
    if moments is None:
        return (x - x.mean()) / (x.std() + 1e-8) if len(x) > 1 else x
    count, mean, var = torch.as_tensor(moments[0]), *moments[1:]
    std = (var * count / (count - 1).clamp(min=1.0)).sqrt()
    return torch.where(count > 1, (x - mean) / (std + 1e-8), x).to(x.dtype)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), exact at truncations.

        δ_t = r_t + γ V(s_{t+1}) (1 − terminated_t) − V(s_t)
        A_t = δ_t + γ λ (1 − done_t) A_{t+1}

    Args:
        rewards: `[T, N]`.
        values: `[T, N]` V(s_t).
        next_values: `[T, N]` V of the state that followed; at a truncation, of the episode's final observation.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool; rows that are not valid get advantage 0. They follow the end of an episode, where the
            recursion has stopped already.
        gamma: discount factor γ in [0, 1].
        gae_lambda: λ in [0, 1]; 0 is the TD error, 1 the Monte-Carlo return minus the baseline.

    Returns:
        Advantages `[T, N]`. The λ-return, the critic's target, is advantages + values.

    Raises:
        ValueError: if the shapes differ.
    """
    arrays: tuple[Any, ...] = (rewards, values, next_values, terminated, truncated, valid)
    shapes = {x.shape for x in arrays}
    if len(shapes) != 1:
        raise ValueError(f"rewards, values and masks must share one shape [T, N], got {sorted(map(tuple, shapes))}")
    # Where NumPy does the same, its calls cost less.
    if values.device.type == "cpu" and torch.bfloat16 not in (rewards.dtype, values.dtype):
        arrays = tuple(x.numpy() for x in arrays)
    r, v, next_v, ends, cut, ok = arrays
    deltas = (r + gamma * next_v * ~ends - v) * ok
    goes_on = ok & ~(ends | cut)
    return _sums_of_what_follows(torch.as_tensor(deltas), gamma * gae_lambda * torch.as_tensor(goes_on))


def _sums_of_what_follows(terms: Tensor, decays: Tensor) -> Tensor:
    """S_t = x_t + d_t S_{t+1} from the last row back, for `[T, N]` terms x, which the sums replace, and decays d."""
    sums, factors = terms.unbind(), decays.unbind()
    for t in reversed(range(len(terms) - 1)):
        sums[t].addcmul_(factors[t], sums[t + 1])
    return terms
