"""The training tasks of the benchmarks, and the stopwatch that times them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pg_lightning.algorithms import A2C, PPO, REINFORCE, PolicyGradientModule

# Names of systems in the tables.
FIT, SB3, BARE, RSL_RL, PUREJAXRL = "pg_lightning, fit", "Stable-Baselines3", "bare PyTorch loop", "rsl_rl", "PureJaxRL"
DEVICE, DEVICE_COMPILE = "fit, device", "fit, device, compile"
DEVICE_SYSTEMS = (DEVICE, DEVICE_COMPILE, "fit, device, compile, overlap", RSL_RL, "rsl_rl, compile", PUREJAXRL)


@dataclass(frozen=True)
class Workload:
    """A training task and its length.

    Attributes:
        env_id: a Gymnasium id.
        algorithm: ours.
        num_envs: parallel environments.
        num_steps: rows of a rollout; the minimum with whole episodes.
        steps: env steps on the clock; seconds of work for the slowest system.
        model: hyperparameters, with our names. All others are equal by default: two networks of 64-64 tanh
            with orthogonal weights, and no entropy bonus.
        log_every: updates between rows of the log.
        whole_episodes: rollouts end with episodes.
        systems: names of those that are compared; all that can run it by default.
    """

    env_id: str
    algorithm: type[PolicyGradientModule]
    num_envs: int
    num_steps: int
    steps: int
    model: dict[str, Any]
    log_every: int
    whole_episodes: bool = False
    systems: tuple[str, ...] | None = None

    @property
    def rows(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def warm_up(self) -> int:
        """Env steps before the clock starts: a tenth of the work, and at least 3 rollouts."""
        return max(3, self.steps // self.rows // 10) * self.rows


ACTOR_CRITIC = {"gamma": 0.99, "vf_coef": 0.5, "max_grad_norm": 0.5}
PPO_COMMON = {**ACTOR_CRITIC, "lr": 3e-4, "gae_lambda": 0.95, "clip_range": 0.2}
WORKLOADS = {
    "ppo_cartpole": Workload(
        "CartPole-v1", PPO, 8, 128, 40 * 1024, {**PPO_COMMON, "num_epochs": 4, "num_minibatches": 4}, log_every=5
    ),
    "ppo_cartpole_sb3_defaults": Workload(
        "CartPole-v1", PPO, 1, 2048, 4 * 2048, {**PPO_COMMON, "num_epochs": 10, "num_minibatches": 32}, log_every=1
    ),
    "a2c_cartpole": Workload(
        "CartPole-v1", A2C, 8, 5, 500 * 40, {**ACTOR_CRITIC, "lr": 7e-4, "gae_lambda": 1.0}, log_every=50
    ),
    "ppo_pendulum": Workload(
        "Pendulum-v1",
        PPO,
        8,
        256,
        8 * 2048,
        {**PPO_COMMON, "lr": 1e-3, "gamma": 0.95, "num_epochs": 10, "num_minibatches": 8},
        log_every=2,
    ),
    "ppo_pendulum_4x4": Workload(
        "Pendulum-v1",
        PPO,
        8,
        128,
        20 * 1024,
        {**PPO_COMMON, "lr": 1e-3, "gamma": 0.95, "num_epochs": 4, "num_minibatches": 4},
        log_every=5,
        systems=(FIT, *DEVICE_SYSTEMS, SB3),
    ),
    "ppo_cartpole_1024": Workload(
        "CartPole-v1",
        PPO,
        1024,
        128,
        6 * 128 * 1024,
        {**PPO_COMMON, "num_epochs": 4, "num_minibatches": 4},
        log_every=1,
        systems=DEVICE_SYSTEMS,
    ),
    "ppo_pendulum_1024": Workload(
        "Pendulum-v1",
        PPO,
        1024,
        24,
        20 * 24 * 1024,
        {**PPO_COMMON, "lr": 1e-3, "gamma": 0.95, "num_epochs": 4, "num_minibatches": 4},
        log_every=5,
        systems=DEVICE_SYSTEMS,
    ),
    "ppo_halfcheetah": Workload(  # configs/ppo_halfcheetah.yaml
        "HalfCheetah-v5",
        PPO,
        4,
        512,
        4 * 2048,
        {
            **PPO_COMMON,
            "lr_schedule": "linear",
            "num_epochs": 10,
            "num_minibatches": 32,
            "log_std_init": -0.5,
            "normalize_obs": True,
            "scale_rewards": True,
        },
        log_every=1,
    ),
    "reinforce_cartpole": Workload(
        "CartPole-v1",
        REINFORCE,
        4,
        128,
        20_000,
        {"lr": 2e-3, "gamma": 0.99, "max_grad_norm": 0.5},
        log_every=5,
        whole_episodes=True,
    ),
}


@dataclass
class Stopwatch:
    """Counts env steps and returns per lap, a lap being a rollout, and times the laps after the warm-up.

    Attributes:
        warm_up: env steps before the lap at whose end the clock starts.
        total_steps: env steps of a run, including the warm-up.
    """

    warm_up: int
    total_steps: int
    env_steps: int = 0
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    start: tuple[int, float] | None = None
    stop: tuple[int, float] = (0, 0.0)

    def lap(self, env_steps: int, returns: Iterable[float] = ()) -> None:
        self.env_steps += env_steps
        self.returns.extend(returns)
        self.stop = self.env_steps, time.perf_counter()
        if self.start is None and self.env_steps >= self.warm_up:
            self.start = self.stop

    def record(self, env_steps: int, seconds: float, return_mean: float | None) -> None:
        """The result of a system that times itself."""
        self.start, self.stop = (0, 0.0), (env_steps, seconds)
        self.returns.extend([] if return_mean is None else [return_mean])

    @property
    def is_running(self) -> bool:
        return self.env_steps < self.total_steps

    @property
    def timed_steps(self) -> int:
        return 0 if self.start is None else self.stop[0] - self.start[0]

    @property
    def steps_per_second(self) -> float:
        if self.start is None or not self.timed_steps:
            raise SystemExit("error: --steps: too few, all of them were in the last rollout of the warm-up")
        return self.timed_steps / (self.stop[1] - self.start[1])

    @property
    def return_mean(self) -> float | None:
        """Mean over the last 100 episodes; None if none has ended."""
        return float(np.mean(self.returns)) if self.returns else None
