"""A game whose turns, rewards and end follow from its seed, and which writes down what happens in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pg_lightning.rollout import Rollout


class Turn(NamedTuple):
    """A move: where, in which game (by its number there), by which seat, with what it saw and got."""

    place: int
    game: int
    seat: int
    obs: tuple[float, ...]
    action: int
    rewards: tuple[float, float]
    ends: bool


class ScriptedGames:
    """See `Games`. Without `alternates`, a seat may have several turns in a row."""

    def __init__(self, num_games: int, alternates: bool = True, can_replay: bool = True) -> None:
        self.can_replay = can_replay
        self.num_games, self.alternates = num_games, alternates
        self.observation_space = spaces.Box(0, 2**20, (4,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.obs = np.zeros((num_games, 4), np.float32)
        self.masks = np.ones((num_games, 3), bool)
        self.turn = np.zeros(num_games, np.int64)
        self.rewards = np.zeros((num_games, 2))
        self.over = np.zeros(num_games, bool)
        self.turns: list[Turn] = []
        self.begun = [0] * num_games
        self._random = [np.random.default_rng(0)] * num_games
        self._left = [0] * num_games
        self._count = [0] * num_games

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        for n, seed in zip(which.tolist(), seeds, strict=True):
            self._random[n] = np.random.default_rng(seed)
            self._left[n], self._count[n] = int(self._random[n].integers(1, 7)), 0
            self.turn[n], self.over[n], self.rewards[n] = 0, False, 0.0
            self.begun[n] += 1
            self._show(n)

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        for n, action in zip(which.tolist(), actions.tolist(), strict=True):
            assert not self.over[n]
            assert self.masks[n, action]
            random, seat = self._random[n], int(self.turn[n])
            self._left[n] -= 1
            self._count[n] += 1
            reward = float(random.integers(-5, 6))
            self.rewards[n] = reward, -reward
            self.over[n] = self._left[n] == 0
            seen = tuple(self.obs[n].tolist())
            self.turns.append(Turn(n, self.begun[n], seat, seen, action, (reward, -reward), bool(self.over[n])))
            self.turn[n] = 1 - seat if self.alternates else random.integers(2)
            self._show(n)

    def text(self, game: int, seat: int | None = None) -> str:
        return str(self.obs[game])

    def reseed(self, seed: int) -> None:
        pass

    def close(self) -> None:
        pass

    def _show(self, n: int) -> None:
        self.obs[n] = n, self.begun[n], self._count[n], self.turn[n]
        self.masks[n] = True
        self.masks[n, (n + self._count[n]) % 3] = False


class Transition(NamedTuple):
    """From a turn of a seat to its next one, or to the end of the game."""

    obs: tuple[float, ...]
    action: int
    reward: float
    terminated: bool
    timestep: int
    next_obs: tuple[float, ...] | None


def transitions(turns: Sequence[Turn]) -> dict[tuple[float, ...], Transition]:
    """The transitions of both seats in all games, by their observation, which is unique."""
    found: dict[tuple[float, ...], Transition] = {}
    games: dict[tuple[int, int], list[Turn]] = {}
    for turn in turns:
        games.setdefault((turn.place, turn.game), []).append(turn)
    for played in games.values():
        for seat in (0, 1):
            own = [i for i, turn in enumerate(played) if turn.seat == seat]
            for k, i in enumerate(own):
                stop = own[k + 1] if k + 1 < len(own) else len(played)
                begin = i if k else 0  # the first also has what came before it
                reward = sum(turn.rewards[seat] for turn in played[begin:stop])
                over = k + 1 == len(own) and played[-1].ends
                after = played[own[k + 1]].obs if k + 1 < len(own) else None
                found[played[i].obs] = Transition(played[i].obs, played[i].action, reward, over, k, after)
    return found


def rows_of(rollout: Rollout) -> list[Transition]:
    """The valid rows of a rollout; the next observation is None where the game ended."""
    rows = []
    for t, n in rollout.valid.nonzero().tolist():
        over = bool(rollout.terminated[t, n])
        rows.append(
            Transition(
                tuple(rollout.obs[t, n].tolist()),
                int(rollout.actions[t, n]),
                rollout.rewards[t, n].item(),
                over,
                int(rollout.timesteps[t, n]),
                None if over else tuple(rollout.obs[t + 1, n].tolist()),
            )
        )
    return rows


def legal(obs: Tensor, mask: Tensor) -> Tensor:
    """Some legal action that depends on the observation."""
    scores = mask.double() * (1 + torch.rand(mask.shape, generator=torch.Generator().manual_seed(int(obs.sum()))))
    return scores.argmax(1)


class PlainGo:
    """Go without captures: see `Games`. Two passes in a row, or a full board, are a draw."""

    can_replay = True

    def __init__(self, num_games: int, size: int) -> None:
        self.num_games = num_games
        points = size**2
        self.observation_space = spaces.Box(0, 1, (points,), np.uint8)
        self.action_space = spaces.Discrete(points + 1)
        self.obs = np.zeros((num_games, points), np.uint8)
        self.masks = np.ones((num_games, points + 1), bool)
        self.turn = np.zeros(num_games, np.int64)
        self.rewards = np.zeros((num_games, 2))
        self.over = np.zeros(num_games, bool)
        self._passes = np.zeros(num_games, np.int64)

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        self.masks[which], self.turn[which], self.over[which], self._passes[which] = True, 0, False, 0

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        assert self.masks[which, actions].all()
        passes = actions == self.masks.shape[1] - 1
        self.masks[which[~passes], actions[~passes]] = False
        self._passes[which] = np.where(passes, self._passes[which] + 1, 0)
        self.over[which] = (self._passes[which] == 2) | (self.masks[which].sum(1) == 1)
        self.turn[which] = 1 - self.turn[which]

    def text(self, game: int, seat: int | None = None) -> str:
        return str(self.masks[game])

    def reseed(self, seed: int) -> None:
        pass

    def close(self) -> None:
        pass
