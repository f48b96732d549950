"""Training speed in env steps per second, on a CPU: `pg_lightning` beside Stable-Baselines3, a bare loop and the envs.

    python benchmarks/throughput.py [--repeats 5] [--env CartPole-v1] [--rollouts 40] [--threads 1] [--json out.json]

Every system trains PPO with one set of hyperparameters on one amount of work, and its clock starts after a few warm-up
rollouts and stops after the update with the last. All run in this one process, one after the other and again, so
that the repeats of different systems lie seconds apart and share whatever else the machine is doing: ratios are taken
within a repeat. They share nothing but the imported libraries and torch's random stream, which each seeds for itself.
The mean return of the last 100 training episodes stands beside each speed, to show that none is fast by learning less.

One thread is the default because these tensors are small: a second gains little where a core is free for it, and where
none is, the threads wait for each other at every operation.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import platform
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import lightning
import numpy as np
import stable_baselines3
import torch
from bare_ppo import train as train_bare
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from pg_lightning import __version__
from pg_lightning.algorithms import PPO
from pg_lightning.callbacks import EnvStepAxis, EnvStepProgress, EvaluateEverySteps
from pg_lightning.cli import TRAINER_DEFAULTS
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs import make_vector_env

NUM_ENVS, NUM_STEPS = 8, 128
ROWS = NUM_ENVS * NUM_STEPS
WARM_UP = 5
REFERENCE = "Stable-Baselines3 PPO"
# Seconds for the timed rollouts, and the mean return of the last training episodes.
Result = tuple[float, float]


def run_pg_lightning(env_id: str, rollouts: int, seed: int, folder: Path) -> Result:
    """`fit` with the logger and the callbacks of the command line, those that only act when it ends left out.

    No evaluation falls due before the budget is spent; the one at the end comes after the clock has stopped.
    """

    class Stopwatch(Callback):
        def __init__(self) -> None:
            self.start = self.stop = 0.0
            self.returns: deque[float] = deque(maxlen=100)

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            self.returns.extend(batch.episode_returns.tolist())
            if pl_module.policy_version == WARM_UP:
                self.start = time.perf_counter()
            self.stop = time.perf_counter()

    seed_everything(seed, verbose=False)
    total_steps = (WARM_UP + rollouts) * ROWS
    data = RolloutDataModule(
        env_id,
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        total_steps=total_steps,
        eval_every_steps=2 * total_steps,
        eval_episodes=1,
    )
    model = PPO(  # the rest is the default: two networks of 64-64 tanh
        observation_space=data.observation_space,
        action_space=data.action_space,
        total_steps=total_steps,
        lr=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        num_epochs=4,
        num_minibatches=4,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
    )
    stopwatch = Stopwatch()
    checkpoints = [
        ModelCheckpoint(filename="best", monitor="val/return_mean", mode="max", enable_version_counter=False),
        ModelCheckpoint(filename="last", enable_version_counter=False),
    ]
    callbacks = [EvaluateEverySteps(), EnvStepAxis(), *checkpoints, EnvStepProgress(), stopwatch]
    options = {**TRAINER_DEFAULTS, "default_root_dir": folder, "accelerator": "cpu"}
    trainer = Trainer(logger=CSVLogger(folder), callbacks=callbacks, **options)
    trainer.fit(model, data)
    return stopwatch.stop - stopwatch.start, float(np.mean(stopwatch.returns))


def run_sb3(env_id: str, rollouts: int, seed: int, folder: Path) -> Result:
    """With a CSV log at the same interval, and without Gymnasium's checker around each environment, as above."""

    class Stopwatch(BaseCallback):
        start = stop = 0.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps == WARM_UP * ROWS:
                self.start = time.perf_counter()

        def _on_training_end(self) -> None:
            self.stop = time.perf_counter()

    env = make_vec_env(env_id, NUM_ENVS, seed=seed, env_kwargs={"disable_env_checker": True})
    model = stable_baselines3.PPO(  # the rest is the default: two networks of 64-64 tanh
        "MlpPolicy",
        env,
        seed=seed,
        device="cpu",
        n_steps=NUM_STEPS,
        batch_size=ROWS // 4,
        n_epochs=4,
        learning_rate=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
    )
    model.set_logger(configure(str(folder), ["csv"]))
    stopwatch = Stopwatch()
    total_steps = (WARM_UP + rollouts) * ROWS
    model.learn(total_steps, stopwatch, log_interval=TRAINER_DEFAULTS["log_every_n_steps"])
    env.close()
    return stopwatch.stop - stopwatch.start, float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def run_bare(env_id: str, rollouts: int, seed: int, folder: Path) -> Result:
    """`bare_ppo.py`, whose defaults are the same hyperparameters."""
    env = make_vector_env(env_id, NUM_ENVS)
    updates = train_bare(env, seed, NUM_STEPS)
    returns: deque[float] = deque(maxlen=100)
    for _ in range(WARM_UP):
        returns.extend(next(updates))
    start = time.perf_counter()
    for _ in range(rollouts):
        returns.extend(next(updates))
    seconds = time.perf_counter() - start
    env.close()
    return seconds, float(np.mean(returns))


