"""Elo ratings of players from the results of their games."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SCALE = np.log(10) / 400  # a player with 400 points more wins 10 of 11 games
PRIOR = 1.0  # games that each pair of opponents is taken to have drawn, so that ratings stay finite


class Ratings(NamedTuple):
    """Ratings of P players, `[P]` each, and the ends of their 95 % bootstrap intervals."""

    elo: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ratings(results: np.ndarray, anchor: int = 0, resamples: int = 1000, seed: int = 0) -> Ratings:
    """The ratings with the greatest likelihood in the model of Bradley and Terry (1952), and their intervals.

    P(i beats j) = σ(ln 10 / 400 · (Elo_i − Elo_j)); a draw is half a win and half a loss (Elo, 1978). Each pair that
    has met gets one more draw. The intervals are those of the difference to the player whose rating is 0, over
    resampled games of each pair and seat.

    Args:
        results: `[P, P, 3]` int, won, drawn and lost games of player i, with the first move, against player j.
        anchor: index of the player whose rating is 0.
        resamples: number of bootstrap samples.
        seed: of these.
    """
    elo = _fitted(_points(results), anchor)
    random = np.random.default_rng(seed)
    games = results.sum(2)
    shares = results / np.maximum(games, 1)[..., None]
    shares[games == 0] = 1.0, 0.0, 0.0
    drawn = np.stack([_fitted(_points(random.multinomial(games, shares)), anchor, start=elo) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Ratings(elo, low, high)


def _points(results: np.ndarray) -> np.ndarray:
    """`[P, P]` points of player i against player j, from both seats."""
    won, drawn, lost = np.moveaxis(results.astype(float), 2, 0)
    return won + lost.T + (drawn + drawn.T) / 2


def _fitted(points: np.ndarray, anchor: int, start: np.ndarray | None = None) -> np.ndarray:
    from scipy import optimize

    P = len(points)
    points = points + PRIOR / 2 * ((points + points.T) > 0)
    if not _is_connected(points > 0):
        raise ValueError("ratings can only be compared of players who have met, or have met the same others")

    def loss(elo: np.ndarray) -> tuple[float, np.ndarray]:
        margin = SCALE * (elo[:, None] - elo[None])
        surprise = points * np.exp(-np.logaddexp(0.0, margin))  # points · σ(−margin)
        return float((points * np.logaddexp(0.0, -margin)).sum()), SCALE * (surprise.sum(0) - surprise.sum(1))

    scaled = optimize.minimize(
        lambda x: tuple(part * factor for part, factor in zip(loss(x / SCALE), (1.0, 1 / SCALE), strict=True)),
        np.zeros(P) if start is None else start * SCALE,
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-6, "ftol": 1e-14},
    )
    elo: np.ndarray = scaled.x / SCALE
    return elo - elo[anchor]


def _is_connected(met: np.ndarray) -> bool:
    reached = np.eye(len(met), dtype=bool)[0]
    for _ in met:
        reached = reached | met[reached].any(0)
    return bool(reached.all())
