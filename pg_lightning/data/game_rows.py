"""Rows of games in which the policy acts for both seats: recorded turn by turn, and converted to rows of each seat.

A transition goes from a turn of a seat to the *next turn of the same seat*. Its reward is that of all moves in between,
in the view of this seat, and the value that follows it is of this seat's own view. Taking the next turn instead, which
is the opponent's, would add the opponent's value with the wrong sign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pg_lightning.data.episodes import GameEpisodes
from pg_lightning.data.host_rows import HostRows
from pg_lightning.envs.contract import Environments, GameEnvironments, VectorStep
from pg_lightning.rollout import Rollout


class GameRows(HostRows):
    """Rows of G games, of which the first `num_both` are played by the policy on both seats.

    The rollout has G + num_both columns: one of each game with the rows of its seat 0 or of its only learner, then
    one of each of the first games with the rows of its seat 1. A column that has fewer rows than others ends with
    invalid ones.

    The last turn of each game that is played on both seats is not learned from: its result is not known before the
    other seat has moved. It would be if the game ended there, but keeping only such turns would favour them.

    Args:
        env: the games.
        num_steps: turns of each game; the minimum with whole episodes.
        whole_episodes: see `HostRows`.

    Attributes:
        episodes: of each column.
    """

    episodes: GameEpisodes

    def __init__(self, env: Environments, num_steps: int, whole_episodes: bool, double: bool = False) -> None:
        super().__init__(env, num_steps, whole_episodes, double)
        self._games = cast(GameEnvironments, env)
        self._num_both = env.capabilities.num_both
        self.num_columns = self.num_envs + self._num_both
        self.episodes = GameEpisodes(self.num_envs, self._num_both)
        self._all = np.arange(self.num_envs)
        self._is_both = self._all < self._num_both

    def show(self, obs: np.ndarray, mask: np.ndarray | None) -> None:
        """See `HostRows`."""
        super().show(obs, mask)
        self._look()

    def begin(self) -> None:
        """See `HostRows`."""
        super().begin()
        self._movers: list[np.ndarray] = []
        self._pending = np.full((2, self.num_envs), -1)  # the last row of each seat whose result is not complete

    def add(self, step: VectorStep[np.ndarray]) -> None:
        """See `HostRows`; also adds the step's result to the last turn of the seat that did not move."""
        assert step.seat_rewards is not None
        t, mover, playing = self.t, self.episodes.seat, self.episodes.playing.copy()
        self._movers.append(mover)
        early = self.episodes.early_rewards()
        super().add(step)
        self._rewards[t] += early * playing
        if step.done.any() or step.seat_rewards.any():
            waiting = self._pending[1 - mover, self._all]
            of = np.flatnonzero(self._is_both & playing & (waiting >= 0))
            self._rewards[waiting[of], of] += step.seat_rewards[of, 1 - mover[of]]
            ended = of[step.done[of]]
            self._terminated[waiting[ended], ended] = True
        self._pending[mover, self._all] = t
        self._pending[:, step.done] = -1
        self._look()

    def on_turn(self, memory: Tensor) -> Tensor:
        """See `HostRows`; memory is `[G + num_both, S]`."""
        return memory[self._columns(self.episodes.seat)]

    def carried(self, memory: Tensor, state: Tensor, begins: np.ndarray) -> Tensor:
        """See `HostRows`; memory is `[G + num_both, S]`."""
        memory = memory.clone()
        memory[self._columns(self._movers[-1])] = state
        memory[np.flatnonzero(np.concatenate([begins, begins[: self._num_both]]))] = 0.0
        return memory

    def rollout(self, policy_version: int, state: Tensor | None, restarts: int | None) -> Rollout:
        """See `HostRows`."""
        turns = super().rollout(policy_version, state, restarts)
        T = len(turns.rewards)
        movers = np.stack(self._movers)
        is_kept = turns.valid.numpy().copy()
        if not self.whole_episodes:
            is_kept[T - 1, self._is_both] = False
            waiting = self._pending[1 - self.episodes.seat, self._all]
            of = np.flatnonzero(self._is_both & (waiting >= 0))
            is_kept[waiting[of], of] = False
        # The place of each turn among those of its seat, and that of the turn that comes next.
        counts = np.stack([(movers == seat).cumsum(0) for seat in (0, 1)])
        place = counts[movers, np.arange(T)[:, None], self._all] - 1
        R = int((place + 1)[is_kept].max(initial=1))
        column = self._columns(movers)

        def of_seats(x: Tensor, rows: int = R, empty: float = 0) -> Tensor:
            result = x.new_full((rows, self.num_columns, *x.shape[2:]), empty)
            fits = place < rows
            result[place[fits], column[fits]] = x[:T][fits]
            return result

        obs = of_seats(turns.obs, R + 1)
        now = counts[self.episodes.seat, T - 1, self._all]
        fits = now <= R
        obs[now[fits], self._columns(self.episodes.seat)[fits]] = turns.obs[T, fits]
        return replace(
            turns,
            obs=obs,
            actions=of_seats(turns.actions),
            rewards=of_seats(turns.rewards),
            terminated=of_seats(turns.terminated),
            truncated=of_seats(turns.truncated),
            valid=of_seats(torch.from_numpy(is_kept)),
            timesteps=of_seats(turns.timesteps),
            env_steps=int(is_kept.sum()),
            action_mask=None if turns.action_mask is None else of_seats(turns.action_mask, empty=1),
        )

    def _look(self) -> None:
        self.episodes.look(self._games.seats)

    def _columns(self, seats: np.ndarray) -> np.ndarray:
        return self._all + self.num_envs * (seats == 1)
