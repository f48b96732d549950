"""The aliased gridworld, in which every deterministic policy goes round in circles from some cells.

Importing this module registers it: the id is `pg_lightning.envs.tasks.gridworld:pg_lightning/GreyCells-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pg_lightning.envs.contract import Info

Cell = tuple[int, int]

TIME_LIMIT = 50
CORRIDOR: tuple[Cell, ...] = tuple((0, column) for column in range(5))
GREY: tuple[Cell, ...] = ((0, 1), (0, 3))
TREASURE: Cell = (1, 2)
TRAPS: tuple[Cell, ...] = ((1, 0), (1, 4))
MOVES: tuple[Cell, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))

_FLOOR = frozenset((*CORRIDOR, TREASURE, *TRAPS))


class GreyCells(gym.Env[np.ndarray, Any]):
    """The aliased gridworld of David Silver's course on reinforcement learning (lecture 7, policy gradients).

    A corridor of five cells. Below its ends are traps, below its middle the treasure; each ends the episode. The
    actions are N, E, S, W; a move into a wall has no effect. An episode starts in any cell of the corridor with equal
    probability; a step costs 1, a trap costs `penalty` more. The observation tells which of the sides N, E, S, W of the
    cell are walls, so the two cells marked ? look alike, and no other two do.

        +---+---+---+---+---+
        |     ?       ?     |
        +   +---+   +---+   +
        | × |   | $ |   | × |
        +---+   +---+   +---+

    Consider the policy that goes inwards at the ends, south in the middle, and on grey cells east with probability p,
    west with q = 1 − p. It needs 1 step from the middle. From the left grey cell two steps reach the treasure with
    probability p, and with probability q two steps lead back: T = p 2 + q (2 + T), so T = 2/p. It is 2/q from the right
    one. An end needs one more step. The mean over the five starts is, without discount and time limit,

        V(p) = −(1 + 2/p + 2/q + (1 + 2/p) + (1 + 2/q)) / 5 = −(3 + 4/(p q)) / 5,

    with its maximum at p = ½, −19/5. N and S on grey cells only waste steps. The probability that the k-th step is
    needed is a power of q from one side and of p from the other, so discounted sums and sums up to a time limit are
    symmetric and concave in p too: ½ is best under any discount and any limit. With discount γ the left grey cell has
    the value −(1 + γ)/(1 − γ² q).

    A deterministic policy of the observation never reaches the treasure from at least one side. The best one has a
    mean return of −(1 + 2 + 3 + 50 + 50)/5 = −21.2 under the registered limit of 50 steps. An agent with memory reaches
    −13/5: from a grey cell it tries one side, and an end shows where it is. An agent that sees its cell reaches −11/5.

    Args:
        penalty: cost of a trap. From an end, the way to the treasure costs at most 5 at p = ½ under any discount. The
            default, the time limit, makes a trap worse than the 50 steps of a policy that is stuck.
    """

    def __init__(self, penalty: float = float(TIME_LIMIT)) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(4)
        self.penalty = penalty

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Starts anywhere in the corridor, or in the cell (row, column) of `options["cell"]`."""
        super().reset(seed=seed)
        start = CORRIDOR[self.np_random.integers(len(CORRIDOR))]
        self.cell: Cell = tuple((options or {}).get("cell", start))
        return walls(self.cell), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Moves, or stays if there is a wall."""
        if not walls(self.cell)[action]:
            self.cell = _beyond(self.cell, action)
        trapped = self.cell in TRAPS
        reward = -1.0 - self.penalty if trapped else -1.0
        return walls(self.cell), reward, trapped or self.cell == TREASURE, False, {}


def walls(cell: Cell) -> np.ndarray:
    """1 for each side N, E, S, W of the cell that is a wall, else 0."""
    return np.array([_beyond(cell, side) not in _FLOOR for side in range(4)], dtype=np.float32)


def _beyond(cell: Cell, side: int) -> Cell:
    return cell[0] + MOVES[side][0], cell[1] + MOVES[side][1]


gym.register("pg_lightning/GreyCells-v0", entry_point=f"{__name__}:GreyCells", max_episode_steps=TIME_LIMIT)
