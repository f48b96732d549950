"""The aliased gridworld is the one of the lecture, and its values are those of its docstring."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pg_lightning.envs.make import make_env, make_vector_env
from pg_lightning.envs.tasks.gridworld import CORRIDOR, GREY, TIME_LIMIT, TRAPS, TREASURE, Cell, GreyCells, walls

ENV_ID = "pg_lightning.envs.tasks.gridworld:pg_lightning/GreyCells-v0"
N, E, S, W = range(4)
LEFT_TRAP, RIGHT_TRAP = TRAPS
L0, L1, MIDDLE, R1, R0 = CORRIDOR
Seen = tuple[int, ...]
LEFT: Seen = (1, 0, 0, 1)
GREYS: Seen = (1, 0, 1, 0)
CENTRE: Seen = (1, 0, 0, 0)
RIGHT: Seen = (1, 1, 0, 0)
# By cell, where N, E, S and W lead.
MOVES: dict[Cell, tuple[Cell, Cell, Cell, Cell]] = {
    L0: (L0, L1, LEFT_TRAP, L0),
    L1: (L1, MIDDLE, L1, L0),
    MIDDLE: (MIDDLE, R1, TREASURE, L1),
    R1: (R1, R0, R1, MIDDLE),
    R0: (R0, R0, RIGHT_TRAP, R1),
}


def seen(obs: np.ndarray) -> Seen:
    return tuple(obs.astype(int).tolist())


def steps_to_treasure(act: Callable[[Seen], int], start: Cell, limit: float = np.inf) -> float:
    """Infinity if the treasure is not reached within the limit."""
    env = GreyCells()
    obs, _ = env.reset(options={"cell": start})
    steps, terminated = 0, False
    while not terminated:
        if steps == limit:
            return np.inf
        obs, _, terminated, _, _ = env.step(act(seen(obs)))
        steps += 1
    return steps if env.cell == TREASURE else np.inf


def inwards(p: float) -> dict[Seen, np.ndarray]:
    """The policy of the docstring: probabilities of N, E, S, W by observation."""
    return {LEFT: np.eye(4)[E], RIGHT: np.eye(4)[W], CENTRE: np.eye(4)[S], GREYS: np.array([0.0, p, 0.0, 1 - p])}


def values(policy: dict[Seen, np.ndarray], gamma: float = 1.0) -> dict[Cell, float]:
    """Solves the Bellman equations of the environment's own transitions."""
    env = GreyCells()
    A, b = np.eye(5), np.zeros(5)
    for i, cell in enumerate(CORRIDOR):
        for action, chance in enumerate(policy[seen(walls(cell))]):
            env.reset(options={"cell": cell})
            _, reward, terminated, _, _ = env.step(action)
            b[i] += chance * reward
            if not terminated:
                A[i, CORRIDOR.index(env.cell)] -= gamma * chance
    return dict(zip(CORRIDOR, np.linalg.solve(A, b).tolist(), strict=True))


def test_gymnasium_finds_no_fault() -> None:
    env = gym.make(ENV_ID)
    with warnings.catch_warnings():
        # Advice on rendering.
        warnings.simplefilter("ignore")
        check_env(env.unwrapped)
        check_env(env)


def test_the_spaces_are_four_walls_and_four_directions() -> None:
    env = make_env(ENV_ID)
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    assert env.action_space == gym.spaces.Discrete(4)


@pytest.mark.parametrize("cell", CORRIDOR)
@pytest.mark.parametrize("action", [N, E, S, W])
def test_transitions_rewards_and_ends(cell: Cell, action: int) -> None:
    env = GreyCells(penalty=7.0)
    env.reset(options={"cell": cell})
    obs, reward, terminated, truncated, _ = env.step(np.int64(action))
    target = MOVES[cell][action]
    assert env.cell == target
    assert reward == (-8.0 if target in (LEFT_TRAP, RIGHT_TRAP) else -1.0)
    assert terminated == (target in (LEFT_TRAP, RIGHT_TRAP, TREASURE))
    assert not truncated
    np.testing.assert_array_equal(obs, walls(target))


def test_the_two_grey_cells_and_no_others_look_alike() -> None:
    assert [seen(walls(cell)) for cell in CORRIDOR] == [LEFT, GREYS, CENTRE, GREYS, RIGHT]
    alike = [pair for pair in itertools.combinations(CORRIDOR, 2) if seen(walls(pair[0])) == seen(walls(pair[1]))]
    assert alike == [GREY]


