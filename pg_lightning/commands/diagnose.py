"""`python -m pg_lightning diagnose --config …`: estimators of the policy gradient side by side on the same episodes.

All of them estimate one vector, with the sum over the steps of an episode and the mean over episodes:

    g = E[ Σ_t Ψ_t ∇log π(a_t|s_t) ],   Ψ_t = Q(s_t, a_t),   the "γ-just" form of Schulman et al. 2016, §3

Returns are discounted from the step that they are seen from, and nothing stands in front of a step, as in the updates
of all algorithms here. At a time limit V of the last observation stands for what would have followed, for all alike.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from rich.progress import track
from torch import Tensor, nn

from pg_lightning.callbacks import read_checkpoint
from pg_lightning.commands.runs import write_csv
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.errors import UserError, require
from pg_lightning.lightning_private import datamodule_state
from pg_lightning.losses import policy_gradient_loss, value_loss
from pg_lightning.metrics import explained_variance
from pg_lightning.networks import ActorCritic, ValueNormalizer
from pg_lightning.plot import COLORS, new_figure, save
from pg_lightning.returns import episode_index, gae, mean_of_other_episodes, reward_to_go
from pg_lightning.rollout import Rollout, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPISODE_RETURN, REWARD_TO_GO, MEAN_BASELINE = "episode return", "reward-to-go", "mean baseline"
LEARNED_BASELINE, TD = "learned baseline", "TD"  # which are GAE with λ = 1 and λ = 0
UNBIASED = (REWARD_TO_GO, MEAN_BASELINE, LEARNED_BASELINE)
CRITIC_BATCHES = 16  # that a critic is fitted to
CRITIC_STEPS, CRITIC_ROWS, CRITIC_LR = 3000, 256, 1e-3  # of Adam
RESAMPLES = 1000
WIDTHS = (11, 10, 9, 8, 11, 11, 14, 11)  # of the columns of the table
TINY = np.finfo(float).tiny


@dataclass
class Estimate:
    """What M gradients of one estimator, each of K episodes, say of it. An interval holds 95 %: see `compare`.

    Attributes:
        estimator: its name.
        norm: |E g|, the length of its mean.
        variance: tr Cov(g) of one batch: the sum of the variances of all components.
        snr: |E g|² / tr Cov(g) of one batch.
        noise: K / snr: how many episodes it takes until the noise is no longer than the signal.
        cosine: between the gradients of two batches, its mean.
        bias: |E g − E g_ref| / |E g_ref|, 0 where less is seen than chance gives.
        bias_by_chance: what an estimator without bias would show in one diagnosis of twenty.
        direction: cosine between E g and E g_ref.
        misdirection: the sine of that angle, and 1 beyond a right one: the bias min_c |c E g − E g_ref| / |E g_ref|
            that is left for the best step size c ≥ 0.
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
        """Whether its mean is another vector by more than chance gives."""
        return self.bias > self.bias_by_chance

    @property
    def is_misdirected(self) -> bool:
        """Whether its mean points elsewhere by more than chance gives."""
        return self.misdirection > self.misdirection_by_chance


def diagnose(
    trainer: Trainer,
    model: Any,
    data: RolloutDataModule,
    ckpt_path: str | None,
    batches: int,
    episodes: int,
    gae_lambdas: Sequence[float],
    fit_critic: bool,
    folder: Path,
) -> list[Estimate]:
    """Plays the episodes, makes all gradients of them, and writes `diagnose.csv`, `.json`, `.png` and `.svg`.

    Raises:
        UserError: if an argument is out of range, or the folder cannot be written.
    """
    require("batches", batches, 8)
    require("episodes", episodes, 2)
    for gae_lambda in gae_lambdas:
        require("gae_lambdas", gae_lambda, 0, 1)
    if trainer.world_size > 1:
        raise UserError("trainer.devices: diagnose plays and computes in one process; set it to 1")
    if ckpt_path is not None:
        load(model, data, ckpt_path)
    model.trainer = trainer
    model = trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device)
    fit_critic = fit_critic or ckpt_path is None or not model.has_critic
    if fit_critic:
        give_critic(model.network)
    collector = data.diagnosis_collector(episodes)
    try:
        if fit_critic:
            train_critic(model, list(play(collector, model, CRITIC_BATCHES, "episodes for the critic")))
        rollouts = play(collector, model, batches, "episodes for the gradients")
        gradients, explained = gradients_on(model, rollouts, gae_lambdas)
    finally:
        collector.close()
    products = inner_products([*gradients.values()])
    reference = least_noisy(products, [list(gradients).index(name) for name in UNBIASED])
    estimates = compare(list(gradients), products, episodes, reference)
    report = {
        "env_id": data.env_id,
        "seed": data.seed,
        "ckpt_path": ckpt_path,
        "env_steps": model.env_steps,
        "gamma": model.gamma,
        "batches": batches,
        "episodes": episodes,
        "critic": "fitted" if fit_critic else "of the checkpoint",
        "reference": list(gradients)[reference],
        "signal_is_seen": is_seen(products[reference, reference]),
        "explained_variance": explained,
        "estimators": [asdict(estimate) for estimate in estimates],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diagnose.json").write_text(json.dumps(report, indent=1) + "\n")
        write_csv(folder / "diagnose.csv", [flat(estimate) for estimate in estimates])
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error.strerror}; give another folder") from error
    files = draw(estimates, report, folder / "diagnose.png")
    print(table(estimates, report), *(folder / "diagnose.csv", folder / "diagnose.json", *files), sep="\n")
    return estimates


