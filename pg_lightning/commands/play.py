"""`python -m pg_lightning play --ckpt_path P`: a person plays against a policy in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import Trainer

from pg_lightning.commands.game_episodes import games_of_policy
from pg_lightning.commands.record_games import result_of
from pg_lightning.data import RolloutDataModule
from pg_lightning.data.environments import games_of
from pg_lightning.errors import UserError, require
from pg_lightning.games import Arena
from pg_lightning.games.exam import Exam
from pg_lightning.games.written import WrittenGames
from pg_lightning.learning import PolicyGradientModule

SHOWN = 30  # legal moves that are listed
Seat = Literal["first", "second"]


class Quit(Exception):
    """The person does not go on."""


class Person:
    """A player at the terminal: see `Opponent`.

    Args:
        games: whose positions are shown.
        ask: shows a prompt and returns a line, as `input` does.
    """

    name = "you"

    def __init__(self, games: WrittenGames, ask: Callable[[str], str] = input) -> None:
        self._games, self._ask = games, ask
        self._known = 0  # moves that have been shown

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """See `Opponent`."""
        self._known = 0

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """See `Opponent`; asks until a move is legal.

        Raises:
            Quit: instead of a move.
        """
        return np.array([self._move(n, masks[k], moves[k]) for k, n in enumerate(which.tolist())])

    def close(self) -> None:
        """See `Opponent`."""

    def _move(self, game: int, mask: np.ndarray, moves: Sequence[int]) -> int:
        new = [self._games.name_of(action) for action in moves[self._known :]]
        self._known = len(moves) + 1
        print(f"\n{'The policy plays ' + ', '.join(new) if new else 'You begin'}:" if new or not moves else "")
        print(self._games.text(game, int(self._games.turn[game])))
        legal = {self._games.name_of(action): action for action in np.flatnonzero(mask).tolist()}
        shown = " ".join(legal if len(legal) <= SHOWN else [*list(legal)[:5], "…", *list(legal)[-5:]])
        print(f"legal moves: {shown}")
        while True:
            try:
                answer = self._ask("your move (q quits): ").strip()
            except EOFError:
                raise Quit from None
            if answer.lower() == "q":
                raise Quit
            meant = next((name for name in legal if name.lower() == answer.lower()), None)
            if meant is not None:
                return legal[meant]
            print(f"{answer!r} is not one of: {shown}")


def play(
    trainer: Trainer,
    model: PolicyGradientModule,
    data: RolloutDataModule,
    ckpt_path: str,
    seat: Seat,
    games: int,
    ask: Callable[[str], str] = input,
) -> None:
    """Plays games against a person, until they are over or the person quits; prints the result of each.

    Args:
        trainer: gives the precision.
        model: its policy plays.
        data: of a run of self-play; `eval_deterministic` says whether the policy samples its moves.
        ckpt_path: the weights.
        seat: of the person.
        games: their number.
        ask: see `Person`.

    Raises:
        UserError: if the run was not of self-play.
    """
    require("games", games, 1)
    if data.self_play is None:
        raise UserError(f"play: {data.env_id} is no two-player game; record films a policy in its environment")
    written = WrittenGames(games_of(data, 1, data.seed))
    arena = Arena(written, Exam([Person(written, ask)]), data.seed)
    own = int(seat == "first")  # of the policy, which is the learner of this arena
    try:
        for episode in games_of_policy(trainer, model, data, ckpt_path, arena, range(own, own + 2 * games, 2)):
            result = {"the policy wins": "You lose", "the policy loses": "You win", "draw": "Draw"}
            print(f"\n{written.pages[0][-1]}\n\n{result.get(result_of(episode), 'Stopped')}.", flush=True)
    except Quit:
        print()
    finally:
        arena.close()