def run_envs(env_id: str, rollouts: int, seed: int, folder: Path) -> Result:
    """The vector environment of `pg_lightning` under random actions drawn beforehand: no loop can be faster."""
    env = make_vector_env(env_id, NUM_ENVS)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(NUM_STEPS)]
    returns: deque[float] = deque(maxlen=100)
    running = np.zeros(NUM_ENVS)
    start = 0.0
    for i in range((WARM_UP + rollouts) * NUM_STEPS):
        if i == WARM_UP * NUM_STEPS:
            start = time.perf_counter()
        _, rewards, terminated, truncated, _ = env.step(actions[i % NUM_STEPS])
        running += rewards
        ended = terminated | truncated
        if ended.any():
            returns.extend(running[ended])
            running[ended] = 0.0
    seconds = time.perf_counter() - start
    env.close()
    return seconds, float(np.mean(returns))


SYSTEMS: dict[str, Callable[[str, int, int, Path], Result]] = {
    "pg_lightning PPO, fit": run_pg_lightning,
    REFERENCE: run_sb3,
    "bare PyTorch loop": run_bare,
    "envs, random actions": run_envs,
}


def interval(ratios: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median over repeats."""
    picks = np.random.default_rng(0).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)


def measure(env_id: str, repeats: int, rollouts: int) -> dict[str, Any]:
    """Every system once per repeat, in turn; a system's seed is the repeat's number."""
    results: dict[str, list[Result]] = {name: [] for name in SYSTEMS}
    for repeat in range(repeats):
        for name, run in SYSTEMS.items():
            gc.collect()
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                results[name].append(run(env_id, rollouts, repeat, Path(folder)))
    speeds = {name: np.array([rollouts * ROWS / seconds for seconds, _ in runs]) for name, runs in results.items()}
    systems = {}
    for name, runs in results.items():
        ratios = speeds[name] / speeds[REFERENCE]
        systems[name] = {
            "steps_per_second": float(np.median(speeds[name])),
            "ratio": float(np.median(ratios)),
            "ratio_ci95": interval(ratios),
            "return_mean": float(np.mean([mean for _, mean in runs])),
            "repeats": speeds[name].tolist(),
        }
    return systems


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed in env steps per second.")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each system")
    parser.add_argument("--env", default="CartPole-v1", help="a Gymnasium id: Box observations, Discrete actions")
    parser.add_argument("--rollouts", type=int, default=40, help=f"timed rollouts of {ROWS} env steps in each run")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    versions = {"pg_lightning": __version__, "python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (torch, lightning, gymnasium, stable_baselines3)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(
        f"{arguments.env}, {NUM_ENVS} envs x {NUM_STEPS} steps, {arguments.repeats} repeats of {arguments.rollouts} "
        f"rollouts after {WARM_UP} to warm up, torch threads: {arguments.threads}\n"
    )
    systems = measure(arguments.env, arguments.repeats, arguments.rollouts)
    print(f"{'':24}{'env steps/s':>12}{'ratio to SB3':>14}{'95 % interval':>17}{'return':>9}")
    for name, row in systems.items():
        low, high = row["ratio_ci95"]
        print(
            f"{name:24}{row['steps_per_second']:>12,.0f}{row['ratio']:>14.2f}{f'{low:.2f} to {high:.2f}':>17}"
            f"{row['return_mean']:>9.1f}"
        )
    print("\nMedians over repeats, ratios within each; return: mean of the last 100 training episodes of each run.")
    if arguments.json:
        settings = {"env": arguments.env, "rollouts": arguments.rollouts, "threads": arguments.threads}
        report = {"versions": versions, **settings, "num_envs": NUM_ENVS, "num_steps": NUM_STEPS, "systems": systems}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
