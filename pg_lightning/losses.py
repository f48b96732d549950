"""Losses: pure functions from `[B]` tensors to a scalar that is minimised. The sign is flipped inside."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def _same_shape(**tensors: Tensor) -> None:
    """Refuses `[B]` against `[B, 1]`, which would silently broadcast to `[B, B]`."""
    if len({tuple(t.shape) for t in tensors.values()}) != 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"expected one shape [B], got {shapes}")


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The loss whose gradient is the policy gradient (Williams 1992; Sutton & Barto 2018, eq. 13.5 to 13.8).

        L = −mean( A log π(a|s) ),   −∇L = mean( A ∇log π(a|s) )

    The theorem has a sum over each episode; this is the mean over B steps: the same direction, but the size of a step
    does not depend on the length of episodes. B / episodes times −∇L is the estimate of ∇J itself.

    Args:
        log_probs: `[B]` log π(a|s), with gradient.
        advantages: `[B]` A, or G, or another estimate; without gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(log_probs=log_probs, advantages=advantages)
    return -(advantages * log_probs).mean()


def clipped_surrogate_loss(
    log_ratio: Tensor, advantages: Tensor, clip_range: float | Tensor, clip_range_high: float | None = None
) -> Tensor:
    """PPO's pessimistic surrogate (Schulman et al. 2017, eq. 7).

        L = −mean( min( r A, clip(r, 1 − ε, 1 + ε) A ) ),   r = π(a|s) / π_old(a|s) = exp(log_ratio)

    Args:
        log_ratio: `[B]` log π(a|s) − log π_old(a|s); the gradient flows through the first term.
        advantages: `[B]`.
        clip_range: ε.
        clip_range_high: another ε for the upper bound (Yu et al. 2025, DAPO, §3.1).

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(log_ratio=log_ratio, advantages=advantages)
    # Beyond e^20 the ratio times the zero gradient of the clip could overflow to NaN.
    ratio = log_ratio.clamp(max=20.0).exp()
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = ratio.clamp(1 - clip_range, 1 + high)  # type: ignore[arg-type]
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def kl_penalized_loss(log_ratio: Tensor, advantages: Tensor, beta: Tensor | float) -> Tensor:
    """The surrogate with a penalty on the distance from the old policy (Schulman et al. 2017, eq. 8).

        L = −mean( r A ) + β KL(π_old ‖ π),   KL by `approximate_kl`, whose gradient is unbiased for samples of π_old

    Args:
        log_ratio: `[B]` log π(a|s) − log π_old(a|s).
        advantages: `[B]`.
        beta: β.

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(log_ratio=log_ratio, advantages=advantages)
    return -(log_ratio.clamp(max=20.0).exp() * advantages).mean() + beta * approximate_kl(log_ratio)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Mean squared error of the critic, mean( (V(s) − G)² ).

    Raises:
        ValueError: if the shapes of `values` and `returns`, both `[B]`, differ.
    """
    _same_shape(values=values, returns=returns)
    return (values - returns).square().mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """The critic's loss with its change clipped, as in the code behind the PPO paper.

        V_clip = V_old + clip(V − V_old, −ε, ε);   L = mean( max( (V − G)², (V_clip − G)² ) )

    Args:
        values: `[B]` V(s).
        old_values: `[B]` V(s) before the update.
        returns: `[B]` targets G.
        clip_range: ε, in units of the return.

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(values=values, old_values=old_values, returns=returns)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()).mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimate of KL(π_old ‖ π) from samples of π_old: mean( (r − 1) − log r ), unbiased and never negative.

    The estimator k3 of Schulman, "Approximating KL Divergence" (2020).
    """
    return (log_ratio.expm1() - log_ratio).mean()


def kl_estimate(log_ratio: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimates KL(π ‖ π_ref) from each action of π (Schulman, "Approximating KL Divergence", 2020), `[B]`.

        k1 = log π − log π_ref,   k2 = k1² / 2,   k3 = e^−k1 − 1 + k1

    The mean of k1 and of k3 is the divergence; that of k2 is close to it if it is small. As a *loss* they differ: the
    mean gradient of k1 is 0, of k2 that of KL(π ‖ π_ref), of k3 that of KL(π_ref ‖ π), both of a single action.

    Args:
        log_ratio: `[B]` log π(a|s) − log π_ref(a|s).
        estimator: `k1`, `k2` or `k3`.
    """
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            return (-log_ratio).clamp(max=20.0).expm1() + log_ratio