def load(model: Any, data: RolloutDataModule, ckpt_path: str) -> None:
    """The weights and statistics of a checkpoint.

    Raises:
        UserError: if it is of another environment or network.
    """
    checkpoint = read_checkpoint(Path(ckpt_path))
    data.load_state_dict(datamodule_state(checkpoint, data))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])


def play(collector: RolloutCollector, model: Any, batches: int, what: str) -> Iterator[Rollout]:
    """Batches of whole episodes, their rewards scaled if the model scales them."""
    for _ in track(range(batches), what, disable=not sys.stdout.isatty()):
        rollout = collector.collect(model).to(model.device)
        if model.reward_scaler is not None:
            rollout = replace(rollout, rewards=model.reward_scaler(rollout.rewards))
        yield rollout


# The critic: what makes a baseline good, and TD and GAE biased.


def give_critic(network: ActorCritic) -> None:
    """A new critic, which shares nothing with the actor and begins with its features."""
    network.critic_torso = deepcopy(network.actor_torso)
    network.critic_memory = deepcopy(network.actor_memory)
    weight = network.actor_head.linear.weight
    features: Any = network.actor_memory or network.actor_torso
    network.critic_head = nn.Linear(features.out_features, 1, dtype=weight.dtype, device=weight.device)
    network.value_normalizer = ValueNormalizer().to(weight.device)


def train_critic(model: Any, rollouts: Sequence[Rollout]) -> None:
    """Regression of V on the returns of episodes.

    They must not be those that gradients are made of: the baseline would know what the actions led to.
    """
    network = model.network
    optimizer = torch.optim.Adam(network.parameter_groups()[1], lr=CRITIC_LR)
    steps = 0
    while steps < CRITIC_STEPS:
        for rollout in rollouts:
            samples = model.samples(rollout, gae_lambda=1.0, normalize_advantage=False)
            for batch in samples.minibatches(math.ceil(len(samples) / CRITIC_ROWS)):
                optimizer.zero_grad()
                value_loss(network(batch)[1], batch.returns).backward()
                optimizer.step()
                steps += 1


# The estimators.


def gradients_on(
    model: Any, rollouts: Iterable[Rollout], gae_lambdas: Sequence[float]
) -> tuple[dict[str, Tensor], float]:
    """The gradients `[M, P]` of every estimator on M batches, and how much of the variance of returns V explains."""
    gradients: dict[str, list[Tensor]] = {}
    predicted = []
    for rollout in rollouts:
        with torch.no_grad(), model.trainer.precision_plugin.forward_context():
            values, next_values = model.network.values(rollout)
        weights = weights_of(rollout, values, next_values, model.gamma, gae_lambdas)
        for name, gradient in gradients_of(model, rollout, weights).items():
            gradients.setdefault(name, []).append(gradient)
        predicted.append(torch.stack([values, weights[REWARD_TO_GO]])[:, rollout.valid])
    explained = explained_variance(*torch.cat(predicted, 1)).nan_to_num().item()
    return {name: torch.stack(of_batches) for name, of_batches in gradients.items()}, explained


