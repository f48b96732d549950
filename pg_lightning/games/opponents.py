"""Opponents: at random, a policy, a class of your own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.games.contract import Opponent
from pg_lightning.policies import Policy


def require_legal(opponent: Opponent, masks: np.ndarray, moves: np.ndarray) -> None:
    """Refuses an illegal move of an opponent.

    Args:
        opponent: for the message.
        masks: `[K, A]` bool, the legal actions.
        moves: `[K]` of the opponent.

    Raises:
        UserError: naming the opponent, the move and the legal ones.
    """
    legal = (moves >= 0) & (moves < masks.shape[1])
    legal[legal] = masks[legal, moves[legal]]
    if not legal.all():
        raise UserError(
            f"data.self_play: opponent {opponent.name} played the illegal move {moves[~legal][0]}; legal were "
            f"{', '.join(map(str, np.flatnonzero(masks[~legal][0])))}"
        )


class RandomOpponent:
    """Draws legal moves with equal probabilities."""

    def __init__(self, name: str = "random") -> None:
        self.name = name

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """See `Opponent`."""

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """See `Opponent`."""
        return torch.multinomial(torch.from_numpy(masks).float(), 1, generator=generator)[:, 0].numpy()

    def close(self) -> None:
        """See `Opponent`."""


class PolicyOpponent:
    """A policy that does not learn and samples its moves: a snapshot of the learner, or one from a checkpoint.

    Args:
        name: for metrics and messages.
        policy: on the CPU.
        num_games: G, for the state of a recurrent policy.
    """

    def __init__(self, name: str, policy: Policy, num_games: int) -> None:
        self.name, self.policy = name, policy
        self.state: Tensor | None = policy.initial_state(num_games)

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """See `Opponent`."""
        if self.state is not None:
            self.state[which] = 0.0

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """See `Opponent`; all games in one forward pass."""
        seen, mask = torch.from_numpy(obs), torch.from_numpy(masks)
        state = None if self.state is None else self.state[which]
        with torch.inference_mode():
            actions, state = self.policy.sample(seen, generator, mask, state)
            chosen = self.policy.env_actions(actions).numpy()
        if self.state is not None and state is not None:
            self.state[which] = state
        return chosen

    def close(self) -> None:
        """See `Opponent`."""
