"""The data side: an `IterableDataset` of rollouts for training, one of whole episodes for everything else."""

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
from pg_lightning.data.evaluation import EvaluationDataset
from pg_lightning.data.overlap import CollectorProcess
from pg_lightning.data.resume import episodes_under_way, go_on
from pg_lightning.envs import BACKENDS, AutoresetName, Backend, choose_backend, env_seed, make_vector_env
from pg_lightning.envs.spaces import require_same_spaces, spaces_of
from pg_lightning.errors import UserError, require
from pg_lightning.processes import require_fork

# Streams of seeds: the first part of the key that tells every source of randomness in a run from every other.
TRAIN_ENVS, TRAIN_ACTIONS, VALIDATE, TEST, PREDICT, DIAGNOSE_ENVS, DIAGNOSE_ACTIONS = range(7)


class RolloutDataModule(LightningDataModule):
    """Rollouts of a Gymnasium environment.

    Args:
        env_id: a Gymnasium id; `module:EnvId` imports the module that registers it first.
        env_kwargs: arguments of the environment.
        wrappers: class paths of wrappers, or `{class_path, init_args}`, applied in this order.
        train_env_kwargs: more arguments, or others, of the environments that are trained in; evaluation does without.
        train_wrappers: wrappers around the others in training; evaluation does without. What they do to rewards and
            episodes is in `rollout/return_mean`, not in `val/return_mean`.
        num_envs: parallel environments N per process.
        num_steps: env steps T per environment and rollout; with `whole_episodes` the least.
        whole_episodes: every environment starts afresh with each rollout and plays on to the end of an episode; with
            `num_steps: 1` that is one episode each.
        overlap: a second process plays the next rollout while this one learns from the last, so that an iteration takes
            as long as the slower of both, not their sum. Each rollout is one update old, which PPO corrects for; other
            algorithms refuse it.
        total_steps: the budget, in env steps over all processes; training stops at the first rollout boundary at or
            past it.
        backend: `sync` steps the environments in this process, `async` in one process each, `vector` uses the
            environment's own vectorised code, `auto` measures and says why.
        env_timeout: with `async`, the seconds that a step or a reset may take, to the first reset with the start of the
            process; an environment that takes longer is replaced, as is one whose process dies. `inf` waits for ever.
        max_env_restarts: with `async`, how many environments are replaced before the run ends, of those that a process
            trains in, and of those that it evaluates in; with 0 the first failure ends it.
        autoreset_mode: when an ended episode restarts: `same_step`, `next_step` or `disabled` (the collector resets);
            by default `same_step`, or what the vectorised code does.
        eval_every_steps: env steps between evaluations during training; one is made at the end in any case.
        save_every_steps: env steps between saves of `last.ckpt`, beside those after evaluations, when training ends and
            when a signal ends it.
        eval_episodes: episodes of an evaluation.
        eval_deterministic: evaluate the mode of the policy instead of samples.
        eval_max_episode_steps: where an evaluation stops an episode that the environment does not end, and a training
            on whole episodes gives up.

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
        for name, count in counts.items():
            require(f"data.{name}", count, 1)
        require("data.env_timeout", env_timeout, 0.1, math.inf)
        require("data.max_env_restarts", max_env_restarts, 0)
        self.env_id = env_id
        self.env_kwargs = env_kwargs
        self.wrappers = wrappers or []
        self.train_env_kwargs = train_env_kwargs
        self.train_wrappers = train_wrappers or []
        self.num_envs, self.num_steps = num_envs, num_steps
        self.whole_episodes = whole_episodes
        self.overlap = overlap
        self.total_steps = total_steps
        self.backend = backend
        self.env_timeout, self.max_env_restarts = env_timeout, max_env_restarts
        self.autoreset_mode = autoreset_mode
        self.eval_every_steps, self.save_every_steps = eval_every_steps, save_every_steps
        self.eval_episodes, self.eval_deterministic = eval_episodes, eval_deterministic
        self.eval_max_episode_steps = eval_max_episode_steps
        self.collector: RolloutCollector | CollectorProcess | None = None
        self.episodes_go_on = False
        self._resumed: dict[str, Any] | None = None
        self._eval_env: Any = None
        self.observation_space, self.action_space = spaces_of(env_id, env_kwargs, self.wrappers, backend)
        if self.train_env_kwargs or self.train_wrappers:
            name = "train_wrappers" if self.train_wrappers else "train_env_kwargs"
            expected = self.observation_space, self.action_space
            require_same_spaces(name, expected, env_id, *self._training_env, backend)

    @property
    def _training_env(self) -> tuple[dict[str, Any] | None, list[ClassPath]]:
        """Arguments and wrappers of the environments that are trained in."""
        env_kwargs = {**(self.env_kwargs or {}), **self.train_env_kwargs} if self.train_env_kwargs else self.env_kwargs
        return env_kwargs, [*self.wrappers, *self.train_wrappers]

    @property
    def rows_vary(self) -> bool:
        """Whether rollouts may differ in how many of their rows are env steps."""
        mode = self.autoreset_mode or BACKENDS[self.backend].capabilities.autoreset
        return self.whole_episodes or mode == "next_step"

    @property
    def seed(self) -> int:
        """The run's seed: the one given to `seed_everything`, else the one that torch chose."""
        return torch.initial_seed()

    def setup(self, stage: str) -> None:
        """Settles the back-end if that was left to measurement.

        Raises:
            UserError: if a process of its own is asked for that the system cannot fork.
        """
        if stage == "fit" and self.overlap:
            require_fork("data.overlap: forks a process", "set it to false")
        if stage == "fit" and self.backend == "auto":
            backend, reason = choose_backend(self.env_id, self.num_envs, *self._training_env, self.autoreset_mode)
            self.backend = all_gather_object(backend)[0]  # the first rank's finding: they must not play differently
            rank_zero_info(f"data.backend auto: {reason}")

    def train_dataloader(self) -> RolloutDataset:
        """Rollouts; the environments start here, or with `overlap` when the first is asked for.

        Without a `DataLoader` around them, which had nothing to do: no batch to make, no worker that could see the
        policy of the moment.
        """
        assert self.trainer is not None
        module, strategy = cast(Any, self.trainer.lightning_module), self.trainer.strategy
        actor = module.actor
        # At least every other row is an env step, so this many rollouts are more than the budget can take.
        length = 2 * self.total_steps
        if self.collector is not None:  # asked again: the environments go on where they stand
            return RolloutDataset(self.collector, actor, strategy, length)
        rank = self.trainer.global_rank
        # Where a resumed run begins new episodes they have seeds of their own: it must not live through those of its
        # first part again.
        key = (rank, module.env_steps)
        seeds = [env_seed(self.seed, TRAIN_ENVS, *key, n) for n in range(self.num_envs)]
        make = partial(self.make_collector, seeds, env_seed(self.seed, TRAIN_ACTIONS, *key))
        self.collector = CollectorProcess(make) if self.overlap else make()
        saved, self._resumed = None if self._workers_play_alone else self._resumed, None
        world_size = self.trainer.world_size
        self.episodes_go_on = saved is not None and go_on(self, self.collector, saved, rank, world_size, actor)
        return RolloutDataset(self.collector, actor, strategy, length)

    def diagnosis_collector(self, episodes: int) -> RolloutCollector:
        """Plays rollouts of so many whole episodes, one in each environment, that no training has seen."""
        own = self.with_settings(num_envs=episodes, num_steps=1, whole_episodes=True)
        seeds = [env_seed(self.seed, DIAGNOSE_ENVS, n) for n in range(episodes)]
        return own.make_collector(seeds, env_seed(self.seed, DIAGNOSE_ACTIONS))

    def with_settings(self, **settings: Any) -> RolloutDataModule:
        """A copy with other settings, for a use beside training; it makes environments of its own.

        Raises:
            AttributeError: if there is no such setting.
        """
        changed = copy(self)
        if unknown := settings.keys() - vars(self).keys():
            raise AttributeError(f"no setting {', '.join(sorted(unknown))}")
        vars(changed).update(settings, collector=None, _eval_env=None, _resumed=None)
        return changed

    @property
    def _workers_play_alone(self) -> bool:
        """Whether each worker of an asynchronous strategy has environments that only it knows of."""
        return self.trainer is not None and hasattr(self.trainer.strategy, "num_workers")

    def make_collector(self, seeds: list[int], action_seed: int) -> RolloutCollector:
        """New training environments, as the settings have them, and what plays rollouts in them."""
        return RolloutCollector(
            self._make_env(self.num_envs, *self._training_env, self.backend, self.autoreset_mode),
            self.num_steps,
            seeds[0] if BACKENDS[self.backend].capabilities.seeds == "one" else seeds,
            action_seed,
            self.whole_episodes,
            self.eval_max_episode_steps,
        )

    def _make_env(
        self,
        num_envs: int,
        env_kwargs: dict[str, Any] | None,
        wrappers: list[ClassPath],
        backend: Backend,
        mode: AutoresetName | None,
    ) -> Any:
        limits = self.env_timeout, self.max_env_restarts
        # A process that plays ahead acts on a CPU.
        device = "cpu" if self.trainer is None or self.overlap else self.trainer.strategy.root_device
        return make_vector_env(self.env_id, num_envs, env_kwargs, wrappers, backend, mode, *limits, device)

    def val_dataloader(self) -> DataLoader[Any]:
        """Episodes from the same seeds at every call, so that evaluations of one run compare policies, not luck."""
        return self._evaluation_loader(VALIDATE)

    def test_dataloader(self) -> DataLoader[Any]:
        """Episodes that no validation has seen: the best checkpoint was chosen by those."""
        return self._evaluation_loader(TEST)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Episodes with their trajectories."""
        return self._evaluation_loader(PREDICT)

    def _evaluation_loader(self, stream: int) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        require("data.eval_episodes", self.eval_episodes, world_size)
        seeds = [env_seed(self.seed, stream, i) for i in range(rank, self.eval_episodes, world_size)]
        num_envs = max(1, min(self.num_envs, len(seeds)))
        if self._eval_env is None or self._eval_env.num_envs != num_envs:
            backend = BACKENDS[self.backend].evaluates_in
            self._eval_env = self._make_env(num_envs, self.env_kwargs, self.wrappers, backend, "disabled")
        episodes = EvaluationDataset(
            self._eval_env,
            cast(Any, self.trainer.lightning_module).actor,
            seeds,
            env_seed(self.seed, stream, rank, 0),
            self.eval_deterministic,
            self.eval_max_episode_steps,
            record=stream == PREDICT,
        )
        # A generator of its own: each pass draws a number, and how often one evaluates must not move training.
        return DataLoader(episodes, batch_size=None, generator=torch.Generator())

    def on_exception(self, exception: BaseException) -> None:
        """Ends the processes too that play rollouts or environments: Lightning calls no `teardown` then."""
        with suppress(Exception):  # of environments that were interrupted: it would hide what went wrong before
            self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        if self.collector is not None:
            self.collector.close()
            self.collector = None
        if self._eval_env is not None:
            self._eval_env.close()
            self._eval_env = None

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint was trained on, and the episodes under way, of every rank; every rank must ask."""
        state = {"env_id": self.env_id}
        if self.collector is None or self._workers_play_alone:
            return state
        return {**state, **episodes_under_way(self, self.collector)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses the checkpoint of another environment; keeps the episodes for when training starts.

        Raises:
            UserError: naming both.
        """
        trained_on = state_dict["env_id"]
        if (new_name(trained_on) or trained_on) != self.env_id:
            raise UserError(f"data.env_id: the checkpoint was trained on {trained_on!r}, not on {self.env_id!r}")
        self._resumed = state_dict
