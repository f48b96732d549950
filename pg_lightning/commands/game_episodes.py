"""Games of a policy from a checkpoint, one after the other, for the commands that show them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lightning.pytorch import Trainer

from pg_lightning.commands.weights import load_weights
from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.data.datamodule import PREDICT
from pg_lightning.data.environments import enter_episodes
from pg_lightning.envs import env_seed
from pg_lightning.errors import UserError
from pg_lightning.games import Arena
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.rollout import Episode


def games_of_policy(
    trainer: Trainer, model: PolicyGradientModule, data: RolloutDataModule, ckpt_path: str, arena: Arena, numbers: range
) -> Iterator[Episode]:
    """The episodes of a policy in an arena of one game; each begins when the one before has been taken.

    Args:
        trainer: gives the precision.
        model: its policy plays, with the weights of the checkpoint.
        data: `eval_deterministic` and the like; the seeds are those of `predict`.
        ckpt_path: the weights.
        arena: of an evaluation, with one game.
        numbers: of the episodes, which choose opponent and seat.

    Raises:
        UserError: if there are several processes, or the checkpoint does not fit.
    """
    if trainer.world_size > 1:
        raise UserError("trainer.devices: games are shown by one process; set it to 1")
    model.trainer = trainer
    model.setup("predict")
    load_weights(trainer, model, data, Path(ckpt_path))
    module = trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device)
    module.eval()
    seeds = {env_seed(data.seed, PREDICT, number): number for number in numbers}
    groups = enter_episodes(arena, seeds)
    dataset = EvaluationDataset(
        arena,
        model.actor,  # type: ignore[arg-type]
        list(seeds),
        env_seed(data.seed, PREDICT, 0, 0),
        data.eval_deterministic,
        data.eval_max_episode_steps,
        double=trainer.precision == "64-true",
        groups=[number % len(groups) for number in seeds.values()],
    )
    yield from islice(dataset, len(dataset))  # and no further: the dataset would begin one more game
