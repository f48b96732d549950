"""Games of self-play in a checkpoint: who plays whom, the moves, and the opponents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pg_lightning.checkpoint.generators import check_torch_generator
from pg_lightning.checkpoint.values import (
    Damage,
    Unchecked,
    is_number,
    kind_of,
    require_count,
    require_finite,
    require_list,
    require_mapping,
    require_text,
)

BOTH = -1  # as a seat: the learner plays both


def check_league(field: str, state: Unchecked, num_games: int, num_both: int, max_snapshots: int) -> None:
    """Refuses games and opponents that do not belong to this run.

    Args:
        field: for errors.
        state: from the checkpoint.
        num_games: G.
        num_both: number of games that the policy plays on both seats, the first ones.
        max_snapshots: number of copies of the policy that the league keeps.

    Raises:
        Damage: naming the field.
    """
    require_mapping(field, state)
    for name in ("steps", "league", "games"):
        if name not in state:
            raise Damage(f"{field}.{name}", "is missing")
    require_count(f"{field}.steps", state["steps"])
    _check_opponents(f"{field}.league", state["league"], num_games, max_snapshots)
    if state["games"] is not None:
        _check_games(f"{field}.games", state["games"], num_games, num_both)


def _check_opponents(field: str, league: Unchecked, num_games: int, max_snapshots: int) -> None:
    require_mapping(field, league)
    for name in ("steps", "since", "scores", "kept", "memories", "snapshots"):
        if name not in league:
            raise Damage(f"{field}.{name}", "is missing")
    require_count(f"{field}.steps", league["steps"])
    _check_score(f"{field}.since", league["since"])
    for name in ("scores", "memories", "snapshots"):
        require_mapping(f"{field}.{name}", league[name])
        for key in league[name]:
            require_text(f"{field}.{name}", key)
    for name, score in league["scores"].items():
        _check_score(f"{field}.scores.{name}", score)
    for name, memory in league["memories"].items():
        _check_memory(f"{field}.memories.{name}", memory, num_games)
    kept, snapshots = require_list(f"{field}.kept", league["kept"]), league["snapshots"]
    if len(kept) > max_snapshots or len(snapshots) > max_snapshots + num_games:
        raise Damage(f"{field}.snapshots", f"are more than data.self_play.max_snapshots {max_snapshots}")
    for name in kept:
        if not isinstance(name, str) or name not in snapshots:
            raise Damage(f"{field}.kept", f"names {kind_of(name)}, which is no snapshot")
    for name, snapshot in snapshots.items():
        _check_snapshot(f"{field}.snapshots.{name}", snapshot, num_games)


def _check_snapshot(field: str, snapshot: Unchecked, num_games: int) -> None:
    require_mapping(field, snapshot)
    for name in ("policy", "weights"):
        require_mapping(f"{field}.{name}", snapshot.get(name))
    for name, weight in snapshot["weights"].items():
        if not isinstance(weight, Tensor):
            raise Damage(f"{field}.weights.{name}", f"is {kind_of(weight)}, not a tensor")
        require_finite(f"{field}.weights.{name}", weight)
    if snapshot.get("state") is not None:
        _check_memory(f"{field}.state", snapshot["state"], num_games)


def _check_games(field: str, games: Unchecked, num_games: int, num_both: int) -> None:
    require_mapping(field, games)
    for name in ("keys", "numbers", "moves", "seats", "opponents"):
        if len(require_list(f"{field}.{name}", games.get(name))) != num_games:
            raise Damage(f"{field}.{name}", f"has {len(games[name])} entries for {num_games} games")
    for name in ("keys", "numbers"):
        for number in games[name]:
            require_count(f"{field}.{name}", number)
            if number >= 2**31:
                raise Damage(f"{field}.{name}", f"has {number}, which is too large")
    for moves in games["moves"]:
        for move in require_list(f"{field}.moves", moves):
            require_count(f"{field}.moves", move)
    for n, (seat, opponent) in enumerate(zip(games["seats"], games["opponents"], strict=True)):
        seats = (BOTH,) if n < num_both else (0, 1)
        if type(seat) is not int or seat not in seats:
            raise Damage(f"{field}.seats[{n}]", f"is {kind_of(seat)}")
        if (opponent is None) != (n < num_both) or not isinstance(opponent, (str, type(None))):
            raise Damage(f"{field}.opponents[{n}]", f"is {kind_of(opponent)}")
    for name in ("totals", "opening"):
        rewards = games.get(name)
        if not isinstance(rewards, Tensor) or [*rewards.shape] != [num_games, 2] or rewards.dtype != torch.float64:
            raise Damage(f"{field}.{name}", f"is {kind_of(rewards)}, not a tensor of float64 {[num_games, 2]}")
        require_finite(f"{field}.{name}", rewards)
    check_torch_generator(f"{field}.generator", games.get("generator"))


def _check_score(field: str, score: Unchecked) -> None:
    numbers = require_list(field, score)
    if len(numbers) != 2 or not all(is_number(x) and math.isfinite(x) and x >= 0 for x in numbers):
        raise Damage(field, "are not a number of games and of points")


def _check_memory(field: str, memory: Unchecked, num_games: int) -> None:
    if not isinstance(memory, Tensor) or memory.dim() != 2 or len(memory) != num_games:
        raise Damage(field, f"is {kind_of(memory)}, not the states of {num_games} games")
    require_finite(field, memory)
