"""Self-play: two-player zero-sum games, their opponents, and the arena that makes environments of them."""

from pg_lightning.games.arena import Arena
from pg_lightning.games.contract import Games, Opponent
from pg_lightning.games.make import evaluation_arena, make_games, training_arena
from pg_lightning.games.settings import SelfPlay

__all__ = [
    "Arena",
    "Games",
    "Opponent",
    "SelfPlay",
    "evaluation_arena",
    "make_games",
    "training_arena",
]