def weights_of(
    rollout: Rollout, values: Tensor, next_values: Tensor, gamma: float, gae_lambdas: Sequence[float]
) -> dict[str, Tensor]:
    """Ψ `[T, N]` of every estimator, by its name, from the noisiest to the one with most of the critic in it.

    - episode return: Σ_k γ^|k−t| r_k over all steps k of the episode. What was earned before t, which the action could
      not change, has mean 0 times ∇log π. Without discount it is the return of the whole episode. (The return G_0
      discounted from the first step is another matter: it has the mean of γ^t G_t.)
    - reward-to-go: G_t.
    - mean baseline: G_t minus the mean of G over the other episodes of the batch.
    - learned baseline: G_t − V(s_t), which is GAE(1).
    - GAE(λ) (Schulman et al. 2016, eq. 16): biased by the errors of V as far as λ < 1.
    - TD: r_t + γ V(s_{t+1}) − V(s_t), which is GAE(0).

    Args:
        rollout: whole episodes.
        values: `[T, N]` V(s_t).
        next_values: `[T, N]` V of the state that followed.
        gamma: γ.
        gae_lambdas: λ of GAE, beside 0 and 1.
    """
    rewards, valid, starts = rollout.rewards * rollout.valid, rollout.valid, rollout.starts
    cut = rollout.truncated & ~rollout.terminated & valid
    returns = reward_to_go(rewards + gamma * next_values * cut, rollout.done, valid, gamma)
    # Backwards in time, an episode ends where it begins.
    earned = reward_to_go(rewards.flip(0), starts.flip(0), valid.flip(0), gamma).flip(0) - rewards
    mean = torch.zeros_like(returns)
    mean[valid] = mean_of_other_episodes(returns[valid], episode_index(rollout.timesteps, valid))
    arguments = (rewards, values, next_values, rollout.terminated, rollout.truncated, valid, gamma)
    between = {f"GAE({x:g})": gae(*arguments, x) for x in sorted({*gae_lambdas} - {0.0, 1.0}, reverse=True)}
    return {
        EPISODE_RETURN: earned + returns,
        REWARD_TO_GO: returns,
        MEAN_BASELINE: returns - mean,
        LEARNED_BASELINE: gae(*arguments, 1.0),
        **between,
        TD: gae(*arguments, 0.0),
    }


