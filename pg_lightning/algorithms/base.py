"""What every policy-gradient algorithm shares. An algorithm overrides `update`, and as little else as it can."""

from __future__ import annotations

import inspect
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from gymnasium import Space
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import UserError, require
from pg_lightning.losses import policy_gradient_loss, value_loss
from pg_lightning.metrics import EpisodeStatistics, explained_variance
from pg_lightning.networks.flat import FlatParameters
from pg_lightning.policies import Activation, ActorCritic, MemoryKind, RewardScaler, RunningMeanVar
from pg_lightning.policies.description import KeepsArguments, described_policy, made_space, plain_arguments
from pg_lightning.ranks import (
    Gather,
    Moments,
    add_up,
    gather,
    gather_together,
    meet,
    merged,
    moments,
    of_all_ranks,
    part,
    sums,
    weighted_mean,
)
from pg_lightning.returns import gae, standardize, unfinished
from pg_lightning.rollout import Episode, Rollout, Samples

Normalize = bool | Literal["per_rank"]
Schedule = Literal["constant", "linear"]
LRSchedule = Literal["constant", "linear", "plateau"]
OptimizerName = Literal["adam", "rmsprop"]
GROUPS = ("actor", "critic")  # of parameters
WATCHED = ("train/policy_loss", "train/value_loss", "train/grad_norm")  # for whether they are finite
OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, eps=1e-5, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.99, eps=1e-5, foreach=False),  # of one vector a group
}


