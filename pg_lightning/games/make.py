"""Games and opponents from the settings of a run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.envs import Backend
from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.errors import UserError, named_cause_of, one_line
from pg_lightning.games.arena import Arena
from pg_lightning.games.contract import Games, Opponent
from pg_lightning.games.envpool import PoolGames
from pg_lightning.games.exam import Exam
from pg_lightning.games.league import League
from pg_lightning.games.opponents import PolicyOpponent, RandomOpponent
from pg_lightning.games.pettingzoo import PettingZooGames
from pg_lightning.games.settings import SelfPlay
from pg_lightning.games.small import KuhnPoker, MatchingPennies, TicTacToe
from pg_lightning.policies.trained import load

SMALL: dict[str, Callable[[int], Games]] = {
    "KuhnPoker-v0": KuhnPoker,
    "MatchingPennies-v0": MatchingPennies,
    "TicTacToe-v1": TicTacToe,
}


def make_games(env_id: str, num_games: int, env_kwargs: EnvKwargs | None, backend: Backend, seed: int = 0) -> Games:
    """G games of a kind.

    Args:
        env_id: with the back-end `sync` one of `SMALL`, or `module:name` of a PettingZoo game, as in
            `pettingzoo.classic:connect_four_v3`; with `envpool` a game of EnvPool.
        num_games: G.
        env_kwargs: arguments of the game.
        backend: of the run.
        seed: of the chance of games that take no seed each.

    Raises:
        UserError: if there is no such game, or it cannot be played.
    """
    if backend == "envpool":
        return PoolGames(env_id, num_games, env_kwargs, seed)
    if backend != "sync":
        raise UserError(f"data.backend: data.self_play plays games of 'sync' or 'envpool', not of {backend!r}")
    if env_id in SMALL:
        if env_kwargs:
            raise UserError(f"data.env_kwargs: {env_id} takes no arguments")
        return SMALL[env_id](num_games)
    module, _, name = env_id.partition(":")
    if not name:
        raise UserError(
            f"data.env_id: no game {env_id!r}; with data.self_play it is {', '.join(SMALL)}, a game of PettingZoo such "
            "as 'pettingzoo.classic:connect_four_v3', or with data.backend: envpool one of EnvPool"
        )
    try:
        game: Any = _game_module(module, name)
    except (ImportError, AttributeError) as error:
        cure = '; pip install "pg_lightning[pettingzoo]"' if module.startswith("pettingzoo") else ""
        raise UserError(f"data.env_id: cannot import {env_id!r}: {named_cause_of(error)}{cure}") from error
    make = getattr(game, "raw_env", None) or getattr(game, "env", game)
    return PettingZooGames(name, lambda: make(**(env_kwargs or {})), num_games)


def make_opponents(field: str, specs: Sequence[ClassPath], games: Games) -> list[Opponent]:
    """The opponents that a config names.

    Args:
        field: of the config, for errors.
        specs: `random`, a checkpoint or the folder of a run, or the class path of an `Opponent`, whose constructor gets
            `num_games` and its `init_args`.
        games: that they play.

    Raises:
        UserError: if one cannot be made, has learned another game, or two have the same name.
    """
    made: list[Opponent] = []
    try:
        for spec in specs:
            made.append(_opponent(field, spec, games))
            if made[-1].name in [opponent.name for opponent in made[:-1]]:
                raise UserError(
                    f"{field}: two opponents are called {made[-1].name!r}, which metrics could not tell apart; remove "
                    "one, or give it another name"
                )
    except UserError:
        for opponent in made:
            opponent.close()
        raise
    return made


def training_arena(games: Games, settings: SelfPlay, seed: int) -> Arena:
    """Games in which the learner plays both seats, or one against the opponents of training; see `Arena`."""
    fixed = make_opponents("data.self_play.opponents", settings.opponents, games)
    return Arena(games, League(settings, fixed, games.num_games), seed)


def evaluation_arena(games: Games, settings: SelfPlay, seed: int) -> Arena:
    """Games on request against each opponent of evaluations; see `Arena`."""
    return Arena(games, Exam(make_opponents("data.self_play.eval_opponents", settings.eval_opponents, games)), seed)


def _opponent(field: str, spec: ClassPath, games: Games) -> Opponent:
    num_games = games.num_games
    if spec == "random":
        return RandomOpponent()
    if isinstance(spec, str) and (Path(spec).exists() or "/" in spec or spec.endswith(".ckpt")):
        try:
            trained = load(spec)
        except UserError as error:
            raise UserError(f"{field}: {str(error).removeprefix('path: ')}") from error
        for name in ("observation_space", "action_space"):
            learned, played = getattr(trained, name), getattr(games, name)
            if learned != played:
                raise UserError(
                    f"{field}: the {name.replace('_', ' ')} of {spec!r} is {one_line(learned)}, that of the game "
                    f"{one_line(played)}; give a checkpoint of this game"
                )
        return PolicyOpponent(spec, trained.policy, num_games)
    make, arguments = resolve(field, spec, {"random": RandomOpponent})
    try:
        made: Opponent = make(num_games=num_games, **arguments)
    except TypeError as error:
        raise UserError(
            f"{field}: cannot make {make.__name__}(num_games, **init_args): {named_cause_of(error)}"
        ) from error
    if missing := [name for name in ("name", "begin", "act", "close") if not hasattr(made, name)]:
        raise UserError(f"{field}: {make.__name__} has no {', '.join(missing)}; see pg_lightning.games.Opponent")
    return made


def _game_module(module: str, name: str) -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on stdout
    try:
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{module}.{name}":
            raise
        return getattr(importlib.import_module(module), name)
