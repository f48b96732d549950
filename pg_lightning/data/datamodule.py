"""The datamodule: an `IterableDataset` of rollouts for training, and one of whole episodes for evaluation."""

from __future__ import annotations

import math
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from pg_lightning.class_path import ClassPath, new_name
from pg_lightning.collectives import all_gather_object
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.data.dataset import RolloutDataset
from pg_lightning.data.environments import (
    check_training,
    computes_in_double,
    enter_episodes,
    evaluation_environments,
    new_collector,
    only_instance,
    rows_vary,
    spaces_for,
    training_settings,
)
from pg_lightning.data.evaluation import EvaluationDataset
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.data.resume import check_episodes, episodes_under_way, go_on
from pg_lightning.data.size import require_counts, require_space
from pg_lightning.envs import BACKENDS, AutoresetName, Backend, choose_backend, env_seed
from pg_lightning.envs.failures import closes_within
from pg_lightning.errors import UserError, require
from pg_lightning.games import SelfPlay
from pg_lightning.processes import enter_process, enter_rank, name_process, require_fork

# Seed streams: the first part of the key of every seed, which separates all sources of randomness of a run.
TRAIN_ENVS, TRAIN_ACTIONS, VALIDATE, TEST, PREDICT, DIAGNOSE_ENVS, DIAGNOSE_ACTIONS = range(7)