class PolicyGradientModule(KeepsArguments, LightningModule):
    """An actor-critic that learns from rollouts: one Lightning batch is one `Rollout`, one `training_step` one update.

    Args:
        observation_space: of one environment; the command line fills it in from the data.
        action_space: of one environment; filled in likewise.
        total_steps: the budget in env steps over all ranks, which schedules refer to and at which training stops.
        gamma: discount factor γ.
        lr: learning rate of the actor.
        critic_lr: learning rate of the critic; that of the actor if not given.
        lr_schedule: `linear` falls to 0 over the budget; `plateau` halves the rate whenever `val/return_mean` has not
            risen for 5 evaluations.
        optimizer: `adam`, or `rmsprop` with the decay of the paper on A3C, 0.99; both with ε = 1e-5, outside the root.
        max_grad_norm: bound on the norm of the whole gradient; `inf` for none.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        torso: what turns observations into features: `mlp`, `nature_cnn` for images, or a class path.
        hidden_sizes: widths of the hidden layers of actor and critic (`mlp`).
        activation: of the hidden layers (`mlp`).
        layer_norm: normalise the units of every hidden layer (`mlp`).
        memory: `lstm` or `gru` for tasks in which the past matters; gradients flow back through one rollout.
        memory_size: width of the memory.
        shared_torso: actor and critic share torso and memory.
        head: what turns features into π; null picks by the action space. For `Box`: `gaussian`, `squashed_gaussian` or
            `beta`. Or a class path.
        log_std_init: initial log standard deviation of Gaussian actions.
        state_dependent_std: the standard deviation of Gaussian actions comes from the network.
        normalize_obs: scale observations by their running mean and variance.
        normalize_values: the critic learns targets scaled by their running mean and variance.
        scale_rewards: divide rewards by the running standard deviation of the discounted return.
        compile: have `torch.compile` make one kernel or few of the loss and one of its gradient. It takes 10 to 25 s
            when training begins, which pays in runs of millions of steps: see docs/performance.md.

    Raises:
        UserError: if a space is not supported or a number out of range.
    """

    has_critic: ClassVar[bool] = True
    needs_whole_episodes: ClassVar[bool] = False
    is_asynchronous: ClassVar[bool] = False
    corrects_policy_lag: ClassVar[bool] = False
    _optimizer_name: OptimizerName

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        total_steps: int = 100_000,
        gamma: float = 0.99,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        lr_schedule: LRSchedule = "constant",
        optimizer: OptimizerName = "adam",
        max_grad_norm: float = 0.5,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        torso: ClassPath = "mlp",
        hidden_sizes: list[int] = [64, 64],  # noqa: B006 - read by the command line, never written
        activation: Activation = "tanh",
        layer_norm: bool = False,
        memory: MemoryKind | None = None,
        memory_size: int = 64,
        shared_torso: bool = False,
        head: ClassPath | None = None,
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        normalize_obs: bool = False,
        normalize_values: bool = False,
        scale_rewards: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        require("model.gamma", gamma, 0, 1)
        require("model.lr", lr, 0)
        require("model.critic_lr", lr if critic_lr is None else critic_lr, 0)
        require("model.max_grad_norm", max_grad_norm, 0, math.inf)
        require("model.ent_coef", ent_coef, 0)
        require("model.vf_coef", vf_coef, 0)
        require("model.memory_size", memory_size, 1)
        for width in hidden_sizes:
            require("model.hidden_sizes", width, 1)
        if compile and memory is not None:
            raise UserError("model.compile: the loop of a memory over a rollout is not to be compiled; set it to false")
        if compile and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("model.compile: there is no C++ compiler; install g++, or set it to false")
        self.automatic_optimization = False
        # In plain types where Lightning makes the module from the `hyper_parameters` of a checkpoint.
        observation_space, action_space = made_space(observation_space), made_space(action_space)
        self.network = ActorCritic(
            observation_space,
            action_space,
            torso=torso,
            hidden_sizes=hidden_sizes,
            activation=activation,
            layer_norm=layer_norm,
            memory=memory,
            memory_size=memory_size,
            shared_torso=shared_torso,
            head=head,
            log_std_init=log_std_init,
            state_dependent_std=state_dependent_std,
            normalize_obs=normalize_obs,
            normalize_values=normalize_values,
            critic=self.has_critic,
        )
        self.reward_scaler = RewardScaler(gamma) if scale_rewards else None
        self.total_steps = total_steps
        self.gamma = gamma
        self.lr = lr
        self.critic_lr = lr if critic_lr is None else critic_lr
        self.lr_schedule = lr_schedule
        self._optimizer_name = optimizer
        self.max_grad_norm = max_grad_norm
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.compiles = compile
        self._compiled_loss: Any = None
        self.env_steps = 0
        self._restarts = 0  # of environments, those of this rank
        self._restarts_before = 0  # of all ranks, before the run was resumed
        self._policy_version = 0
        self._previous_version = 0
        spaces = {"observation_space": observation_space, "action_space": action_space}
        self._spaces = {name: " ".join(str(space).split()) for name, space in spaces.items()}
        self._episodes = EpisodeStatistics(sync_on_compute=False)
        self._evaluation = EpisodeStatistics()
        self._backward_is_watched = self._step_is_watched = True
        self._is_logged = True
        self._clock = (0.0, 0)
        self._gather: Gather | None = None
        self._rows: list[int] = []
        self._takes_in = False

    # What an algorithm is: its update.

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improves the policy with one rollout. To be overridden.

        Returns:
            Scalars to log, under their full keys, as tensors that nobody has waited for.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Checks, before any environment starts, that data and strategy are what the algorithm needs."""
        if stage != "fit":
            return
        name, data = type(self).__name__, getattr(self.trainer, "datamodule", None)
        if data is not None and self.needs_whole_episodes and not data.whole_episodes:
            raise UserError(f"data.whole_episodes: {name} learns from whole episodes; set it to true")
        if getattr(data, "overlap", False):
            if not self.corrects_policy_lag:
                raise UserError(
                    f"data.overlap: {name} learns from rollouts of its current policy only; set it to false"
                )
            if hasattr(self.trainer.strategy, "num_workers"):
                raise UserError(
                    "data.overlap: with trainer.strategy hogwild one worker plays while another learns anyway; "
                    "set it to false"
                )
        if self.compiles and getattr(data, "rows_vary", False):
            raise UserError(
                "model.compile: it would compile anew for every number of rows, which varies with data.whole_episodes "
                "and where environments reset at the next step; set it to false, or data.backend to sync"
            )
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1 and not isinstance(strategy, DDPStrategy) and not self.is_asynchronous:
            raise UserError(
                f"trainer.strategy: {name} learns on several devices with ddp, not {type(strategy).__name__}"
            )
        if getattr(self.trainer.strategy, "num_workers", 1) > 1 and not self.is_asynchronous:
            raise UserError(
                f"trainer.strategy: workers of hogwild would each train a {name} of their own; use ddp or A3C"
            )

    # What the environments see of it: the `Actor` protocol.

    @property
    def policy_version(self) -> int:
        """Number of updates done."""
        return self._policy_version

    @contextmanager
    def acting(self) -> Iterator[None]:
        """No gradients, and the precision that the Trainer learns in: else the first ratio π/π_old would not be 1."""
        with torch.inference_mode(), self._precision(), self.network.acting():
            yield

    def _precision(self) -> AbstractContextManager[Any]:
        """The Trainer's, on the device that it learns on; elsewhere the weights' own."""
        learns_here = self.device.type == self.trainer.strategy.root_device.type
        return self.trainer.precision_plugin.forward_context() if learns_here else nullcontext()

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The empty memory `[N, S]` that an episode begins with; None for a policy without memory."""
        return self.network.initial_state(num_envs)

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions `[N, *action]` for observations `[N, *obs]`, samples or the mode of π, and the memory after them."""
        obs, mask = obs.to(self.device), None if action_mask is None else action_mask.to(self.device)
        if not deterministic:
            return self.network.sample(obs, generator, mask, state)
        pi, state = self.network.act(obs, mask, state)
        return pi.mode, state

    def log_probs(self, rollout: Rollout) -> Tensor:
        """log π(a|s) `[T, N]` of the actions of a rollout that this policy has played, 0 where not valid."""
        with torch.inference_mode(), self._precision():
            zeros = torch.zeros_like(rollout.rewards)
            if rollout.env_steps == 0:
                return zeros
            samples = Samples.of(rollout, zeros, zeros, zeros)
            log_probs = self.network.policy(samples).log_prob(samples.actions)
            return zeros.to(log_probs.dtype).masked_scatter(rollout.valid, log_probs)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions as the environment wants them."""
        return self.network.actor_head.env_actions(actions)

    # The loop around an update.

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learns from one rollout, then moves counters, statistics and logs."""
        # A rollout that brings its log-probabilities was begun when the one before was handed over.
        expected = self._policy_version if rollout.log_probs is None else self._previous_version
        if rollout.policy_version != expected:
            raise RuntimeError(
                f"off-policy data: the rollout was collected by policy {rollout.policy_version}, this is policy "
                f"{self._policy_version}, to learn from policy {expected}; rollouts must not be prefetched (give the "
                "dataset a length)"
            )
        self._previous_version = self._policy_version
        env_steps, seen = self._take_in(rollout) if self._takes_in else (rollout.env_steps, {})
        if env_steps == 0:
            return
        if self.needs_whole_episodes and unfinished(rollout.done, rollout.valid).any():
            raise UserError(f"{type(self).__name__} learns from whole episodes, and one in a rollout does not end")
        if self.lr_schedule == "linear":
            self._set_learning_rates(self.remaining)
        if self.reward_scaler is not None:
            self.reward_scaler.statistics.merge(*seen["returns"])
            rollout = replace(rollout, rewards=self.reward_scaler(rollout.rewards))
        every = cast(Any, self.trainer).log_every_n_steps
        ends = self.env_steps + env_steps >= self.total_steps
        self._is_logged = ends or bool(every and (self._policy_version + 1) % every == 0)
        metrics = self.update(rollout)
        self._refuse_divergence(metrics)
        if rollout.log_probs is not None:
            lag = self._policy_version - rollout.policy_version
            metrics["train/policy_lag"] = torch.tensor(float(lag), device=self.device)
        if self.network.normalizer is not None:
            self.network.normalizer.statistics.merge(*seen["obs"])
        self._policy_version += 1
        self.env_steps = self._count_env_steps(env_steps)
        if rollout.env_restarts is not None:
            self._restarts = self._count_restarts(rollout.env_restarts)
        if len(rollout.episode_returns) or not self._episodes.update_called:
            self._episodes.update(rollout.episode_returns, rollout.episode_lengths)
        if self.env_steps >= self.total_steps:
            self.trainer.should_stop = True
        if self._is_logged or self.trainer.should_stop:
            if rollout.env_restarts is not None:
                # A sum over ranks, of whose values the mean over rows is logged.
                share = self._rows[self.global_rank] / sum(self._rows) if self._gather is not None else 1.0
                restarts = self._restarts_before + self._restarts / max(share, 1e-9)
                metrics["env/restarts"] = torch.tensor(restarts, device=self.device)
            self._log_training(metrics)

    # Lightning asks for the signature with every batch; one that is written down takes a third of the time.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def _take_in(self, rollout: Rollout) -> tuple[int, dict[str, Moments]]:
        """The env steps of all ranks' rollouts, and the moments of what running statistics are kept of."""
        batches = {}
        if self.reward_scaler is not None:
            batches["returns"] = self.reward_scaler.follow(rollout.rewards, rollout.done, rollout.valid)
        if self.network.normalizer is not None:
            batches["obs"] = rollout.obs[:-1][rollout.valid]
        if self._gather is None:
            return rollout.env_steps, {name: moments(x) for name, x in batches.items()} if rollout.env_steps else {}
        rows = torch.tensor(rollout.env_steps, dtype=torch.float64, device=self.device)
        told, *parts = gather_together(rows, *map(sums, batches.values()))
        self._rows = [int(n) for n in told.tolist()]
        env_steps = sum(self._rows)
        return env_steps, dict(zip(batches, map(merged, parts), strict=True)) if env_steps else {}

    @torch.no_grad()
    def _refuse_divergence(self, metrics: dict[str, Tensor]) -> None:
        """Ends training where an update was not finite, before anything sees the weights: one look per rollout.

        Raises:
            UserError: naming the first of losses, gradient and parameters that is not finite.
        """
        # A rank without rows has losses that are none; what is wrong on any rank is in the gradient of all.
        watched = WATCHED if self._gather is None else WATCHED[-1:]
        values = {name: metrics[name] for name in watched if name in metrics}
        for name, parameters in zip(GROUPS, self.learned_parameters(), strict=False):
            values[f"the sum of the {name}'s parameters"] = parameters.sum()
        found = torch.stack([*values.values()]).tolist()
        if math.isfinite(sum(found)):
            return
        # Under 16-mixed a gradient that overflows is skipped and the scale lowered: no fault.
        is_scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        for name, value in zip(values, found, strict=True):
            if not math.isfinite(value) and not (is_scaled and name == "train/grad_norm"):
                raise UserError(
                    f"model.lr: training has diverged: in the update at env step {self.env_steps} {name} is {value}; "
                    "lower model.lr or model.max_grad_norm, or set model.scale_rewards; checkpoints are of before"
                )

    @property
    def remaining(self) -> float:
        """Share of the budget that is left, from 1 to 0: what schedules are functions of."""
        return max(0.0, 1.0 - self.env_steps / self.total_steps)

    # Pieces that updates are made of.

    @torch.no_grad()
    def samples(self, rollout: Rollout, gae_lambda: float, normalize_advantage: Normalize) -> Samples:
        """The valid rows with values, GAE(λ) advantages and λ-returns, by the critic as it is before the update."""
        values, next_values = self.network.values(rollout)
        advantages = gae(
            rollout.rewards,
            values,
            next_values,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            self.gamma,
            gae_lambda,
        )
        samples = Samples.of(rollout, advantages, advantages + values, values)
        normalizer = self.network.value_normalizer
        if normalizer is not None:
            normalizer.update(self.moments(samples.returns), cast(nn.Linear, self.network.critic_head))
            samples.returns, samples.old_values = normalizer(samples.returns), normalizer(samples.old_values)
        if normalize_advantage:
            samples.advantages = self.standardized(samples.advantages, normalize_advantage)
        return samples

    def moments(self, x: Tensor) -> Moments:
        """Number, mean and variance of the numbers `[B]` of all ranks."""
        return moments(x) if self._gather is None else merged(self._gather(sums(x)))

    def standardized(self, x: Tensor, normalize_advantage: Normalize) -> Tensor:
        """`[B]` shifted and scaled to mean 0 and deviation 1, as one with those of the other ranks, or by itself."""
        together = self._gather is not None and normalize_advantage != "per_rank"
        return standardize(x, self.moments(x) if together else None)

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """−mean( A log π(a|s) ), the squared error of V and the entropy bonus; and what is to be logged of it.

        No gradient flows through A or the targets of V: they are numbers by now.
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
        """Whether a loss should compute what is only logged; one that is compiled always does, to be compiled once."""
        return self.compiles or self._is_logged

    def loss_of(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, compiled if that was asked for."""
        return (self._compiled_loss or self.loss)(batch)

    def policy_gradient_step(self, samples: Samples) -> dict[str, Tensor]:
        """One gradient step on `loss`."""
        loss, metrics = self.loss_of(samples)
        return metrics | {"train/grad_norm": self.gradient_step(loss, samples)}

    def gradient_step(self, loss: Tensor, batch: Samples) -> Tensor:
        """One backward pass, one clip over all parameters, one step of the optimizer.

        With several ranks each must take equally many steps; one that has no rows left takes them without.

        Args:
            loss: a mean over rows.
            batch: those rows: by their number gradients are averaged over ranks.

        Returns:
            The norm of the gradient before clipping.
        """
        norm = self.backward_and_clip(loss, batch)
        optimizer = self._optimizer()
        if self._step_is_watched:
            optimizer.step()
        else:  # what Lightning's step does, without the hooks: it counts `trainer.global_step`
            optimizer._on_before_step()
            optimizer.optimizer.step()
            optimizer._on_after_step()
        return norm

    def backward_and_clip(self, loss: Tensor, batch: Samples) -> Tensor:
        """The gradient of a loss over the rows of a batch, of all ranks, scaled down to the norm that is allowed.

        Returns:
            Its norm before that.
        """
        self._flat.zero_grad()
        if self._backward_is_watched:
            self.manual_backward(loss)
        else:
            loss.backward()
        grads = self._flat.gather_grads()
        if self._gather is not None:
            self._flat.average_grads(len(batch) / sum(self._rows), add_up)
        norm = torch.linalg.vector_norm(grads)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # the step will unscale them, by a factor that a clip commutes with
            norm = norm / scaler.scale(torch.ones_like(norm))
        grads *= (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def _are_watched(self, *hooks: str) -> bool:
        """Whether anyone has a part in these hooks: else Lightning would only ask every callback.

        Precision plugins and strategies other than the plain ones are taken to have one in each.
        """
        plain = type(self.trainer.precision_plugin) is Precision and isinstance(
            self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)
        )
        listeners = [(self, LightningModule), *((callback, Callback) for callback in cast(Any, self.trainer).callbacks)]
        return not plain or any(
            hook in vars(x) or getattr(type(x), hook) is not getattr(base, hook)
            for x, base in listeners
            for hook in hooks
            if hasattr(base, hook)
        )

    def mean_over_ranks(self, value: Tensor, batch: Samples) -> Tensor:
        """The mean of a scalar over the rows of all ranks: all must decide alike, or some wait for the others for ever.

        Args:
            value: the mean over the rows of this rank.
            batch: those rows; without any the value does not count, though it be NaN.
        """
        if self._gather is None:
            return value
        told = self._gather(torch.stack([value.double(), value.new_tensor(len(batch), dtype=torch.float64)]))
        return weighted_mean(told[:, :1], told[:, 1]).squeeze(0)

    def learned_parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes: the actor's parameters as one vector, and the critic's if there is one."""
        return self._flat.groups

    def configure_optimizers(self) -> Any:
        """One optimizer, in which actor and critic are a group each with a learning rate of its own."""
        self._flat = FlatParameters(self.network.parameter_groups())
        optimizer = self._make_optimizer(self.learned_parameters())
        if self.lr_schedule != "plateau":
            return optimizer
        # The default threshold, relative to the best, would call any return near a negative best an improvement.
        return [optimizer], [ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=4, threshold_mode="abs")]

    def _make_optimizer(self, vectors: list[nn.Parameter]) -> torch.optim.Optimizer:
        settings = zip(GROUPS, vectors, (self.lr, self.critic_lr), strict=False)
        groups = [{"name": name, "params": [vector], "lr": lr} for name, vector, lr in settings]
        return OPTIMIZERS[self._optimizer_name](groups)

    def _optimizer(self) -> Any:
        return self.optimizers()

    def _set_learning_rates(self, factor: float) -> None:
        for group, lr in zip(self._optimizer().param_groups, (self.lr, self.critic_lr), strict=False):
            group["lr"] = lr * factor

    def _count_env_steps(self, count: int) -> int:
        """Env steps so far, with `count` new ones."""
        return self.env_steps + count

    def _count_restarts(self, count: int) -> int:
        """Environments replaced since training began or was resumed, where this process has replaced `count`."""
        return count

    # Evaluation: one batch is one whole episode.

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        """Counts an episode."""
        self._evaluation.update(episode.episode_return, episode.episode_length)

    def test_step(self, episode: Episode, batch_idx: int) -> None:
        """Counts an episode."""
        self._evaluation.update(episode.episode_return, episode.episode_length)

    def predict_step(self, episode: Episode, batch_idx: int) -> Episode:
        """Hands the trajectory on."""
        return episode

    def on_validation_epoch_end(self) -> None:
        """Logs `val/…` and shows it to the schedulers that wait for a plateau."""
        if self.trainer.sanity_checking:
            self._evaluation.reset()
            return
        metrics = self._log_evaluation("val")
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(metrics["val/return_mean"])

    def on_test_epoch_end(self) -> None:
        """Logs `test/…`."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> dict[str, float]:
        returns, lengths = self.evaluation = self._evaluation.collect()
        metrics = {
            f"{prefix}/return_mean": returns.mean().item(),
            f"{prefix}/return_std": returns.std(correction=0).item(),
            f"{prefix}/length_mean": lengths.mean().item(),
        }
        self._log(metrics, trainer_result=self.trainer.state.fn != "fit")
        return metrics

    # Logging: reduced tensors, at the trainer's interval, against env steps.

    def on_train_start(self) -> None:
        """Starts the clock behind `time/steps_per_second`; refuses to continue a run that has spent its budget."""
        if self.env_steps >= self.total_steps and not self.trainer.should_stop:
            raise UserError(
                f"data.total_steps: the checkpoint has trained for {self.env_steps} env steps already; "
                f"set --data.total_steps above that (it is {self.total_steps})"
            )
        self._restarts = 0
        self._gather = None
        if self.trainer.world_size > 1:
            self._gather = gather
            if self.device.type == "cpu":
                meet(self._flat.values.nbytes + 4096, cast(Any, self.trainer.strategy)._timeout.total_seconds())
            # Not DDP's wrapper, which has made the weights equal: it would add up gradients bucket by bucket, whatever
            # number of rows they are of, and before every update overwrite what ranks have with what rank 0 has.
            self.trainer.strategy.model = self
        statistics = (self.reward_scaler, self.network.normalizer, self._gather)
        self._takes_in = any(x is not None for x in statistics)
        if getattr(cast(Any, self.trainer).datamodule, "episodes_go_on", False):
            if self.reward_scaler is not None and self.reward_scaler.discounted_returns is not None:
                self.reward_scaler.discounted_returns = self.reward_scaler.discounted_returns.to(self.device)
        else:
            if self.reward_scaler is not None:
                self.reward_scaler.restart()
            self._previous_version = self._policy_version
        if self.lr_schedule == "constant":  # a resumed run may ask for another rate than its checkpoint
            self._set_learning_rates(1.0)
        self._backward_is_watched = self._are_watched("on_before_backward", "backward", "on_after_backward")
        self._step_is_watched = self._are_watched("on_before_optimizer_step")
        self._compiled_loss = torch.compile(self.loss) if self.compiles else None
        self._clock = (time.perf_counter(), self.env_steps)

    def teardown(self, stage: str) -> None:
        """Parts from the other ranks."""
        part()

    def _log_training(self, metrics: dict[str, Tensor]) -> None:
        returns, lengths = self._episodes.collect()
        if self._gather is not None:
            metrics = self._metrics_of_ranks(metrics, returns, lengths)
        elif len(returns):
            metrics |= {"rollout/return_mean": returns.mean(), "rollout/length_mean": lengths.mean()}
        names = list(metrics)
        stacked = torch.stack([metrics[name].detach().double() for name in names])
        then, steps = self._clock
        self._clock = (time.perf_counter(), self.env_steps)
        self._log(
            dict(zip(names, stacked.tolist(), strict=True))
            | {
                "train/learning_rate": self._optimizer().param_groups[0]["lr"],
                "time/steps_per_second": (self.env_steps - steps) / (self._clock[0] - then),
            }
        )

    def _metrics_of_ranks(self, metrics: dict[str, Tensor], returns: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Means over the rows and over the episodes of all ranks, whose weights are compared on that occasion.

        Raises:
            UserError: if they differ. On every rank, so that none waits for another.
        """
        own = torch.stack([x.detach().double() for x in metrics.values()])
        episodes = torch.stack(
            [returns.double().sum(), lengths.double().sum(), returns.new_tensor(len(returns)).double()]
        )
        kept = [self._flat.values, *self.buffers(recurse=False)]
        kept += [x for module in self.modules() if isinstance(module, RunningMeanVar) for x in module.buffers()]
        state = torch.stack([f(x.double().nan_to_num()) for x in kept for f in (torch.sum, _size)])
        own, episodes, state = gather_together(own, episodes.to(own.device), state.to(own.device))
        state, sizes = state[:, 0::2], state[:, 1::2]
        # Not to the last bit: it may differ between kinds of processors.
        apart = ((state - state[0]).abs() > 1e-6 * sizes[0]).any(1).nonzero().flatten().tolist()
        if apart:
            raise UserError(
                f"trainer.devices: weights or statistics of rank {', '.join(map(str, apart))} differ from those of "
                f"rank 0 after {self._policy_version} updates; {type(self).__name__}.update must change weights by "
                "gradient_step and decide by what all ranks know"
            )
        means = weighted_mean(own, torch.tensor(self._rows, dtype=own.dtype, device=own.device))
        metrics = dict(zip(metrics, means, strict=True))
        total_return, total_length, count = episodes.sum(0)
        if count:
            metrics |= {"rollout/return_mean": total_return / count, "rollout/length_mean": total_length / count}
        return metrics

    def _log(self, metrics: dict[str, float], trainer_result: bool = False) -> None:
        """To callbacks, and to loggers directly: their x-axis is env steps, exact beyond 2²⁴.

        Past `self.log`, which costs 0.1 to 0.3 ms per key, except where its results are what the Trainer returns.
        """
        metrics["time/env_steps"] = float(self.env_steps)
        if trainer_result:
            self.log_dict(metrics)
            return
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.env_steps)

    # The checkpoint: counters beside the weights, and what the policy was trained for, in plain types.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters, the spaces, and what every rank knows of its episodes; every rank must ask."""
        running = None if self.reward_scaler is None else self.reward_scaler.discounted_returns
        episodes = (self._episodes.returns, self._episodes.lengths)
        returns, lengths = (torch.cat([torch.zeros(0), *(x.cpu() for x in known)]) for known in episodes)
        own = {"discounted_returns": running, "episode_returns": returns, "episode_lengths": lengths}
        own = {name: x if x is None else x.cpu().clone() for name, x in own.items()}
        ranks, restarts = zip(*of_all_ranks((own, self._restarts)), strict=True)
        checkpoint["pg_lightning"] = {
            "env_steps": self.env_steps,
            "env_restarts": self._restarts_before + sum(restarts),
            "policy_version": self._policy_version,
            "previous_version": self._previous_version,
            "optimizer": self._optimizer_name,
            "ranks": [*ranks],
            **self._spaces,
            "policy": described_policy(self.network),
        }
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_arguments(self.init_args)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters and what this rank knew of its episodes.

        Raises:
            UserError: if the checkpoint is not one of ours or was trained on other spaces.
        """
        state = checkpoint.get("pg_lightning")
        if state is None:
            raise UserError("ckpt_path: not a pg_lightning checkpoint")
        for name, space in self._spaces.items():
            if state[name] != space:
                raise UserError(
                    f"ckpt_path: the checkpoint was trained on {name} {state[name]}, data.env_id has {space}; "
                    "give the environment that it was trained on"
                )
        if state["optimizer"] != self._optimizer_name and self.trainer.state.fn == "fit":
            raise UserError(
                f"model.optimizer: the checkpoint was trained with {state['optimizer']}, whose moments are no use to "
                f"{self._optimizer_name}; give the one that it was trained with"
            )
        theirs, ours = (
            {name: tuple(tensor.shape) for name, tensor in weights.items()}
            for weights in (checkpoint["state_dict"], self.state_dict())
        )
        if differing := sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name)):
            name = differing[0]
            raise UserError(
                f"ckpt_path: the checkpoint holds another network: {name} is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} here; give the model.* that it was trained with"
            )
        self.env_steps = state["env_steps"]
        self._policy_version = state["policy_version"]
        self._previous_version = state.get("previous_version", self._policy_version)
        self._restarts_before = state.get("env_restarts", 0)
        ranks = state.get("ranks", [])
        trainer = self._trainer  # none where only the weights are loaded
        if trainer is None or len(ranks) != trainer.world_size or getattr(trainer.strategy, "num_workers", 1) > 1:
            return
        own: dict[str, Any] = ranks[self.trainer.global_rank]
        if self.reward_scaler is not None:
            self.reward_scaler.discounted_returns = own["discounted_returns"]
        self._episodes.reset()
        if len(own["episode_returns"]):
            self._episodes.update(own["episode_returns"], own["episode_lengths"])


def _size(x: Tensor) -> Tensor:
    return x.abs().sum()
