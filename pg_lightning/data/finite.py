"""Checks that collected data is finite, and reports the source of non-finite values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from pg_lightning.errors import UserError


def check_finite(
    obs: np.ndarray,
    rewards: np.ndarray,
    finals: Iterable[tuple[np.ndarray, int]],
    actions: Tensor,
    num_steps: int,
) -> None:
    """Refuses non-finite values in t rows: a policy that learns from NaN becomes NaN.

    Args:
        obs: `[t + 1, N, *obs]`.
        rewards: `[t, N]`.
        finals: final observations, each with its row as `t * N + n`.
        actions: `[t, N, *action]`, or with one more row if its step failed.
        num_steps: rows of a whole rollout, for the message.

    Raises:
        UserError: if an observation, a reward or an action is not finite, naming the environment and the step.
    """
    if actions.is_floating_point() and not actions.isfinite().all():
        t, n = (~actions.isfinite()).nonzero()[0, :2].tolist()
        if np.isfinite(obs[: t + 1, n]).all():  # else the action is a consequence of the observation
            raise UserError(
                f"model.lr: training has diverged: the policy gave a non-finite action to env {n} at step {t} of a "
                f"rollout of {num_steps}; lower model.lr or model.max_grad_norm, or set model.normalize_obs"
            )
    for what, array in (("observation", obs), ("reward", rewards)):
        finite = np.isfinite(array)
        if not finite.all():
            t, n = np.argwhere(~finite.reshape(*array.shape[:2], -1).all(-1))[0]
            # The observation in row t + 1 is the result of step t.
            raise _not_finite(what, max(0, int(t) - 1) if array is obs else int(t), int(n), num_steps)
    for final, row in finals:
        if not np.isfinite(final).all():
            raise _not_finite("final observation", row // obs.shape[1], row % obs.shape[1], num_steps)


def _not_finite(what: str, t: int, n: int, num_steps: int) -> UserError:
    return UserError(
        f"data.env_id: the environment gave a non-finite {what} in env {n} at step {t} of a rollout of "
        f"{num_steps}; nothing was learned from it"
    )
