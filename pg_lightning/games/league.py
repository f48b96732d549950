"""The opponents of training: those of the config, and snapshots of the policy that join as it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from pg_lightning.checkpoint.values import Damage, kind_of
from pg_lightning.envs.contract import EnvState
from pg_lightning.games.contract import BOTH, Matchup, Opponent
from pg_lightning.games.opponents import PolicyOpponent, RandomOpponent
from pg_lightning.games.settings import SelfPlay
from pg_lightning.policies import Policy
from pg_lightning.policies.description import described_policy, made_policy, made_space, require_fitting

FLOOR = 0.01  # the least weight of an opponent with `hard`, so that none is forgotten


class League:
    """Draws the opponent of each game, takes snapshots, and counts results.

    Args:
        settings: of self-play.
        fixed: the opponents that the config names.
        num_games: G.

    Attributes:
        num_both: number of games in which the learner plays both seats, the first ones.
        scores: by the name of the opponent, games, and the points of the learner in them: 1 for a win, 1/2 for a draw.
    """

    def __init__(self, settings: SelfPlay, fixed: Sequence[Opponent], num_games: int) -> None:
        self._settings, self._fixed, self._num_games = settings, list(fixed), num_games
        self.num_both = settings.num_both(num_games)
        self._snapshots: list[PolicyOpponent] = []
        self._nobody = RandomOpponent()
        self._steps_then = 0  # env steps at the last snapshot
        self._since = np.zeros(2)  # games and points since then
        self.scores: dict[str, np.ndarray] = {}

    def follow(self, policy: Policy, steps: int) -> None:
        """Takes a snapshot if one is due.

        Args:
            policy: of the learner.
            steps: env steps so far.
        """
        every = self._settings.snapshot_every_steps
        if every is None or steps - self._steps_then < every:
            return
        games, points = self._since
        if games and points / games < self._settings.snapshot_score:
            return
        self._steps_then, self._since = steps, np.zeros(2)
        copied: Any = deepcopy(policy)
        copied = copied.requires_grad_(False).to("cpu")
        self._snapshots.append(PolicyOpponent(f"snapshot-{steps}", copied, self._num_games))
        del self._snapshots[: -self._settings.max_snapshots]

    def draw(self, place: int, key: int, number: float) -> Matchup:
        """Opponent and seat of a new game in a place, for a uniform random number in [0, 1)."""
        if place < self.num_both:
            return Matchup(None, BOTH)
        return Matchup(self._drawn(2 * number % 1), int(number < 0.5))

    def count(self, opponent: Opponent, reward: float) -> None:
        """Counts a finished game with the learner's reward."""
        result = np.array([1.0, (np.sign(reward) + 1) / 2])
        self.scores[opponent.name] = self.scores.get(opponent.name, np.zeros(2)) + result
        self._since += result

    def state_dict(self, in_play: Sequence[Opponent]) -> EnvState:
        """The snapshots, also those that are only still in play, and the results."""
        extra = {x.name: x for x in in_play if isinstance(x, PolicyOpponent) and x not in self._fixed}
        memories = {x.name: x.state for x in self._fixed if isinstance(x, PolicyOpponent) and x.state is not None}
        kept = {x.name: x for x in self._snapshots}
        return {
            "steps": self._steps_then,
            "since": self._since.tolist(),
            "scores": {name: score.tolist() for name, score in self.scores.items()},
            "kept": list(kept),
            "memories": {name: state.clone() for name, state in memories.items()},  # of opponents of the config
            "snapshots": {
                name: {
                    "policy": described_policy(x.policy),  # type: ignore[arg-type]
                    "weights": _copied(x.policy.state_dict()),  # type: ignore[attr-defined]
                    "state": None if x.state is None else x.state.clone(),
                }
                for name, x in {**extra, **kept}.items()
            },
        }

    def load_state_dict(self, state: EnvState, spaces: tuple[Space[Any], Space[Any]]) -> dict[str, Opponent]:
        """Restores the result of `state_dict`, except recurrent states: see `restore_memories`.

        Args:
            state: see there; it must have passed `checkpoint.league.check_league`.
            spaces: of the game, for observations and actions.

        Returns:
            All opponents that may be in play, by name.

        Raises:
            Damage: if a snapshot has learned another game, or its weights do not fit it.
        """
        found: dict[str, PolicyOpponent] = {}
        for name, saved in state["snapshots"].items():
            arguments = saved["policy"].get("init_args", {})
            learned = tuple(made_space(arguments.get(f"{kind}_space")) for kind in ("observation", "action"))
            if learned != spaces:
                raise Damage(f"league.snapshots.{name}", "has learned another game")
            require_fitting(saved["policy"], saved["weights"])
            policy = made_policy(saved["policy"])
            policy.load_state_dict(saved["weights"])
            found[name] = PolicyOpponent(name, policy.requires_grad_(False), self._num_games)
        self._snapshots = [found[name] for name in state["kept"]]
        self._steps_then, self._since = state["steps"], np.array(state["since"])
        self.scores = {name: np.array(score) for name, score in state["scores"].items()}
        return {**{x.name: x for x in (self._nobody, *self._fixed)}, **found}

    def restore_memories(self, state: EnvState, known: Mapping[str, Opponent]) -> None:
        """Restores the recurrent states of opponents, after their games have begun.

        Args:
            state: see `state_dict`.
            known: the opponents by name.

        Raises:
            Damage: if one is not of its policy.
        """
        states = {name: saved["state"] for name, saved in state["snapshots"].items()} | state["memories"]
        for name, saved in states.items():
            opponent = known.get(name)
            if isinstance(opponent, PolicyOpponent):
                found, own = (None if x is None else x.shape for x in (saved, opponent.state))
                if found != own:
                    raise Damage(f"league: the state of {name}", f"is {kind_of(saved)}, which is not of its policy")
                opponent.state = None if saved is None else saved.clone()

    def close(self) -> None:
        """Closes the opponents."""
        for opponent in (*self._fixed, *self._snapshots):
            opponent.close()

    def _drawn(self, number: float) -> Opponent:
        known: list[Opponent] = [*self._fixed, *self._snapshots]
        if not known:
            return self._nobody
        shares = self._weights(known).cumsum()
        return known[int(np.searchsorted(shares, number * shares[-1], side="right"))]

    def _weights(self, known: Sequence[Opponent]) -> np.ndarray:
        if self._settings.sampling == "hard":
            games, points = np.array([self.scores.get(x.name, np.zeros(2)) for x in known]).T
            score = np.where(games > 0, points / np.maximum(games, 1), 0.0)
            return np.maximum((1 - score) ** 2, FLOOR)
        weights = np.ones(len(known))
        if self._settings.sampling == "recent":
            weights[len(self._fixed) :] = 0.5 ** np.arange(len(self._snapshots))[::-1]
        return weights


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.clone(x) for name, x in weights.items()}
