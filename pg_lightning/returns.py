"""Targets: pure functions from rewards and values, time first, `[T, N]`.

Two masks with different jobs run through this file. `terminated` stops the *bootstrap*: nothing follows the state, so
its value is zero. `done` (terminated or truncated) stops the *recursion*: the next row belongs to another episode.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated, valid)}
    if len(shapes) != 1:
        raise ValueError(f"rewards, values and masks must share one shape [T, N], got {sorted(shapes)}")
    deltas = (rewards + gamma * next_values * ~terminated - values) * valid
    decays = gamma * gae_lambda * (valid & ~(terminated | truncated))
    advantage = torch.zeros_like(deltas[0])
    advantages = []
    for delta, decay in zip(deltas.flip(0).unbind(), decays.flip(0).unbind(), strict=True):
        advantage = torch.addcmul(delta, decay, advantage)
        advantages.append(advantage)
    return torch.stack(advantages).flip(0)