def test_every_cell_of_the_corridor_is_as_likely_a_start() -> None:
    env = GreyCells()
    env.reset(seed=0)
    starts = [(env.reset(), env.cell)[1] for _ in range(5000)]
    counts = [starts.count(cell) for cell in CORRIDOR]
    assert sum(counts) == 5000
    assert np.square(np.array(counts) - 1000).sum() / 1000 < 18.5  # χ² of 4 degrees of freedom, 0.1 %


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.5])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_values_are_those_of_the_docstring(p: float, gamma: float) -> None:
    V = values(inwards(p), gamma)
    assert V[MIDDLE] == -1
    assert V[L1] == pytest.approx(-(1 + gamma) / (1 - gamma**2 * (1 - p)))
    assert V[R1] == pytest.approx(-(1 + gamma) / (1 - gamma**2 * p))
    assert V[L0] == pytest.approx(-1 + gamma * V[L1])
    assert V[R0] == pytest.approx(-1 + gamma * V[R1])
    if gamma == 1.0:
        assert V[L1] == pytest.approx(-2 / p)
        assert np.mean(list(V.values())) == pytest.approx(-(3 + 4 / (p * (1 - p))) / 5)


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.5])
def test_a_half_is_best_and_no_other_step_helps(gamma: float) -> None:
    def value(policy: dict[Seen, np.ndarray]) -> float:
        return float(np.mean(list(values(policy, gamma).values())))

    best = value(inwards(0.5))
    if gamma == 1.0:
        assert best == pytest.approx(-19 / 5)
    assert max(value(inwards(p)) for p in (0.05, 0.2, 0.4, 0.49, 0.51, 0.6, 0.8, 0.95)) < best
    for observation, action in itertools.product((LEFT, GREYS, CENTRE, RIGHT), range(4)):
        mixed = inwards(0.5)
        mixed[observation] = 0.9 * mixed[observation] + 0.1 * np.eye(4)[action]
        if not np.allclose(mixed[observation], inwards(0.5)[observation]):
            assert value(mixed) < best


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_played_returns_agree_with_the_formula(p: float) -> None:
    env, rng = gym.make(ENV_ID, max_episode_steps=1000), np.random.default_rng(1)
    policy, returns = inwards(p), []
    obs, _ = env.reset(seed=2)
    for _ in range(2000):
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(rng.choice(4, p=policy[seen(obs)]))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
        obs, _ = env.reset()
    expected = -(3 + 4 / (p * (1 - p))) / 5
    z = (np.mean(returns) - expected) / (np.std(returns) / np.sqrt(len(returns)))
    assert abs(z) < 3.5


def test_every_deterministic_policy_misses_the_treasure_from_some_start() -> None:
    best = -np.inf
    for actions in itertools.product(range(4), repeat=4):
        policy = dict(zip((LEFT, GREYS, CENTRE, RIGHT), actions, strict=True))
        # There are five cells: who has not arrived after five steps goes round in a circle.
        steps = [steps_to_treasure(policy.__getitem__, cell, limit=5) for cell in CORRIDOR]
        assert np.inf in steps
        best = max(best, -float(np.mean(np.minimum(steps, TIME_LIMIT))))
    assert best == pytest.approx(-21.2)


def test_a_trap_is_worse_than_being_stuck_until_the_time_limit() -> None:
    env: Any = gym.make(ENV_ID)
    env.reset(options={"cell": L0})
    _, into_the_trap, terminated, _, _ = env.step(S)
    assert terminated
    env.reset(options={"cell": L0})
    steps = [env.step(W) for _ in range(TIME_LIMIT)]
    assert [step[2] or step[3] for step in steps] == [False] * (TIME_LIMIT - 1) + [True]
    assert steps[-1][2:4] == (False, True)
    assert into_the_trap < sum(step[1] for step in steps) == -50


def test_memory_and_sight_of_the_cell_are_worth_what_the_docstring_says() -> None:
    def rememberer() -> Callable[[Seen], int]:
        heading = E

        def act(obs: Seen) -> int:
            nonlocal heading
            heading = {LEFT: E, RIGHT: W}.get(obs, heading)
            return S if obs == CENTRE else heading

        return act

    assert np.mean([steps_to_treasure(rememberer(), cell) for cell in CORRIDOR]) == pytest.approx(13 / 5)
    ways = {L0: [E, E, S], L1: [E, S], MIDDLE: [S], R1: [W, S], R0: [W, W, S]}
    taken: list[float] = []
    for cell, way in ways.items():
        moves = iter(way)
        taken.append(steps_to_treasure(lambda _, moves=moves: next(moves), cell))  # type: ignore[misc]
    assert np.mean(taken) == pytest.approx(11 / 5)


def test_copies_play_side_by_side() -> None:
    env: Any = make_vector_env(ENV_ID, 8)
    obs, _ = env.reset(seed=0)
    assert len({tuple(row) for row in obs.tolist()}) > 1
    assert env.step(np.full(8, N))[1].tolist() == [-1.0] * 8
