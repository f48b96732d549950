"""Two-player games of EnvPool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.errors import UserError, cause_of
from pg_lightning.games.text import position


class PoolGames:
    """G games of EnvPool.

    EnvPool draws at random who begins, and resets a game in the step after its end; its random numbers cannot be
    restored, so that a resumed run starts new games.

    Args:
        env_id: `Go9x9-v1`, `ConnectFour-v1`, ...
        num_games: G.
        env_kwargs: arguments of `envpool.make`.
        seed: of the pool.

    Raises:
        UserError: if EnvPool is not installed, or has no such game of two players with discrete actions.
    """

    can_replay = False

    def __init__(self, env_id: str, num_games: int, env_kwargs: EnvKwargs | None = None, seed: int = 0) -> None:
        try:
            import envpool
        except ImportError as error:
            raise UserError('data.backend: envpool is not installed; pip install "pg_lightning[envpool]"') from error
        self._envpool: Any = envpool
        self._arguments = {"num_threads": 1, **(env_kwargs or {}), "num_envs": num_games}
        self._env_id = env_id
        self._pool: Any = self._made(seed)
        self.num_games = num_games
        players = getattr(self._pool.spec.config, "max_num_players", 1)
        if players != 2:
            raise UserError(
                f"data.env_id: {env_id} has {players} player{'s' if players > 1 else ''}; data.self_play needs two"
            )
        board, self.action_space = self._pool.observation_space, self._pool.action_space
        if not isinstance(self.action_space, spaces.Discrete) or not board.shape:
            raise UserError(f"data.env_id: {env_id} has no discrete actions; data.self_play plays games that have")
        small = isinstance(board, spaces.MultiBinary)
        dtype: Any = np.uint8 if small else np.float32
        low, high = (0, 1) if small else (-np.inf, np.inf)
        self.observation_space = spaces.Box(low, high, board.shape, dtype)
        self.obs = np.zeros((num_games, *board.shape), dtype)
        self.masks = np.ones((num_games, int(self.action_space.n)), bool)
        self.turn = np.zeros(num_games, np.int64)
        self.rewards = np.zeros((num_games, 2))
        self.over = np.zeros(num_games, bool)
        self._first = np.zeros(num_games, np.int64)  # EnvPool's number of the player that began
        self._views: list[np.ndarray] = [np.zeros(0)] * num_games  # what both players see
        self._start()

    def reseed(self, seed: int) -> None:
        """See `Games`."""
        self._pool = self._made(seed)
        self._start()

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`. The seeds are not used; games that are not over are played to their end first."""
        unfinished = which[~(self._is_new | self.over)[which]]
        while len(unfinished):
            self.play(unfinished, self.masks[unfinished].argmax(1))
            unfinished = unfinished[~self.over[unfinished]]
        ended = which[~self._is_new[which]]
        self._send(ended, np.zeros(len(ended)))  # EnvPool ignores the first move after the end
        self._receive(len(ended), are_first=True)
        self._is_new[which] = True

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`."""
        self._is_new[which] = False
        self._send(which, actions)
        self._receive(len(which))

    def text(self, game: int, seat: int | None = None) -> str:
        """The board; in Kuhn's poker the cards, or that of a seat, and the chips of both; else a seat's observation."""
        first = int(self._first[game])
        views = [self._views[game][first], self._views[game][1 - first]]
        if self._env_id.startswith("KuhnPoker"):
            cards = ["JQK"[view[:3].argmax()] for view in views]
            chips = [1 + int(view[4]) for view in views]
            seen = f"{cards[0]} against {cards[1]}" if seat is None else f"{cards[seat]} against an unknown card"
            return f"{seen}: {chips[0]} and {chips[1]} chips"
        seat = int(self.turn[game]) if seat is None else seat
        return position(views[seat], seat, self.masks.shape[1])

    def close(self) -> None:
        """Ends the threads."""
        self._pool = None

    def _made(self, seed: int) -> Any:
        # One game per answer: EnvPool would wait for the moves of all games otherwise.
        arguments = {**self._arguments, "batch_size": 1, "seed": seed}
        try:
            return self._envpool.make_gymnasium(self._env_id, **arguments)
        except Exception as error:
            raise UserError(f"data.env_id: EnvPool cannot make {self._env_id!r}: {cause_of(error)}") from error

    def _start(self) -> None:
        self._pool.async_reset()
        self._receive(self.num_games, are_first=True)
        self._is_new = np.ones(self.num_games, bool)

    def _send(self, which: np.ndarray, actions: np.ndarray) -> None:
        self._pool.send(actions.astype(np.int32), which.astype(np.int32))

    def _receive(self, count: int, are_first: bool = False) -> None:
        for _ in range(count):
            obs, rewards, terminated, truncated, info = self._pool.recv()
            n, player = int(info["env_id"][0]), int(info["current_player"][0])
            if are_first:
                self._first[n] = player
            first = self._first[n]
            self.obs[n], self._views[n] = obs[player], obs
            self.masks[n] = info["legal_action_mask"][0]
            self.turn[n] = (player - first) % 2
            self.rewards[n] = rewards[first], rewards[1 - first]
            self.over[n] = (terminated | truncated)[0]
            if not self.over[n] and not self.masks[n].any():
                raise UserError(f"data.env_id: {self._env_id} forbids every action in a position; it cannot be played")
