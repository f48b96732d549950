"""Two-player games of PettingZoo (or others with its AEC interface), stepped one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from pg_lightning.envs import failures
from pg_lightning.errors import UserError, cause_of, one_line
from pg_lightning.games.text import position


class PettingZooGames:
    """G games with PettingZoo's agent-environment-cycle interface.

    Args:
        name: of the game, for errors.
        make: makes one game.
        num_games: G.

    Raises:
        UserError: if it has not two agents with the same spaces, discrete actions and observations that are arrays.
            While it is played: if the game is not zero-sum, forbids every action, or its code raises.
    """

    can_replay = True

    def __init__(self, name: str, make: Callable[[], Any], num_games: int) -> None:
        self._name = name
        try:
            self._games = [make() for _ in range(num_games)]
        except Exception as error:
            raise UserError(f"data.env_id: cannot make {name!r}: {cause_of(error)}") from error
        self.num_games = num_games
        game = self._games[0]
        if missing := [part for part in ("possible_agents", "observe", "step") if not hasattr(game, part)]:
            raise UserError(
                f"data.env_id: {name} has no {', '.join(missing)}; data.self_play plays games with the interface of "
                "PettingZoo's AECEnv"
            )
        self.agents: list[str] = list(game.possible_agents)
        if len(self.agents) != 2:
            raise UserError(
                f"data.env_id: {name} is a game of {len(self.agents)} players; data.self_play plays games of two"
            )
        seen, self.action_space = (self._same(kind) for kind in ("observation_space", "action_space"))
        self._has_mask = isinstance(seen, spaces.Dict) and "action_mask" in seen.spaces
        board = seen["observation"] if self._has_mask else seen
        if not isinstance(self.action_space, spaces.Discrete) or not isinstance(board, spaces.Box):
            raise UserError(
                f"data.env_id: {name} has observations {one_line(board)} and actions {self.action_space}; "
                "data.self_play plays games with discrete actions whose observations are arrays"
            )
        small = np.issubdtype(board.dtype, np.integer) and board.low.min() >= 0 and board.high.max() <= 255
        dtype: Any = np.uint8 if small or board.dtype == bool else np.float32
        self.observation_space = spaces.Box(board.low.astype(dtype), board.high.astype(dtype), dtype=dtype)
        self.obs = np.zeros((num_games, *board.shape), dtype)
        self.masks = np.ones((num_games, int(self.action_space.n)), bool)
        self.turn = np.zeros(num_games, np.int64)
        self.rewards = np.zeros((num_games, 2))
        self.over = np.zeros(num_games, bool)
        self._first = np.zeros(num_games, np.int64)  # index of the agent that moved first
        self._moves = [0] * num_games

    def begin(self, which: np.ndarray, seeds: Sequence[int]) -> None:
        """See `Games`."""
        for n, seed in zip(which.tolist(), seeds, strict=True):
            game, self._moves[n] = self._games[n], 0
            with self._as_line(n):
                game.reset(seed=seed)
                self._first[n] = self.agents.index(game.agent_selection)
                self.rewards[n], self.over[n] = 0.0, False
                self._look(n)

    def play(self, which: np.ndarray, actions: np.ndarray) -> None:
        """See `Games`."""
        for n, action in zip(which.tolist(), actions.tolist(), strict=True):
            game, first = self._games[n], self._first[n]
            self._moves[n] += 1
            with self._as_line(n):
                game.step(action)
                rewards = [float(game.rewards[self.agents[(first + seat) % 2]]) for seat in (0, 1)]
                if rewards[0] != -rewards[1]:
                    raise UserError(
                        f"data.env_id: {self._name} gave the rewards {rewards[0]:g} and {rewards[1]:g} for one move; "
                        "data.self_play plays zero-sum games"
                    )
                self.rewards[n] = rewards
                self.over[n] = any(game.terminations.values()) or any(game.truncations.values())
                self._look(n)

    def text(self, game: int, seat: int | None = None) -> str:
        """The board that the seat to move sees, if the observation is one; else its numbers."""
        # In `go_v5` the first plane shows the stones of the seat that has just moved.
        mover = int(self.turn[game]) ^ self._name.startswith("go_")
        return position(self.obs[game], mover, self.masks.shape[1])

    def reseed(self, seed: int) -> None:
        """Nothing to do: each game has its own seed."""

    def close(self) -> None:
        """Closes the games."""
        for game in self._games:
            game.close()

    def _look(self, n: int) -> None:
        game = self._games[n]
        agent = game.agent_selection
        seen = game.observe(agent)
        self.turn[n] = (self.agents.index(agent) - self._first[n]) % 2
        if self._has_mask:
            self.obs[n], self.masks[n] = seen["observation"], seen["action_mask"]
        else:
            self.obs[n] = seen
            info = game.infos.get(agent, {})
            self.masks[n] = info.get("action_mask", True)
        if not self.over[n] and not self.masks[n].any():
            raise UserError(
                f"data.env_id: {self._name} forbids every action of {agent} after {self._moves[n]} moves; a player who "
                "cannot move needs an action to pass"
            )

    @contextmanager
    def _as_line(self, n: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            failures.raise_as_line(error, (n, self._moves[n]))
            raise

    def _same(self, kind: str) -> Any:
        one, other = (getattr(self._games[0], kind)(agent) for agent in self.agents)
        if one != other:
            raise UserError(
                f"data.env_id: the players of {self._name} have different {kind.replace('_', ' ')}s, {one_line(one)} "
                f"and {one_line(other)}; data.self_play needs one policy for both"
            )
        return one
