"""Ends training that has diverged, with one line, before a callback or a checkpoint sees the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pg_lightning.errors import UserError

WATCHED = ("train/policy_loss", "train/value_loss", "train/grad_norm")


@torch.no_grad()
def refuse_divergence(
    metrics: dict[str, Tensor],
    groups: Mapping[str, Sequence[Tensor]],
    env_steps: int,
    world_size: int = 1,
    is_scaled: bool = False,
) -> None:
    """Raises if an update was not finite; synchronises with the device once.

    Args:
        metrics: of the update.
        groups: the parameters of the actor and of the critic, by these names.
        env_steps: before the update.
        world_size: with several ranks only the norm of the gradient is checked. On a rank with no valid rows the losses
            are NaN by construction; any rank's non-finite value shows in the all-reduced gradient.
        is_scaled: 16-mixed skips a step whose gradient overflows and lowers the scale, which is not an error.

    Raises:
        UserError: naming the first of losses, gradient and parameters that is not finite.
    """
    watched = WATCHED if world_size == 1 else WATCHED[-1:]
    values = {name: metrics[name] for name in watched if name in metrics}
    for name, parameters in groups.items():
        sums = [parameter.sum() for parameter in parameters]
        values[f"the sum of the {name}'s parameters"] = sums[0] if len(sums) == 1 else torch.stack(sums).sum()
    found = torch.stack([*values.values()]).tolist()
    if math.isfinite(sum(found)):
        return
    for name, value in zip(values, found, strict=True):
        if not math.isfinite(value) and not (is_scaled and name == "train/grad_norm"):
            raise UserError(
                f"model.lr: training has diverged: in the update at env step {env_steps} {name} is {value}; "
                "lower model.lr or model.max_grad_norm, or set model.scale_rewards; saved checkpoints predate this"
            )
