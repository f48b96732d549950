"""Targets: pure functions from rewards and values, time first, `[T, N]`.

This file uses two masks for different purposes. `terminated` stops the *bootstrap*: no reward follows the state, so
its value is zero. `done` (terminated or truncated) stops the *recursion*: the next row belongs to another episode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad


def reward_to_go(rewards: Tensor, done: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """Discounted return from each step to the end of its episode (Sutton & Barto 2018, eq. 3.8 and 3.9).

        G_t = r_t + γ (1 − done_t) G_{t+1}

    Args:
        rewards: `[T, N]`.
        done: `[T, N]` bool, the episode is over.
        valid: `[T, N]` bool; rows that are not get return 0.
        gamma: discount factor γ in [0, 1].

    Returns:
        Returns `[T, N]`. For episodes that do not end within the T rows, later rewards are missing: see
        `unfinished`.
    """
    return discounted_sums(rewards * valid, gamma, valid & ~done)


def unfinished(done: Tensor, valid: Tensor) -> Tensor:
    """`[T, N]` bool; valid rows whose episode does not end within the T rows, so that their return is unknown."""
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


def _of_one_rank(x: Tensor) -> Tensor:
    return x.unsqueeze(0)


def mean_of_other_episodes(
    returns: Tensor, episodes: Tensor, all_gather: Callable[[Tensor], Tensor] = _of_one_rank
) -> Tensor:
    """For every row the mean of G over the rows of all *other* episodes: a baseline from the batch itself.

    It does not depend on the row's own actions, so it does not change the mean of the gradient. A mean that includes
    the row's own episode would shrink it.

    Args:
        returns: `[B]` G.
        episodes: `[B]` int64, the episode of every row, numbered from 0.
        all_gather: `[*shape]` to `[K, *shape]` of all ranks, each with different episodes; by default K = 1.

    Returns:
        `[B]`; 0 if there is only one episode.
    """
    sums = torch.zeros(len(returns), dtype=returns.dtype, device=returns.device).index_add_(0, episodes, returns)
    counts = torch.bincount(episodes, minlength=len(returns)).to(returns.dtype)
    total, count = all_gather(torch.stack([sums.sum(), counts.sum()])).sum(0)
    return ((total - sums) / (count - counts).clamp(min=1.0))[episodes]


def group_moments(returns: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and standard deviation (of a sample, 0 of one) of the returns of each column's group, `[N]` each.

    Args:
        returns: `[N]` of one episode per column.
        groups: `[N]` int64; columns with the same number began in the same state.
    """
    _, index = torch.unique(groups, return_inverse=True)
    counts = torch.bincount(index).to(returns.dtype)

    def sums(x: Tensor) -> Tensor:
        return torch.zeros_like(counts).index_add_(0, index, x)[index]

    count = counts[index]
    mean = sums(returns) / count
    return count, mean, (sums((returns - mean).square()) / (count - 1).clamp(min=1)).sqrt()


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """The return of each column minus the mean of the others of its group (Kool et al. 2019).

        A_i = R_i − 1/(K − 1) Σ_{j≠i} R_j = K/(K − 1) (R_i − R̄)

    The mean of the others does not depend on the actions of column i, so the gradient stays unbiased.

    Args:
        returns: `[N]` of one episode per column.
        groups: `[N]` int64; columns with the same number began in the same state.

    Returns:
        `[N]`; the return itself in a group of one, which has no baseline.
    """
    count, mean, _ = group_moments(returns, groups)
    return torch.where(count > 1, count / (count - 1).clamp(min=1) * (returns - mean), returns)


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
        next_values: `[T, N]` V of the next state; at a truncation, of the episode's final observation.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool; rows that are not valid get advantage 0. They come after the end of an episode, where
            the recursion has already stopped.
        gamma: discount factor γ in [0, 1].
        gae_lambda: λ in [0, 1]; 0 is the TD error, 1 the Monte-Carlo return minus the baseline.

    Returns:
        Advantages `[T, N]`. The λ-return, the critic's target, is advantages + values.

    Raises:
        ValueError: if the shapes differ.
    """
    shapes = {x.shape for x in (rewards, values, next_values, terminated, truncated, valid)}
    if len(shapes) != 1:
        raise ValueError(f"rewards, values and masks must share one shape [T, N], got {sorted(map(tuple, shapes))}")
    deltas = (rewards + gamma * next_values * ~terminated - values) * valid
    goes_on = valid & ~(terminated | truncated)
    return discounted_sums(deltas, gamma * gae_lambda, goes_on)


def discounted_sums(terms: Tensor, discount: float | Tensor, goes_on: Tensor) -> Tensor:
    """S_t = x_t + d_t S_{t+1} within an episode, x_t in its last row.

    Args:
        terms: `[T, N]` x, which may be overwritten.
        discount: d, one for all rows or `[T, N]`.
        goes_on: `[T, N]` bool; the next row belongs to the same episode.
    """
    factors = discount * goes_on.to(terms.dtype)
    if torch.compiler.is_compiling():
        return _sums_by_doubling(terms, factors)
    rows, factor = terms.unbind(), factors.unbind()
    for t in reversed(range(len(terms) - 1)):
        rows[t].addcmul_(factor[t], rows[t + 1])
    return terms


def _sums_by_doubling(sums: Tensor, factors: Tensor) -> Tensor:
    """`discounted_sums` in log₂ T operations on all rows (Hillis & Steele 1986), for compiled code."""
    ahead = 1
    while ahead < len(sums):
        padding = [0, 0] * (sums.dim() - 1) + [0, ahead]
        later_sums, later_factors = (pad(x[ahead:], padding) for x in (sums, factors))
        sums, factors = sums + factors * later_sums, factors * later_factors
        ahead *= 2
    return sums


def vtrace(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    log_ratios: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float = 1.0,
    max_rho: float = 1.0,
    max_c: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace targets and advantages for actions of an older policy μ (Espeholt et al. 2018, §4.1 and remark 2).

        ρ_t = min(ρ̄, π/μ),   c_t = λ min(c̄, π/μ)
        v_t = V(s_t) + δ_t + γ c_t (v_{t+1} − V(s_{t+1})),   δ_t = ρ_t (r_t + γ V(s_{t+1}) − V(s_t))
        A_t = ρ_t (r_t + γ v_{t+1} − V(s_t))

    At the end of an episode v_{t+1} is V of its final observation, 0 where it terminated. On-policy and with λ = 1, v
    is the n-step return and A the n-step advantage.

    Args:
        rewards: `[T, N]`.
        values: `[T, N]` V(s_t).
        next_values: `[T, N]` V of the next state; at a truncation, of the episode's final observation.
        log_ratios: `[T, N]` log π(a|s) − log μ(a|s).
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool; rows that are not valid get advantage 0.
        gamma: discount factor γ in [0, 1].
        gae_lambda: λ in [0, 1].
        max_rho: ρ̄, which determines the policy that the critic evaluates; `inf` for π itself.
        max_c: c̄, which bounds how far a TD error propagates backwards.

    Returns:
        Advantages and the critic's targets v, `[T, N]` each.

    Raises:
        ValueError: if the shapes differ.
    """
    shapes = {x.shape for x in (rewards, values, next_values, log_ratios, terminated, truncated, valid)}
    if len(shapes) != 1:
        raise ValueError(
            f"rewards, values, ratios and masks must share one shape [T, N], got {sorted(map(tuple, shapes))}"
        )
    ratios = log_ratios.exp()
    rho, c = ratios.clamp(max=max_rho), gae_lambda * ratios.clamp(max=max_c)
    goes_on = valid & ~(terminated | truncated)
    deltas = rho * (rewards + gamma * next_values * ~terminated - values) * valid
    targets = values + discounted_sums(deltas, gamma * c, goes_on)
    next_targets = next_values.clone()
    next_targets[:-1] = torch.where(goes_on[:-1], targets[1:], next_values[:-1])
    return rho * (rewards + gamma * next_targets * ~terminated - values) * valid, targets
