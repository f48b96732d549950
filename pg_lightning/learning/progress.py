"""The progress of a training: env steps, updates, replaced environments, and the remaining share of the budget."""

from __future__ import annotations

from typing import Any

from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout


class Progress:
    """The counters of a training.

    Args:
        total_steps: the budget in env steps of all ranks.

    Attributes:
        env_steps: so far, of all ranks.
        updates: number of updates: the version of the policy.
        previous: the version of the policy before the last update, which collected the rollout of `data.overlap`.
        restarts: environments of this rank replaced since training started or was resumed.
        restarts_at_resume: of all ranks, before that.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.env_steps = 0
        self.updates = 0
        self.previous = 0
        self.restarts = 0
        self.restarts_at_resume = 0

    @property
    def remaining(self) -> float:
        """Remaining share of the budget, 1 to 0; schedules are functions of it."""
        return max(0.0, 1.0 - self.env_steps / self.total_steps)

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up."""
        return self.env_steps >= self.total_steps

    def start(self, is_stopping: bool = False) -> None:
        """Starts training.

        Args:
            is_stopping: whether the Trainer stops before the first update for another reason.

        Raises:
            UserError: if the budget is already used up.
        """
        if self.is_over and not is_stopping:
            raise UserError(
                f"data.total_steps: the checkpoint has trained for {self.env_steps} env steps already; "
                f"set --data.total_steps above that (it is {self.total_steps})"
            )
        self.restarts = 0

    def expect(self, rollout: Rollout, any_lag: bool = False) -> None:
        """Refuses a rollout of a wrong policy version, and stores the current version.

        Args:
            rollout: the rollout to learn from.
            any_lag: the algorithm corrects for every older policy whose log-probabilities are in the rollout.

        Raises:
            RuntimeError: if it was collected too early.
        """
        # Collection of a rollout with log-probabilities started when the previous rollout was returned.
        expected = self.updates if rollout.log_probs is None else self.previous
        is_corrected = any_lag and rollout.log_probs is not None and rollout.policy_version <= self.updates
        if rollout.policy_version != expected and not is_corrected:
            raise RuntimeError(
                f"off-policy data: the rollout was collected by policy {rollout.policy_version}, this is policy "
                f"{self.updates}, to learn from policy {expected}; rollouts must not be prefetched (give the "
                "dataset a length)"
            )
        self.previous = self.updates

    def is_logged(self, env_steps: int, every: int) -> bool:
        """Whether the next update, with `env_steps` env steps, is logged: every `every` updates, and the last."""
        return self.env_steps + env_steps >= self.total_steps or bool(every and (self.updates + 1) % every == 0)

    def advance(self, env_steps: int, restarts: int | None) -> None:
        """Counts an update with `env_steps` env steps of all ranks; `restarts` of this rank so far."""
        self.updates += 1
        self.env_steps += env_steps
        if restarts is not None:
            self.restarts = restarts

    def state_dict(self, restarts: int) -> dict[str, int]:
        """The counters for the checkpoint, with the restarts of all ranks."""
        return {
            "env_steps": self.env_steps,
            "env_restarts": self.restarts_at_resume + restarts,
            "policy_version": self.updates,
            "previous_version": self.previous,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counters."""
        self.env_steps = state["env_steps"]
        self.updates = state["policy_version"]
        self.previous = state.get("previous_version", self.updates)
        self.restarts_at_resume = state.get("env_restarts", 0)