def gradients_of(model: Any, rollout: Rollout, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """1/K Σ_episodes Σ_t Ψ_t ∇log π(a_t|s_t) `[P]`, by the actor's P parameters, for weights Ψ `[T, N]`."""
    parameters = model.network.parameter_groups()[0]
    samples = Samples.of(rollout, *3 * (torch.zeros_like(rollout.rewards),))
    with model.trainer.precision_plugin.forward_context():
        log_probs = model.network.policy(samples).log_prob(samples.actions)
    rows_per_episode = len(samples) / int(rollout.starts.sum())
    gradients = {}
    for name, psi in weights.items():
        loss = rows_per_episode * policy_gradient_loss(log_probs, psi[rollout.valid])
        parts = torch.autograd.grad(-loss, parameters, retain_graph=True, materialize_grads=True)
        gradients[name] = torch.cat([part.flatten() for part in parts])
    return gradients


# The statistics.


def inner_products(gradients: Sequence[Tensor]) -> np.ndarray:
    """`[E, E, M, M]` of the gradients `[M, P]` of E estimators on M batches: all that the statistics need.

    Raises:
        UserError: if all are zero.
    """
    E, M = len(gradients), len(gradients[0])
    parts = torch.cat([*gradients]).split(1 << 16, dim=1)
    products = np.sum([(part.double() @ part.double().T).cpu().numpy() for part in parts], axis=0)
    if not products.any():
        raise UserError("data.env_id: the gradient is zero in every batch; no reward came that an action could change")
    return products.reshape(E, M, E, M).swapaxes(1, 2)


def least_noisy(products: np.ndarray, candidates: Sequence[int]) -> int:
    """The estimator with the least variance."""
    once = np.ones((1, products.shape[-1]))
    return min(candidates, key=lambda e: (within(products[e, e], once) - between(products[e, e], once))[0])


def compare(names: Sequence[str], products: np.ndarray, episodes: int, reference: int, seed: int = 0) -> list[Estimate]:
    """Signal, noise and bias of every estimator.

    The mean gradient ḡ of M batches is longer than E g: |ḡ|² expects |E g|² + tr Cov(g) / M. So |E g|² is estimated by
    the mean of g_i·g_j over all pairs of different batches, and the bias by the same of the differences from the
    reference on the same batches. Intervals are percentiles of bootstraps over batches. What bias chance gives is the
    95 % point of what is found when the differences of batches get random signs.

    Variance as in Greensmith, Bartlett & Baxter 2004; signal to noise after Roberts & Tedrake 2008; the cosine as in
    Ilyas et al. 2020, §3.1.

    Args:
        names: of the E estimators.
        products: `[E, E, M, M]` inner products of their gradients of M batches.
        episodes: K, of a batch.
        reference: index of an estimator that has no bias.
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
    """What `between` gives in one case of twenty for vectors with these inner products `[M, M]` but random signs."""
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (RESAMPLES, len(products)))
    return float(np.percentile(between(products, signs), 95))


def is_seen(products: np.ndarray) -> bool:
    """Whether the mean of vectors with these inner products `[M, M]` is longer than chance gives."""
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
    signal, lengths = between(own, counts), np.sqrt(own.diagonal().clip(TINY))
    squared = within(own, counts)
    # In a resample of few batches there may be next to none.
    variance = np.maximum(squared - signal, 1e-6 * squared).clip(TINY)
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
        "direction": (together / np.sqrt(size(own, counts) * scale).clip(TINY)).clip(-1, 1),
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
    """`[R]` |E g|², but no less than the variance of the mean gradient: what one can divide by."""
    signal = between(products, counts)
    return np.maximum(signal, (within(products, counts) - signal) / counts.shape[1]).clip(TINY)


# What is shown of it.


def flat(estimate: Estimate) -> dict[str, Any]:
    """The fields as one row of a table, an interval as two."""
    row: dict[str, Any] = {}
    for key, value in asdict(estimate).items():
        if isinstance(value, list):
            name = key.removesuffix("_interval")
            row |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        else:
            row[key] = value
    return row


def table(estimates: Sequence[Estimate], report: dict[str, Any]) -> str:
    """The estimators, one a line, and what the numbers are."""
    names = ("noise", "SNR", "cosine", "bias", "by chance", "direction", "misdirection", "by chance")
    lines = [f"{'':<17}" + "".join(f"{x:>{width}}" for x, width in zip(names, WIDTHS, strict=True))]
    for x in estimates:
        gradient = (f"{x.noise:,.1f}", f"{x.snr:.3g}", f"{x.cosine:.3f}")
        bias = (x.bias, x.bias_by_chance, x.direction, x.misdirection, x.misdirection_by_chance)
        cells = (*gradient, *(f"{value:.2f}" for value in bias))
        lines.append(f"{x.estimator:<17}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True)))
    lines += [
        "noise: episodes until it is no longer than the signal; SNR, cosine: of batches of "
        f"{report['episodes']} episodes, {report['batches']} batches in all",
        f"bias, direction, misdirection: against {report['reference']}; what is not above `by chance` is not seen",
        f"critic: {report['critic']}; its explained variance on these episodes is {report['explained_variance']:.2f}",
    ]
    if not report["signal_is_seen"]:
        lines.append(
            "The gradient itself is not told from noise: what is said of bias says little. Give more --batches."
        )
    return "\n".join(lines)


def draw(estimates: Sequence[Estimate], report: dict[str, Any], output: Path) -> list[Path]:
    """Noise and bias, one row an estimator; a circle is hollow where no more bias is seen than chance gives."""
    figure, noise = new_figure("noise", "episodes until it is no longer than the signal", "")
    columns = figure.add_gridspec(1, 2)
    noise.set_subplotspec(columns[0])
    bias = figure.add_subplot(columns[1], sharey=noise)
    bias.set(xlabel="share of the gradient", title="bias")
    bias.spines[["top", "right"]].set_visible(False)
    bias.grid(alpha=0.25)
    bias.tick_params(labelleft=False)
    for row, x in enumerate(estimates):
        interval(noise, x.noise, x.noise_interval, row, COLORS[0], COLORS[0])
        shade = COLORS[1] if x.is_misdirected else "white"
        interval(bias, x.misdirection, x.misdirection_interval, row - 0.13, COLORS[1], shade)
        shade = COLORS[5] if x.is_biased else "white"
        interval(bias, x.bias, x.bias_interval, row + 0.13, COLORS[5], shade)
    noise.set_xscale("log")
    noise.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    noise.set_yticks(range(len(estimates)), [x.estimator for x in estimates])
    noise.invert_yaxis()
    widest = 1.15 * max(1.0, *(value for x in estimates for value in (x.bias, x.misdirection)))
    bias.set_xlim(-0.04 * widest, widest)
    for color, label in ((COLORS[1], "of its direction"), (COLORS[5], "in all")):
        bias.plot([], [], "o", color=color, label=label)
    bias.legend(frameon=False, loc="upper right")
    figure.suptitle(f"{report['env_id']} after {report['env_steps']:,} env steps, γ = {report['gamma']:g}")
    return save(figure, output)


def interval(axes: Axes, value: float, ends: Sequence[float], row: float, color: str, shade: str) -> None:
    """A circle and its interval, which may lie beside it."""
    axes.plot(ends, [row, row], color=color, linewidth=1.2)
    axes.plot(value, row, "o", color=color, markerfacecolor=shade, markersize=6.5)
