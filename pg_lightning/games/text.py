"""Positions and moves as text."""

from __future__ import annotations

import numpy as np

from pg_lightning.games.gtp import COLUMNS, vertex_of

PLANES = (2, 4, 17)  # of observations whose first two planes are the stones: of most games, Hex, Go
SYMBOLS = "xo."  # of the seat that moves first, the other, an empty cell


def board(first: np.ndarray, second: np.ndarray, num_actions: int, planes: int = 2) -> str:
    """A board of stones, with the names of its moves at the edges.

    In Go these are the coordinates; where a move is a column, its number is below the column; else the number of a
    cell is the sum of those of its row and its column.

    Args:
        first: `[R, C]` the stones of seat 0.
        second: `[R, C]` those of seat 1.
        num_actions: of the game.
        planes: of its observations.
    """
    R, C = first.shape
    cells = np.where(first, SYMBOLS[0], np.where(second, SYMBOLS[1], SYMBOLS[2]))
    rows, columns = [*map(str, range(0, R * C, C))], [*map(str, range(C))]
    if is_go((R, C, planes), num_actions):
        rows, columns = [*map(str, range(R, 0, -1))], [*COLUMNS[:C]]
    elif num_actions == C:
        rows = [""] * R
    wide, high = max(map(len, columns)), max(map(len, rows))
    slant = int(planes == 4)  # each row of Hex is half a cell further to the right
    lines = [
        f"{rows[i]:>{high}} {' ' * (slant * i * (wide + 1) // 2)}{' '.join(f'{cell:>{wide}}' for cell in cells[i])}"
        for i in range(R)
    ]
    header = f"{'':{high}} {' '.join(f'{column:>{wide}}' for column in columns)}"
    lines = [*lines, header] if num_actions == C else [header, *lines]
    return "\n".join(line if any(rows) else line[1:] for line in lines)


def position(obs: np.ndarray, seat: int, num_actions: int) -> str:
    """The position that an observation of a seat shows: a board of stones, or else its numbers."""
    if obs.ndim == 3 and obs.shape[2] in PLANES:
        own, others = obs[..., 0] > 0, obs[..., 1] > 0
        return board(*((own, others) if seat == 0 else (others, own)), num_actions, obs.shape[2])
    if obs.ndim == 1:
        return " ".join(f"{number:g}" for number in obs)
    return f"(a position of shape {[*obs.shape]}, of which there is no text)"


def is_go(shape: tuple[int, ...], num_actions: int) -> bool:
    """Whether observations and actions are those of Go."""
    return len(shape) == 3 and shape[2] == 17 and shape[0] == shape[1] and num_actions == shape[0] ** 2 + 1


def move_name(action: int, shape: tuple[int, ...], num_actions: int) -> str:
    """The name of a move: its coordinates in Go, else its number.

    Args:
        action: of the game.
        shape: of its observations.
        num_actions: of the game.
    """
    return vertex_of(action, shape[0]) if is_go(shape, num_actions) else str(action)
