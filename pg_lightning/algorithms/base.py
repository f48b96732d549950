"""What every policy-gradient algorithm shares. An algorithm overrides `update` and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from gymnasium import Space
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pg_lightning.errors import UserError, require
from pg_lightning.metrics import EpisodeStatistics
from pg_lightning.networks import Activation, ActorCritic, RewardScaler
from pg_lightning.returns import gae
from pg_lightning.rollout import Episode, Rollout, Samples

Schedule = Literal["constant", "linear"]
LRSchedule = Literal["constant", "linear", "plateau"]


class PolicyGradientModule(LightningModule):
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
        max_grad_norm: bound on the norm of the whole gradient; `inf` for none.
        hidden_sizes: widths of the hidden layers of actor and critic.
        activation: of the hidden layers.
        shared_torso: actor and critic share their hidden layers, and one optimizer with a parameter group each.
        log_std_init: initial log standard deviation of Gaussian actions.
        normalize_obs: scale observations by their running mean and variance.
        scale_rewards: divide rewards by the running standard deviation of the discounted return.

    Raises:
        UserError: if a space is not supported or a number out of range.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        total_steps: int = 100_000,
        gamma: float = 0.99,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        lr_schedule: LRSchedule = "constant",
        max_grad_norm: float = 0.5,
        hidden_sizes: list[int] = [64, 64],  # noqa: B006 - read by the command line, never written
        activation: Activation = "tanh",
        shared_torso: bool = False,
        log_std_init: float = 0.0,
        normalize_obs: bool = False,
        scale_rewards: bool = False,
    ) -> None:
        super().__init__()
        require("model.gamma", gamma, 0, 1)
        require("model.lr", lr, 0)
        require("model.critic_lr", lr if critic_lr is None else critic_lr, 0)
        require("model.max_grad_norm", max_grad_norm, 0)
        self.automatic_optimization = False
        self.network = ActorCritic(
            observation_space, action_space, hidden_sizes, activation, shared_torso, log_std_init, normalize_obs
        )
        self.reward_scaler = RewardScaler(gamma) if scale_rewards else None
        self.total_steps = total_steps
        self.gamma = gamma
        self.lr = lr
        self.critic_lr = lr if critic_lr is None else critic_lr
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.shared_torso = shared_torso
        self.env_steps = 0
        self._policy_version = 0
        spaces = {"observation_space": observation_space, "action_space": action_space}
        self._spaces = {name: " ".join(str(space).split()) for name, space in spaces.items()}
        self._episodes = EpisodeStatistics()
        self._evaluation = EpisodeStatistics()
        self._clock = (0.0, 0)

    # What an algorithm is: its update.

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improves the policy with one rollout. To be overridden.

        Returns:
            Scalars to log, under their full keys, as tensors that nobody has waited for.
        """
        raise NotImplementedError

    # What the environments see of it: the `Actor` protocol.

    @property
    def policy_version(self) -> int:
        """Number of updates done."""
        return self._policy_version

    @contextmanager
    def acting(self) -> Iterator[None]:
        """No gradients, and the precision that the Trainer learns in: else the first ratio π/π_old would not be 1."""
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            yield

    def act(self, obs: Tensor, generator: torch.Generator, deterministic: bool = False) -> Tensor:
        """Actions `[N, *action]` for observations `[N, *obs]`: samples, or the mode of π."""
        pi = self.network.pi(obs.to(self.device))
        return pi.mode if deterministic else pi.sample(generator)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions as the environment wants them."""
        return self.network.actor_head.env_actions(actions)

    # The loop around an update.

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learns from one rollout, then moves counters, statistics and logs."""
        if rollout.policy_version != self._policy_version:
            raise RuntimeError(
                f"off-policy data: the rollout was collected by policy {rollout.policy_version}, this is policy "
                f"{self._policy_version}; rollouts must not be prefetched (give the dataset a length)"
            )
        if rollout.env_steps == 0:
            return
        if self.lr_schedule != "plateau":  # also where it is constant: a resumed run may ask for another rate
            self._set_learning_rates(self.remaining if self.lr_schedule == "linear" else 1.0)
        done = rollout.terminated | rollout.truncated
        if self.reward_scaler is not None:
            self.reward_scaler.update(rollout.rewards, done, rollout.valid)
            rollout = replace(rollout, rewards=self.reward_scaler(rollout.rewards))
        metrics = self.update(rollout)
        if self.network.normalizer is not None:
            self.network.normalizer.statistics.update(rollout.obs[:-1][rollout.valid])
        self._policy_version += 1
        self.env_steps += self._sum_over_ranks(rollout.env_steps)
        self._episodes.update(rollout.episode_returns, rollout.episode_lengths)
        if self.env_steps >= self.total_steps:
            self.trainer.should_stop = True
        every = cast(Any, self.trainer).log_every_n_steps
        if (every and self._policy_version % every == 0) or self.trainer.should_stop:
            self._log_training(metrics)

    @property
    def remaining(self) -> float:
        """Share of the budget that is left, from 1 to 0: what schedules are functions of."""
        return max(0.0, 1.0 - self.env_steps / self.total_steps)

    # Pieces that updates are made of.

    @torch.no_grad()
    def samples(self, rollout: Rollout, gae_lambda: float, normalize_advantage: bool) -> Samples:
        """The valid rows with old log-probabilities, values, GAE(λ) advantages and λ-returns.

        Values and log-probabilities are computed here, once, in one batch: the policy is still the one that acted.
        """
        T, N = rollout.rewards.shape
        K = len(rollout.final_rows)
        obs = rollout.obs.flatten(0, 1)
        acted_on, actions, valid = obs[: T * N], rollout.actions.flatten(0, 1), rollout.valid.flatten()
        log_probs = self.network.pi(acted_on).log_prob(actions)
        all_values = self.network.v(torch.cat([obs, rollout.final_obs]) if K else obs)
        values = all_values[: T * N]
        next_values = all_values[N : (T + 1) * N].clone()
        next_values[rollout.final_rows] = all_values[(T + 1) * N :]
        advantages = gae(
            rollout.rewards,
            values.view(T, N),
            next_values.view(T, N),
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            self.gamma,
            gae_lambda,
        ).flatten()
        samples = Samples(acted_on, actions, log_probs, values, advantages, advantages + values)
        if rollout.env_steps < T * N:
            samples = samples[valid]
        if normalize_advantage and len(samples) > 1:
            adv = samples.advantages
            samples.advantages = (adv - adv.mean()) / (adv.std() + 1e-8)
        return samples

    def gradient_step(self, loss: Tensor) -> Tensor:
        """One backward pass, one clip over all parameters, one step of every optimizer.

        Returns:
            The norm of the gradient before clipping.
        """
        optimizers = self._optimizers()
        self.network.zero_grad()
        self.manual_backward(loss)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer.optimizer)
        parameters = list(self.network.parameters())
        norm = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
        nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        *others, last = optimizers
        for optimizer in others:
            # Lightning ends every step with scaler.update(), after which the next would unscale once more.
            scaler.step(optimizer.optimizer) if scaler is not None else optimizer.step()
        last.step()
        return norm

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes: every rank must decide alike, or the others wait for ever."""
        return self._gather(value).mean() if self.trainer.world_size > 1 else value

    def configure_optimizers(self) -> Any:
        """Adam for the actor and Adam for the critic, or one Adam with a group each over a shared torso."""
        actor, critic = self.network.parameter_groups()
        groups = [{"params": actor, "lr": self.lr}, {"params": critic, "lr": self.critic_lr}]
        if self.shared_torso:
            optimizers = [torch.optim.Adam(groups, eps=1e-5, fused=True)]
        else:
            optimizers = [torch.optim.Adam([group], eps=1e-5, fused=True) for group in groups]
        if self.lr_schedule != "plateau":
            return optimizers
        # The default threshold, relative to the best, would call any return near a negative best an improvement.
        plateau: dict[str, Any] = {"mode": "max", "factor": 0.5, "patience": 4, "threshold_mode": "abs"}
        return optimizers, [ReduceLROnPlateau(optimizer, **plateau) for optimizer in optimizers]

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _set_learning_rates(self, factor: float) -> None:
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        for group, lr in zip(groups, (self.lr, self.critic_lr), strict=True):
            group["lr"] = lr * factor

    def _sum_over_ranks(self, count: int) -> int:
        if self.trainer.world_size == 1:
            return count
        return int(self._gather(torch.tensor(count, device=self.device)).sum())

    def _gather(self, value: Tensor) -> Tensor:
        return cast(Tensor, self.all_gather(value))

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
        if self.env_steps >= self.total_steps:
            raise UserError(
                f"data.total_steps: the checkpoint has trained for {self.env_steps} env steps already; "
                f"set --data.total_steps above that (it is {self.total_steps})"
            )
        if self.reward_scaler is not None:
            self.reward_scaler.restart()
        self._clock = (time.perf_counter(), self.env_steps)

    def _log_training(self, metrics: dict[str, Tensor]) -> None:
        returns, lengths = self._episodes.collect()
        if len(returns):
            metrics |= {"rollout/return_mean": returns.mean(), "rollout/length_mean": lengths.mean()}
        names = list(metrics)
        stacked = torch.stack([metrics[name].detach().double() for name in names])
        if self.trainer.world_size > 1:
            stacked = self._gather(stacked).mean(0)
        then, steps = self._clock
        self._clock = (time.perf_counter(), self.env_steps)
        self._log(
            dict(zip(names, stacked.tolist(), strict=True))
            | {
                "train/learning_rate": self._optimizers()[0].param_groups[0]["lr"],
                "time/steps_per_second": (self.env_steps - steps) / (self._clock[0] - then),
            }
        )

    def _log(self, metrics: dict[str, float], trainer_result: bool = False) -> None:
        """To callbacks through `self.log`, to loggers directly: their x-axis is env steps, exact beyond 2²⁴."""
        metrics["time/env_steps"] = float(self.env_steps)
        self.log_dict(metrics, logger=trainer_result)
        if not trainer_result:
            for logger in self.loggers:
                logger.log_metrics(metrics, step=self.env_steps)

    # The checkpoint: counters beside the weights, and what the policy was trained for, in plain types.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters and the spaces."""
        checkpoint["pg_lightning"] = {
            "env_steps": self.env_steps,
            "policy_version": self._policy_version,
            **self._spaces,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters.

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
