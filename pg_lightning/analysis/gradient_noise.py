"""Signal, noise and bias of estimators of one gradient, from the inner products of their gradients on batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pg_lightning.errors import UserError

RESAMPLES = 1000
MIN_DIVISOR = np.finfo(float).tiny


@dataclass
class Estimate:
    """Statistics of M gradients of one estimator, each from K episodes, with 95 % intervals: see `compare`.

    Attributes:
        estimator: its name.
        norm: |E g|, the length of its mean.
        variance: tr Cov(g) of one batch: the sum of the variances of all components.
        snr: |E g|² / tr Cov(g) of one batch.
        noise: K / snr: the number of episodes at which noise equals signal.
        cosine: the mean cosine between the gradients of two batches.
        bias: |E g − E g_ref| / |E g_ref|, 0 if it is not significant.
        bias_by_chance: the value that an unbiased estimator exceeds in one of twenty diagnoses.
        direction: cosine between E g and E g_ref.
        misdirection: the sine of that angle, and 1 beyond 90°: the bias min_c |c E g − E g_ref| / |E g_ref|
            that remains for the best step size c ≥ 0.
        misdirection_by_chance: like `bias_by_chance`.
    """

    estimator: str
    norm: float
    variance: float
    snr: float
    snr_interval: list[float]
    noise: float
    noise_interval: list[float]
    cosine: float
    cosine_interval: list[float]
    bias: float
    bias_interval: list[float]
    bias_by_chance: float
    direction: float
    misdirection: float
    misdirection_interval: list[float]
    misdirection_by_chance: float

    @property
    def is_biased(self) -> bool:
        """Whether its mean differs significantly from the reference."""
        return self.bias > self.bias_by_chance

    @property
    def is_misdirected(self) -> bool:
        """Whether the direction of its mean differs significantly from the reference."""
        return self.misdirection > self.misdirection_by_chance


def inner_products(gradients: Sequence[Tensor]) -> np.ndarray:
    """`[E, E, M, M]` of the gradients `[M, P]` of E estimators on M batches: the input of all statistics.

    Raises:
        UserError: if all are zero.
    """
    E, M = len(gradients), len(gradients[0])
    parts = torch.cat([*gradients]).split(1 << 16, dim=1)
    products = np.sum([(part.double() @ part.double().T).cpu().numpy() for part in parts], axis=0)
    if not products.any():
        raise UserError(
            "data.env_id: the gradient is zero in every batch: no reward depends on an action; check the rewards"
        )
    return products.reshape(E, M, E, M).swapaxes(1, 2)


def least_noisy(products: np.ndarray, candidates: Sequence[int]) -> int:
    """The estimator with the smallest variance."""
    once = np.ones((1, products.shape[-1]))
    return min(candidates, key=lambda e: (within(products[e, e], once) - between(products[e, e], once))[0])


def compare(names: Sequence[str], products: np.ndarray, episodes: int, reference: int, seed: int = 0) -> list[Estimate]:
    """Signal, noise and bias of every estimator.

    The mean gradient ḡ of M batches is longer than E g: |ḡ|² has the expectation |E g|² + tr Cov(g) / M. So |E g|² is
    estimated by the mean of g_i·g_j over all pairs of different batches, and the bias in the same way from the
    differences to the reference on the same batches. Intervals are percentiles of bootstraps over batches. The bias by
    chance is the 95 % point of the result when the differences of the batches get random signs.

    Variance as in Greensmith, Bartlett & Baxter 2004; signal to noise after Roberts & Tedrake 2008; the cosine as in
    Ilyas et al. 2020, §3.1.

    Args:
        names: of the E estimators.
        products: `[E, E, M, M]` inner products of their gradients of M batches.
        episodes: K, of a batch.
        reference: index of an unbiased estimator.
        seed: of the resampling.
    """
    M, rng, ref = products.shape[-1], np.random.default_rng(seed), products[reference, reference]
    once, drawn = np.ones((1, M)), rng.multinomial(M, np.full(M, 1 / M), RESAMPLES).astype(float)
    estimates = []
    for e, name in enumerate(names):
        own, cross = products[e, e], products[e, reference]
        found, resampled = (statistics(own, cross, ref, episodes, counts) for counts in (once, drawn))
        values: dict[str, Any] = {key: float(value[0]) for key, value in found.items()}
        for key in ("snr", "noise", "cosine", "bias", "misdirection"):
            values[f"{key}_interval"] = np.percentile(resampled[key], (2.5, 97.5)).tolist()
        for key, factor in (("bias", 1.0), ("misdirection", float(found["step"][0]))):
            by_chance = max(0.0, length_by_chance(difference(own, cross, ref, factor)))
            values[f"{key}_by_chance"] = float(np.sqrt(by_chance / size(ref, once)[0]))
        del values["step"]
        estimates.append(Estimate(name, **values))
    return estimates


def length_by_chance(products: np.ndarray, seed: int = 0) -> float:
    """The value that `between` exceeds in one of twenty cases if vectors with these products have random signs."""
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (RESAMPLES, len(products)))
    return float(np.percentile(between(products, signs), 95))


def is_seen(products: np.ndarray) -> bool:
    """Whether the mean of vectors with these inner products `[M, M]` is significantly longer than 0."""
    return bool(between(products, np.ones((1, len(products))))[0] > length_by_chance(products))


def statistics(
    own: np.ndarray, cross: np.ndarray, ref: np.ndarray, episodes: int, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """The numbers of `Estimate`, and the step size c, `[R]` each, for R samples of the batches.

    Args:
        own: `[M, M]` inner products of the estimator's gradients of M batches.
        cross: `[M, M]` of its gradients and the reference's.
        ref: `[M, M]` of the reference's.
        episodes: K, of a batch.
        counts: `[R, M]` how often each batch is in each sample.
    """
    signal, lengths = between(own, counts), np.sqrt(own.diagonal().clip(MIN_DIVISOR))
    squared = within(own, counts)
    # In a resample of few batches the variance may be almost 0.
    variance = np.maximum(squared - signal, 1e-6 * squared).clip(MIN_DIVISOR)
    scale, together = size(ref, counts), between(cross, counts)
    step = (together / size(own, counts)).clip(0)
    left = scale - 2 * step * together + step**2 * signal
    return {
        "norm": np.sqrt(signal.clip(0)),
        "variance": variance,
        "snr": signal / variance,
        "cosine": between(own / np.outer(lengths, lengths), counts),
        "noise": episodes * variance / size(own, counts),
        "bias": np.sqrt(between(difference(own, cross, ref), counts).clip(0) / scale),
        "direction": (together / np.sqrt(size(own, counts) * scale).clip(MIN_DIVISOR)).clip(-1, 1),
        "misdirection": np.sqrt(left.clip(0) / scale),
        "step": step,
    }


def difference(own: np.ndarray, cross: np.ndarray, ref: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """`[M, M]` inner products of `factor` times the estimator's gradients minus the reference's."""
    return factor**2 * own - factor * (cross + cross.T) + ref


def between(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[R]` weighted means of the inner products `[M, M]` of different batches, for weights `[R, M]` of the batches."""
    squares = weights**2
    total = ((weights @ products) * weights).sum(1) - squares @ products.diagonal()
    return total / (weights.shape[1] ** 2 - squares.sum(1))


def within(products: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[R]` mean squared lengths."""
    return counts @ products.diagonal() / counts.shape[1]


def size(products: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[R]` |E g|², but at least the variance of the mean gradient, so that it can be a divisor."""
    signal = between(products, counts)
    return np.maximum(signal, (within(products, counts) - signal) / counts.shape[1]).clip(MIN_DIVISOR)
