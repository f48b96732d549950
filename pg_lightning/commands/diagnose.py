"""`python -m pg_lightning diagnose --config …`: compares estimators of the policy gradient on the same episodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from rich.progress import track
from torch import Tensor

from pg_lightning.analysis.gradient_noise import Estimate, compare, inner_products, is_seen, least_noisy
from pg_lightning.commands import estimators
from pg_lightning.commands.diagnosis_report import write_report
from pg_lightning.commands.estimators import UNBIASED, give_critic, gradients_on, train_critic
from pg_lightning.commands.weights import load_weights
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.data.datamodule import DIAGNOSE_ACTIONS, DIAGNOSE_ENVS
from pg_lightning.envs import env_seed
from pg_lightning.errors import UserError, require
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.rollout import Rollout


def diagnose(
    trainer: Trainer,
    model: PolicyGradientModule,
    data: RolloutDataModule,
    ckpt_path: str | None,
    batches: int,
    episodes: int,
    gae_lambdas: Sequence[float],
    fit_critic: bool,
    folder: Path,
) -> list[Estimate]:
    """Plays the episodes, computes all gradients, and writes `diagnose.csv`, `.json`, `.png` and `.svg`.

    Raises:
        UserError: if an argument is out of range, or the folder cannot be written.
    """
    require("batches", batches, 8)
    require("episodes", episodes, 2)
    for gae_lambda in gae_lambdas:
        require("gae_lambdas", gae_lambda, 0, 1)
    if trainer.world_size > 1:
        raise UserError("trainer.devices: diagnose runs in one process; set it to 1")
    model.trainer = trainer
    model.setup("predict")
    if ckpt_path is not None:
        load_weights(trainer, model, data, Path(ckpt_path))
    converted = trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device)
    model = cast(PolicyGradientModule, converted)
    fit_critic = fit_critic or ckpt_path is None or not model.has_critic
    gradients, explained = _play_and_differentiate(model, data, batches, episodes, gae_lambdas, fit_critic)
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
    write_report(estimates, report, folder)
    return estimates


def _play_and_differentiate(
    model: PolicyGradientModule,
    data: RolloutDataModule,
    batches: int,
    episodes: int,
    gae_lambdas: Sequence[float],
    fit_critic: bool,
) -> tuple[dict[str, Tensor], float]:
    """The gradients `[M, P]` of every estimator, and the explained variance of the critic that they used."""
    if fit_critic:
        give_critic(model.network)
    collector = diagnosis_collector(data, episodes)
    try:
        if fit_critic:
            train_critic(model, list(play(collector, model, estimators.CRITIC_BATCHES, "episodes for the critic")))
        rollouts = play(collector, model, batches, "episodes for the gradients")
        return gradients_on(model, rollouts, gae_lambdas)
    finally:
        collector.close()


def play(collector: RolloutCollector, model: Any, batches: int, what: str) -> Iterator[Rollout]:
    """Batches of whole episodes, their rewards scaled if the model scales them."""
    for _ in track(range(batches), what, disable=not sys.stdout.isatty()):
        rollout = collector.collect(model.actor).to(model.device)
        if model.reward_scaler is not None:
            rollout = replace(rollout, rewards=model.reward_scaler(rollout.rewards))
        yield rollout


def diagnosis_collector(data: RolloutDataModule, episodes: int) -> RolloutCollector:
    """Collects rollouts of `episodes` whole episodes, one per environment, with seeds that training never uses."""
    own = data.with_settings(num_envs=episodes, num_steps=1, whole_episodes=True)
    seeds = [env_seed(data.seed, DIAGNOSE_ENVS, n) for n in range(episodes)]
    return own.make_collector(seeds, env_seed(data.seed, DIAGNOSE_ACTIONS))
