"""Games between two players that do not learn."""

from __future__ import annotations

import numpy as np
import torch

from pg_lightning.games.contract import RESIGNS, Games, Opponent
from pg_lightning.games.opponents import require_legal


def play_match(games: Games, first: Opponent, second: Opponent, count: int, seed: int) -> np.ndarray:
    """Plays games, in batches that are played to the end, so that short games are not favoured.

    Args:
        games: to be played in.
        first: the player with seat 0.
        second: the player with seat 1; must not be the same object.
        count: number of games.
        seed: of the games, and of sampled moves.

    Returns:
        `[3]` games that the first player won, drew and lost.
    """
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    results = np.zeros(3, np.int64)
    while (left := count - results.sum()) > 0:
        which = np.arange(min(left, games.num_games))
        games.begin(which, random.integers(2**31, size=len(which)).tolist())
        for seat, player in enumerate((first, second)):
            player.begin(which, np.full(len(which), seat))
        for reward in _results(games, (first, second), which, generator):
            results[1 - int(np.sign(reward))] += 1
    return results


def _results(
    games: Games, players: tuple[Opponent, Opponent], which: np.ndarray, generator: torch.Generator
) -> np.ndarray:
    """`[K]` the rewards of seat 0 in games that have just begun."""
    moves: list[list[int]] = [[] for _ in which]
    rewards, playing = np.zeros(len(which)), np.ones(len(which), bool)
    while playing.any():
        turn = games.turn[which].copy()
        for seat, player in enumerate(players):
            mine = which[playing & (turn == seat)]
            if not len(mine):
                continue
            masks = games.masks[mine]
            actions = player.act(mine, games.obs[mine], masks, [moves[n] for n in mine], generator)
            gone = actions == RESIGNS
            rewards[mine[gone]] += 2 * seat - 1
            playing[mine[gone]] = False
            mine, actions = mine[~gone], actions[~gone]
            require_legal(player, masks[~gone], actions)
            games.play(mine, actions)
            rewards[mine] += games.rewards[mine, 0]
            playing[mine] = ~games.over[mine]
            for n, action in zip(mine.tolist(), actions.tolist(), strict=True):
                moves[n].append(action)
    return rewards
