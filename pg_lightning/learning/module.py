"""The base class of all algorithms: a LightningModule whose training step is one update.

An algorithm overrides `update`, and little else.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from gymnasium import Space
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from pg_lightning.class_path import ClassPath
from pg_lightning.collectives import Alone, disconnect
from pg_lightning.learning import checkpoint_state
from pg_lightning.learning.actor import actor_of, as_it_is, precision_of
from pg_lightning.learning.auto_compile import decide
from pg_lightning.learning.checks import check_compile, check_data, check_numbers, check_rollout, check_strategy
from pg_lightning.learning.connecting import connect_ranks, episodes_go_on
from pg_lightning.learning.learner import Learner
from pg_lightning.learning.metrics import Evaluation, EvaluationEpisodes
from pg_lightning.learning.optimizer_state import Restored, guard
from pg_lightning.learning.optimizers import OptimizerSettings
from pg_lightning.learning.progress import Progress
from pg_lightning.learning.reports import TrainingReports, report_evaluation, report_update
from pg_lightning.learning.restoring import LoadsChecked, check_reading, prepare, restored
from pg_lightning.learning.run_statistics import RunStatistics
from pg_lightning.learning.targets import Normalize, gae_targets, log_probs_of, make_batch
from pg_lightning.lightning_private import trainer_of
from pg_lightning.losses import policy_gradient_loss, value_loss
from pg_lightning.policies import ActorCritic, RewardScaler, make_policy
from pg_lightning.policies.description import KeepsArguments, made_space, plain_arguments
from pg_lightning.rollout import Batch, Episode, Rollout
from pg_lightning.statistics import explained_variance


class PolicyGradientModule(KeepsArguments, LoadsChecked, LightningModule):  # type: ignore[misc]
    """An actor-critic that learns from rollouts: one Lightning batch is one `Rollout`, one `training_step` one update.

    Args:
        observation_space: of one environment; on the command line it is set from the data.
        action_space: of one environment; set likewise.
        total_steps: the budget in env steps over all ranks; schedules refer to it, and training stops at it.
        gamma: discount factor γ.
        lr: learning rate of the actor.
        critic_lr: learning rate of the critic; by default that of the actor.
        lr_schedule: `linear` falls to 0 over the budget; `plateau` halves the rate whenever `val/return_mean` has not
            risen for 5 evaluations; or the class path of a `torch.optim.lr_scheduler`, which steps once per update.
        optimizer: `adam`, or `rmsprop` with the decay of the A3C paper, 0.99; both with ε = 1e-5, outside the root.
            Or the class path of any `torch.optim` class, with `init_args`.
        critic_optimizer: optimizer of the critic, if it differs from the actor's.
        max_grad_norm: bound on the norm of the whole gradient; `inf` for none.
        micro_batch_size: rows per backward pass, if the activations of a minibatch do not fit into memory; the
            gradient is the same. Passes without a gradient, such as that for V, use all rows, except those of text.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        scale_rewards: divide rewards by the running standard deviation of the discounted return.
        compile: compile the gradient step with `torch.compile`, and rollouts with `data.backend: device`; with a memory
            only rollouts. It takes 10 to 60 s; `auto` compiles if the budget saves more: see docs/performance.md.
        policy: the class path of your own policy, instead of `ActorCritic` and its options; see `make_policy`.
        **network: see `ActorCritic`.

    Attributes:
        network: the policy and its critic.
        actor: the policy for data collection.
        learner: takes the gradient steps.
        progress: env steps, updates and the budget.
        evaluation: the episodes of the last evaluation.
        is_logged: whether the metrics of the current update are.

    Raises:
        UserError: if a space is not supported or a number out of range.
    """

    has_critic: ClassVar[bool] = True
    needs_whole_episodes: ClassVar[bool] = False
    needs_log_probs: ClassVar[bool] = False  # of the current policy, in the batch
    is_asynchronous: ClassVar[bool] = False
    corrects_policy_lag: ClassVar[bool] = False  # of one update
    corrects_any_lag: ClassVar[bool] = False

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        total_steps: int = 100_000,
        gamma: float = 0.99,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        lr_schedule: ClassPath = "constant",
        optimizer: ClassPath = "adam",
        critic_optimizer: ClassPath | None = None,
        max_grad_norm: float = 0.5,
        micro_batch_size: int | None = None,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        scale_rewards: bool = False,
        compile: bool | Literal["auto"] = False,
        policy: ClassPath | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        check_numbers(gamma, lr, critic_lr, max_grad_norm, micro_batch_size, ent_coef, vf_coef)
        settings = OptimizerSettings(
            optimizer, critic_optimizer, lr, lr if critic_lr is None else critic_lr, lr_schedule
        )
        settings.check()
        self.automatic_optimization = False
        # In plain types if Lightning creates the module from the `hyper_parameters` of a checkpoint.
        observation_space, action_space = made_space(observation_space), made_space(action_space)
        self.network = make_policy(policy, observation_space, action_space, self.has_critic, **network)
        self.reward_scaler = RewardScaler(gamma) if scale_rewards else None
        self.gamma, self.ent_coef, self.vf_coef = gamma, ent_coef, vf_coef
        self.spaces = checkpoint_state.described(observation_space, action_space)
        self.progress = Progress(total_steps)
        self.actor = actor_of(self.network, self.progress)
        self.compiles_if_it_pays = compile == "auto"
        self.actor.compiles = compile is True and isinstance(self.network, ActorCritic)
        check_compile(compile, self.network)
        # A graph of T recurrent steps would take minutes to compile.
        compiles = compile is True and not self.network.has_memory
        self.learner = Learner(settings, self.progress, max_grad_norm, compiles, micro_batch_size)
        self.statistics = RunStatistics(self.reward_scaler, self.network.normalizer)
        self.evaluation = Evaluation(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        self.reports, self.evaluation_episodes = TrainingReports(), EvaluationEpisodes()
        self.is_logged = True
        self._restored: Restored | None = None

    # Methods of an algorithm.

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improves the policy with one rollout. To be overridden.

        Returns:
            Scalars to log, under their full keys, as device tensors, not yet synchronised.
        """
        raise NotImplementedError

    def targets(self, rollout: Rollout, gae_lambda: float, normalize_advantage: Normalize) -> Batch:
        """The valid rows with values, GAE(λ) advantages and λ-returns, from the critic before the update, and if
        `needs_log_probs` with log π(a|s) of the current policy, if the rollout has none."""
        with_log_probs = self.needs_log_probs and rollout.log_probs is None
        at_once = with_log_probs and rollout.state is None and rollout.env_steps == rollout.valid.numel()
        *targets, last = self.learner.compute(gae_targets, rollout, self.network, self.gamma, gae_lambda, at_once)
        rollout, targets = (replace(rollout, log_probs=last), targets) if at_once else (rollout, [*targets, last])
        batch = make_batch(self.network, rollout, targets, normalize_advantage, self.learner.collectives)
        if with_log_probs and not at_once:
            batch.old_log_probs = self.learner.compute(log_probs_of, batch, self.network)
        return batch

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """−mean( A log π(a|s) ), the squared error of V and the entropy bonus; and the values to log.

        A and the targets of V are constants: no gradient flows through them.
        """
        metrics: dict[str, Tensor] = {}
        if self.has_critic:
            pi, values = self.network(batch)
            metrics["train/value_loss"] = value_loss(values, batch.returns)
            if self.wants_metrics:
                metrics["train/explained_variance"] = explained_variance(values.detach(), batch.returns)
        else:
            pi = self.network.policy(batch)
        metrics["train/policy_loss"] = policy_gradient_loss(pi.log_prob(batch.actions), batch.advantages)
        loss = metrics["train/policy_loss"] + self.vf_coef * metrics.get("train/value_loss", 0.0)
        if self.ent_coef or self.wants_metrics:
            metrics["train/entropy"] = pi.entropy().mean()
        if self.ent_coef:
            loss = loss - self.ent_coef * metrics["train/entropy"]
        return loss, metrics

    @property
    def wants_metrics(self) -> bool:
        """Whether a loss should compute values that are only logged; a compiled loss always does."""
        return self.learner.compiles or self.is_logged

    @property
    def env_steps(self) -> int:
        """Env steps so far, of all ranks."""
        return self.progress.env_steps

    @property
    def total_steps(self) -> int:
        """The budget in env steps."""
        return self.progress.total_steps

    @property
    def policy_version(self) -> int:
        """Number of updates."""
        return self.progress.updates

    # The loop around an update.

    def setup(self, stage: str) -> None:
        """Checks, before any environment starts, that data and strategy meet the requirements of the algorithm."""
        self.actor.precision = partial(precision_of, self.trainer)
        check_reading(self.trainer, stage)
        if stage == "fit":
            decide(self, data := getattr(self.trainer, "datamodule", None))
            check_data(self, data)
            check_strategy(self)

    def configure_optimizers(self) -> Any:
        """One optimizer with one group each for actor and critic, or two of different kinds."""
        rates = self.learner.configure(self.parameter_groups())
        guard(rates, self._restored)
        return (rates.optimizers, rates.schedulers) if rates.schedulers else rates.optimizers

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of the optimizers, by `actor` and `critic`."""
        return dict(zip(("actor", "critic"), self.network.parameter_groups(), strict=True))

    def on_train_start(self) -> None:
        """Connects the ranks and starts the clock; refuses to continue a run that has used its budget."""
        self.progress.start(is_stopping=self.trainer.should_stop)
        self.learner.start(self, connect_ranks(self.trainer, self.device, self.learner.weights()))
        self.statistics.start(self.device, episodes_go_on(self.trainer))
        if not episodes_go_on(self.trainer):
            self.progress.previous = self.progress.updates
        self.reports.start(self.env_steps)

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learns from one rollout, then updates counters, statistics and logs."""
        self.progress.expect(rollout, self.corrects_any_lag)
        seen = self.statistics.reduce(rollout, self.learner.collectives)
        if seen.env_steps == 0:
            return
        check_rollout(self, rollout)
        self.learner.begin(seen.rows)
        self.is_logged = self.progress.is_logged(seen.env_steps, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        metrics = self.update(self.statistics.scale_rewards(rollout, seen))
        self.learner.end(metrics)
        self.statistics.normalize_next(seen)
        self.progress.advance(seen.env_steps, rollout.env_restarts)
        self.reports.episodes.add(rollout.episode_returns, rollout.episode_lengths)
        self.trainer.should_stop |= self.progress.is_over
        if self.is_logged or self.trainer.should_stop:
            report_update(self, metrics, rollout)

    # Lightning inspects the signature for every batch; a stored one takes a third of the time.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    # Evaluation: one batch is one whole episode.

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        """Counts an episode."""
        self.evaluation_episodes.update(episode.episode_return, episode.episode_length, episode.group)

    test_step = validation_step

    def predict_step(self, episode: Episode, batch_idx: int) -> Episode:
        """Returns the episode with its trajectory."""
        return episode

    def on_validation_epoch_end(self) -> None:
        """Logs `val/…` and passes it to the schedulers for `plateau`."""
        if self.trainer.sanity_checking:
            self.evaluation_episodes.reset()
            return
        metrics = report_evaluation(self, "val")
        if self.trainer.state.fn == "fit":
            self.learner.rates.after_evaluation(metrics["val/return_mean"])

    def on_test_epoch_end(self) -> None:
        """Logs `test/…`."""
        report_evaluation(self, "test")

    def teardown(self, stage: str) -> None:
        """Disconnects the ranks, and the actor from the Trainer."""
        disconnect()
        self.learner.collectives = Alone()
        self.actor.precision = as_it_is

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds counters, spaces, and the current episodes of every rank. A collective: all ranks must call it."""
        checkpoint["pg_lightning"] = checkpoint_state.saved(self)
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        checkpoint[key] = {**checkpoint.get(key, {}), **plain_arguments(self.init_args)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters and this rank's state of its episodes.

        Raises:
            UserError: if the checkpoint is not from this package, or belongs to another task.
        """
        trainer = trainer_of(self)  # None if only the weights are loaded
        fits = trainer is not None and trainer.state.fn == "fit"
        prepare(self, trainer, checkpoint)
        checkpoint_state.restore(self, checkpoint, fits)
        self._restored = restored(trainer, checkpoint) if fits else None
        ranks = checkpoint["pg_lightning"].get("ranks", [])
        if trainer is None or len(ranks) != trainer.world_size or getattr(trainer.strategy, "num_workers", 1) > 1:
            return
        checkpoint_state.restore_episodes(self, ranks[trainer.global_rank])