class RolloutDataModule(LightningDataModule):
    """Rollouts of a Gymnasium environment.

    Args:
        env_id: a Gymnasium id; `module:EnvId` imports the module that registers it first. With the back-end `simulator`
            also the path of a function or a class that returns the environments.
        env_kwargs: arguments of the environment.
        wrappers: class paths of wrappers, or `{class_path, init_args}`, applied in this order.
        train_env_kwargs: arguments that training environments add or change; evaluation does not use them.
        train_wrappers: wrappers that training environments add outside the others; evaluation does not use them. Their
            changes of rewards and episodes appear in `rollout/return_mean`, not in `val/return_mean`.
        num_envs: parallel environments N per process.
        num_steps: env steps T per environment and rollout; the minimum with `whole_episodes`.
        whole_episodes: every environment is reset before each rollout and continues to the end of an episode; with
            `num_steps: 1` that is one episode each.
        overlap: a second process collects the next rollout while this one learns from the last, so that an iteration
            takes as long as the slower of the two, not their sum. Each rollout is one update old, which PPO and V-trace
            correct for; other algorithms refuse it.
        total_steps: the budget, in env steps over all processes; training stops at the first rollout boundary at or
            past it.
        backend: `sync` steps the environments in this process, `async` in one process each, `vector` uses the
            environment's own vectorised code, `envpool` EnvPool, `device` tensors on the policy's device (classic
            control only), `gymnax` and `brax` these libraries in JAX, `simulator` a vector environment that returns
            tensors, of which one instance serves training and evaluation, `auto` measures and reports its choice.
        env_timeout: with `async`, the seconds that a step or a reset may take; for the first reset, including the start
            of the process. An environment that takes longer is replaced, as is one whose process dies. With every
            back-end also the seconds that `close` may take, and that the process of `overlap` or a worker of the
            strategy `hogwild` may be stopped. `inf`: no limit.
        max_env_restarts: with `async`, the number of replacements after which the next failure ends the run, counted
            separately for training and evaluation environments of a process; with 0 the first failure ends it.
        autoreset_mode: when a finished episode is reset: `same_step`, `next_step` or `disabled` (the collector resets);
            by default `same_step`, or the mode of the vectorised code.
        eval_every_steps: env steps between evaluations during training; there is always one at the end.
        save_every_steps: env steps between saves of `last.ckpt`, in addition to the saves after evaluations, at the end
            of training and on a signal.
        eval_episodes: episodes of an evaluation.
        eval_deterministic: evaluate the mode of the policy instead of samples.
        eval_max_episode_steps: limit after which an evaluation stops an episode that the environment does not end, and
            training on whole episodes fails.
        self_play: for two-player games, which the policy learns by playing both seats, or one against opponents.

    Raises:
        UserError: if an argument is out of range or the environment cannot be made.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any] | None = None,
        wrappers: list[ClassPath] | None = None,
        train_env_kwargs: dict[str, Any] | None = None,
        train_wrappers: list[ClassPath] | None = None,
        num_envs: int = 8,
        num_steps: int = 128,
        whole_episodes: bool = False,
        overlap: bool = False,
        total_steps: int = 100_000,
        backend: Backend = "sync",
        env_timeout: float = 60.0,
        max_env_restarts: int = 100,
        autoreset_mode: AutoresetName | None = None,
        eval_every_steps: int = 10_000,
        save_every_steps: int | None = None,
        eval_episodes: int = 10,
        eval_deterministic: bool = True,
        eval_max_episode_steps: int = 50_000,
        self_play: SelfPlay | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "num_envs": num_envs,
            "num_steps": num_steps,
            "total_steps": total_steps,
            "eval_every_steps": eval_every_steps,
            "save_every_steps": eval_every_steps if save_every_steps is None else save_every_steps,
            "eval_episodes": eval_episodes,
            "eval_max_episode_steps": eval_max_episode_steps,
        }
        require_counts(counts)
        require("data.env_timeout", env_timeout, 0.1, math.inf)
        require("data.max_env_restarts", max_env_restarts, 0)
        self.env_id = env_id
        self.env_kwargs = env_kwargs
        self.wrappers = wrappers or []
        self.train_env_kwargs = train_env_kwargs
        self.train_wrappers = train_wrappers or []
        self.num_envs, self.num_steps = num_envs, num_steps
        self.whole_episodes, self.overlap = whole_episodes, overlap
        self.total_steps = total_steps
        self.backend = backend
        self.env_timeout, self.max_env_restarts = env_timeout, max_env_restarts
        self.autoreset_mode = autoreset_mode
        self.eval_every_steps, self.save_every_steps = eval_every_steps, save_every_steps
        self.eval_episodes, self.eval_deterministic = eval_episodes, eval_deterministic
        self.eval_max_episode_steps, self.self_play = eval_max_episode_steps, self_play
        self.collector: RolloutCollector | CollectorProcess | None = None
        self.episodes_go_on = False
        self._resumed: dict[str, Any] | None = None
        self._eval_env: Any = None
        self.eval_groups: list[str] = []
        self.instance = only_instance(self)
        self.observation_space, self.action_space = spaces_for(self)

    @property
    def rows_vary(self) -> bool:
        """Whether rollouts may differ in their number of valid rows."""
        return self.whole_episodes or rows_vary(self)

    @property
    def num_columns(self) -> int:
        """Columns of a rollout: one of each environment, and of a game that the policy plays on both seats two."""
        return self.num_envs + (0 if self.self_play is None else self.self_play.num_both(self.num_envs))

    @property
    def seed(self) -> int:
        """The run's seed: the one given to `seed_everything`, else torch's initial seed."""
        return torch.initial_seed()

    def setup(self, stage: str) -> None:
        """Chooses the back-end for `auto` by measurement; gives every rank its own global random generators.

        Raises:
            UserError: if an option needs to fork a process and the system cannot.
        """
        if self.trainer is not None and not self.is_asynchronous:
            enter_rank(self.trainer.global_rank)
        if stage == "fit" and self.overlap:
            require_fork("data.overlap: forks a process", "set it to false")
        if stage == "fit":
            check_training(self)
            require_space(self)
        if stage == "fit" and self.backend == "auto":
            settings = training_settings(self)
            backend, reason = choose_backend(self.env_id, self.num_envs, *settings, self.autoreset_mode)
            self.backend = all_gather_object(backend)[0]  # rank 0's choice, so that all ranks use the same
            rank_zero_info(f"data.backend auto: {reason}")

    def train_dataloader(self) -> RolloutDataset:
        """Rollouts; the environments start here, or with `overlap` when the first rollout is requested.

        There is no `DataLoader` around them: there is no batch to make, and a worker process of it could not see the
        current policy.
        """
        assert self.trainer is not None
        module, strategy = cast(Any, self.trainer.lightning_module), self.trainer.strategy
        actor = module.actor
        # At least every other row is an env step, so this number of rollouts always covers the budget.
        length = 2 * self.total_steps
        if self.collector is not None:  # called again: the environments continue from their current state
            return RolloutDataset(self.collector, actor, strategy, length)
        rank = self.trainer.global_rank
        # If a resumed run starts new episodes, they get seeds of their own, so that it does not repeat the episodes of
        # its first part.
        key = (rank, module.env_steps)
        # The 0 is no number of a fork: no fork has the key of a resumed run.
        name_process(rank, 0, module.env_steps)
        if module.env_steps:
            enter_process(rank, 0, module.env_steps, torch_too=self.is_asynchronous)
        seeds = [env_seed(self.seed, TRAIN_ENVS, *key, n) for n in range(self.num_envs)]
        make = partial(self.make_collector, seeds, env_seed(self.seed, TRAIN_ACTIONS, *key))
        self.collector = CollectorProcess(make, self.env_timeout) if self.overlap else make()
        saved, self._resumed = None if self.is_asynchronous else self._resumed, None
        of = rank, self.trainer.world_size
        self.episodes_go_on = saved is not None and go_on(self, self.collector, saved, *of, actor)
        return RolloutDataset(self.collector, actor, strategy, length)

    def with_settings(self, **settings: Any) -> RolloutDataModule:
        """A copy with other settings, for use besides training; it makes its own environments, if there can be several.

        Raises:
            AttributeError: if there is no such setting.
        """
        changed = copy(self)
        if unknown := settings.keys() - vars(self).keys():
            raise AttributeError(f"no setting {', '.join(sorted(unknown))}")
        vars(changed).update(settings, collector=None, _eval_env=None, _resumed=None)
        return changed

    @property
    def is_asynchronous(self) -> bool:
        """Whether each worker of an asynchronous strategy has its own, independent environments."""
        return self.trainer is not None and hasattr(self.trainer.strategy, "num_workers")

    def make_collector(self, seeds: list[int], action_seed: int) -> RolloutCollector:
        """New training environments with these settings, and their collector."""
        return new_collector(self, seeds, action_seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """Episodes with the same seeds at every call, so that evaluations of one run can be compared."""
        return self._evaluation_loader(VALIDATE)

    def test_dataloader(self) -> DataLoader[Any]:
        """Episodes with seeds that no validation has used, because the best checkpoint was selected with those."""
        return self._evaluation_loader(TEST)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Episodes with their trajectories."""
        return self._evaluation_loader(PREDICT)

    def _evaluation_loader(self, stream: int) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        require("data.eval_episodes", self.eval_episodes, world_size)
        episodes = {env_seed(self.seed, stream, i): i for i in range(rank, self.eval_episodes, world_size)}
        num_envs = max(1, min(self.num_envs, len(episodes)))
        if self._eval_env is None or self._eval_env.num_envs != num_envs:
            self._eval_env = evaluation_environments(self, num_envs)
        self.eval_groups = enter_episodes(self._eval_env, episodes)
        dataset = EvaluationDataset(
            self._eval_env,
            cast(Any, self.trainer.lightning_module).actor,
            list(episodes),
            env_seed(self.seed, stream, rank, 0),
            self.eval_deterministic,
            self.eval_max_episode_steps,
            record=stream == PREDICT,
            double=computes_in_double(self),
            groups=[episode % max(1, len(self.eval_groups)) for episode in episodes.values()],
        )
        # Its own generator: each pass draws a number, and the number of evaluations must not affect training.
        return DataLoader(dataset, batch_size=None, generator=torch.Generator())

    def on_exception(self, exception: BaseException) -> None:
        """Also ends the processes of collectors and environments: Lightning does not call `teardown` then."""
        with suppress(Exception):  # of interrupted environments: it would hide the original error
            self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        parts, self.collector, self._eval_env = (self.collector, self._eval_env), None, None
        for part in parts:
            if part is not None:
                # Processes are killed soon; an alarm would leave them running.
                forks = isinstance(part, CollectorProcess) or BACKENDS[self.backend].capabilities.supervises
                with closes_within(math.inf if forks else self.env_timeout):
                    part.close()

    def state_dict(self) -> dict[str, Any]:
        """The trained environment, and the current episodes of every rank. A collective: all ranks must call it."""
        state = {"env_id": self.env_id}
        if self.collector is None or self.is_asynchronous:
            return state
        return {**state, **episodes_under_way(self, self.collector)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses the checkpoint of another environment; keeps the episodes until training starts.

        Raises:
            UserError: naming both environments, or what is damaged.
        """
        trained_on = state_dict["env_id"]
        if (new_name(trained_on) or trained_on).rpartition(":")[2] != self.env_id.rpartition(":")[2]:
            raise UserError(f"data.env_id: the checkpoint was trained on {trained_on!r}, not on {self.env_id!r}")
        if self.trainer is not None and self.trainer.state.fn == "fit" and not self.is_asynchronous:
            check_episodes(self, state_dict, self.trainer)
        self._resumed = state_dict
