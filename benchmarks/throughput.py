"""Training speed in env steps per second, on a CPU: `pg_lightning`, Stable-Baselines3, a bare loop and upper bounds.

    python benchmarks/throughput.py                                  # everything; takes about ten minutes
    python benchmarks/throughput.py --workload ppo_cartpole a2c_cartpole --repeats 7 --json speed.json

The systems of a workload do the same number of env steps with the same hyperparameters. The clock starts after a
warm-up and stops after the update with the last rollout. All run in this one process, in turns, so
that the repeats of different systems are seconds apart and see the same load of the machine: ratios are taken
within a repeat. They only share the imported libraries and torch's random stream, which each seeds for itself.
The mean return of the last 100 training episodes is reported with each speed, to show that no system is fast because
it learns less.

The upper bounds are the environments alone, with random actions; the environments and the policy, without learning;
and `fit` on one rollout that is used repeatedly, without collection.

Differences between the systems: Stable-Baselines3 standardises the advantages of PPO within each minibatch, not within
the rollout, uses an Adam that is not fused, and updates its normalisation statistics with every step, not every
rollout. Its A2C uses `torch.optim.RMSprop` with α 0.99 and ε 1e-5, as here, and not its `RMSpropTFLike`.

One thread is the default because these tensors are small: a second thread helps little on a free core, and without
a free core the threads wait for each other at every operation.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bare_loops
import gymnasium
import numpy as np
import stable_baselines3
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from measuring import listed, machine, median_interval, positive, refuse_unknown, versions, with_interval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from pg_lightning.algorithms import A2C, PPO, REINFORCE, PolicyGradientModule, VTrace
from pg_lightning.callbacks import EnvStepProgress, EvaluateEverySteps
from pg_lightning.cli.assembly import TRAINER_DEFAULTS
from pg_lightning.data import RolloutDataModule, RolloutDataset
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.envs.backends.tensor import TASKS
from pg_lightning.errors import UserError
from pg_lightning.rollout import Actor, Rollout


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
    """

    env_id: str
    algorithm: type[PolicyGradientModule]
    num_envs: int
    num_steps: int
    steps: int
    model: dict[str, Any]
    log_every: int
    whole_episodes: bool = False

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


def run_envs(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path) -> None:
    """Random actions drawn beforehand: an upper bound for every loop around these environments."""
    env = make_vector_env(workload.env_id, workload.num_envs)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(workload.num_steps)]
    running = np.zeros(workload.num_envs)
    while stopwatch.is_running:
        returns: list[float] = []
        for action in actions:
            _, rewards, terminated, truncated, _ = env.step(action)
            running += rewards
            ended = terminated | truncated
            if ended.any():
                returns.extend(running[ended])
                running[ended] = 0.0
        stopwatch.lap(workload.rows, returns)
    env.close()


def run_collector(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path) -> None:
    """Rollouts with the initial policy, without learning."""
    seed_everything(seed, verbose=False)
    env = make_vector_env(workload.env_id, workload.num_envs)
    model = make_model(workload, env.single_observation_space, env.single_action_space, stopwatch.total_steps)
    seeds = [seed * workload.num_envs + n for n in range(workload.num_envs)]
    collector = RolloutCollector(env, workload.num_steps, seeds, seed, workload.whole_episodes)
    while stopwatch.is_running:
        rollout = collector.collect(model.actor)
        stopwatch.lap(rollout.env_steps, rollout.episode_returns.tolist())
    collector.close()


class Replay:
    """A collector that collects once and returns that rollout for ever, as if the current policy had acted."""

    def __init__(self, collector: RolloutCollector) -> None:
        self.collector = collector
        self.rollout: Rollout | None = None

    def collect(self, actor: Actor) -> Rollout:
        if self.rollout is None:
            rollout = self.collector.collect(actor)
            none = rollout.episode_returns[:0]  # count episodes once
            self.rollout = replace(rollout, episode_returns=none, episode_lengths=none)
        return replace(self.rollout, policy_version=actor.policy_version)


class ReplayDataModule(RolloutDataModule):
    """With it, `fit` only costs learning: the environments step for the first rollout only."""

    def train_dataloader(self) -> RolloutDataset:
        dataset: Any = super().train_dataloader()
        dataset.collector = Replay(dataset.collector)
        return dataset


def run_fit(
    workload: Workload,
    stopwatch: Stopwatch,
    seed: int,
    folder: Path,
    datamodule: Callable[..., RolloutDataModule] = RolloutDataModule,
    **model: Any,
) -> None:
    """`fit` with the logger and the callbacks of the command line, except those that only act at the end.

    No evaluation is due before the end of the budget; the one at the end comes after the clock has stopped.

    Args:
        workload: what to train.
        stopwatch: is called after every update.
        seed: of the run.
        folder: for the log and the checkpoints.
        datamodule: makes the datamodule; a `partial` of the class gives it other arguments.
        **model: arguments of the algorithm that extend or replace those of the workload.
    """

    class Laps(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            stopwatch.lap(batch.env_steps, batch.episode_returns.tolist())

    seed_everything(seed, verbose=False)
    data = datamodule(
        env_id=workload.env_id,
        num_envs=workload.num_envs,
        num_steps=workload.num_steps,
        whole_episodes=workload.whole_episodes,
        total_steps=stopwatch.total_steps,
        eval_every_steps=2 * stopwatch.total_steps,
        eval_episodes=1,
    )
    module = make_model(workload, data.observation_space, data.action_space, stopwatch.total_steps, **model)
    make_trainer(folder, Laps(), log_every_n_steps=workload.log_every).fit(module, data)


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """The Trainer of the command line for `fit`: a log, checkpoints and progress."""
    checkpoints = [
        ModelCheckpoint(filename="best", monitor="val/return_mean", mode="max", enable_version_counter=False),
        ModelCheckpoint(filename="last", enable_version_counter=False),
    ]
    return Trainer(
        logger=CSVLogger(folder, flush_logs_every_n_steps=1),
        callbacks=[EvaluateEverySteps(), *checkpoints, EnvStepProgress(), *callbacks],
        **{**TRAINER_DEFAULTS, "default_root_dir": folder, "accelerator": "cpu", **options},
    )


def make_model(
    workload: Workload, observation_space: Any, action_space: Any, total_steps: int, **model: Any
) -> PolicyGradientModule:
    arguments: dict[str, Any] = {**workload.model, **model}
    return workload.algorithm(
        observation_space=observation_space, action_space=action_space, total_steps=total_steps, **arguments
    )


BARE_LOOPS: dict[type[PolicyGradientModule], Callable[..., bare_loops.Updates]] = {
    PPO: bare_loops.ppo,
    A2C: bare_loops.a2c,
    REINFORCE: bare_loops.reinforce,
}


def run_bare(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path) -> None:
    """`bare_loops.py`."""
    env = make_vector_env(workload.env_id, workload.num_envs)
    train = BARE_LOOPS[workload.algorithm]
    for env_steps, returns in train(env, seed, workload.num_steps, stopwatch.total_steps, **workload.model):
        stopwatch.lap(env_steps, returns)
        if not stopwatch.is_running:
            break
    env.close()


SB3_PEERS: dict[type[PolicyGradientModule], Any] = {PPO: stable_baselines3.PPO, A2C: stable_baselines3.A2C}


def run_sb3(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path) -> None:
    """With a CSV log at the same interval, and without Gymnasium's checker around each environment, as here."""

    class Laps(BaseCallback):
        """A lap ends when the next rollout starts, or training ends, after the update."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                stopwatch.lap(workload.rows)

        def _on_training_end(self) -> None:
            stopwatch.lap(workload.rows)

    env = make_vec_env(workload.env_id, workload.num_envs, seed=seed, env_kwargs={"disable_env_checker": True})
    scaled = {
        "norm_obs": workload.model.get("normalize_obs", False),
        "norm_reward": workload.model.get("scale_rewards", False),
    }
    if any(scaled.values()):
        env = VecNormalize(env, **scaled, gamma=workload.model["gamma"])
    model = SB3_PEERS[workload.algorithm]("MlpPolicy", env, seed=seed, device="cpu", **sb3_arguments(workload))
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(stopwatch.total_steps, Laps(), log_interval=workload.log_every)
    env.close()
    stopwatch.returns.extend(episode["r"] for episode in model.ep_info_buffer)


def sb3_arguments(workload: Workload) -> dict[str, Any]:
    """The hyperparameters with Stable-Baselines3's names."""
    model = workload.model
    arguments = {
        "n_steps": workload.num_steps,
        "learning_rate": _falling(model["lr"]) if model.get("lr_schedule") == "linear" else model["lr"],
        "policy_kwargs": {"log_std_init": model.get("log_std_init", 0.0)},
        **{name: model[name] for name in ("gamma", "gae_lambda", "vf_coef", "max_grad_norm")},
    }
    if workload.algorithm is PPO:
        arguments |= {
            "n_epochs": model["num_epochs"],
            "batch_size": workload.rows // model["num_minibatches"],
            "clip_range": model["clip_range"],
        }
    return arguments


def _falling(lr: float) -> Callable[[float], float]:
    return lambda remaining: remaining * lr


def run_compiled(*run: Any, **data: Any) -> None:
    """`fit` with `model.compile`, whose time is in the warm-up; clears earlier compilations, as in a new process."""
    torch.compiler.reset()
    run_fit(*run, datamodule=partial(RolloutDataModule, **data), compile=True)


def run_vtrace(workload: Workload, *run: Any, **model: Any) -> None:
    """V-trace instead of A2C, with rollouts collected by a second process; uses one more core than the others."""
    torch.compiler.reset()
    run_fit(replace(workload, algorithm=VTrace), *run, datamodule=partial(RolloutDataModule, overlap=True), **model)


SB3, BARE = "Stable-Baselines3", "bare PyTorch loop"
# To add a variant of `fit`, add one line: "fit, ReLU": partial(run_fit, activation="relu").
SYSTEMS: dict[str, Callable[[Workload, Stopwatch, int, Path], None]] = {
    "envs, random actions": run_envs,
    "envs and inference": run_collector,
    "learning alone, fit": partial(run_fit, datamodule=ReplayDataModule),
    BARE: run_bare,
    "pg_lightning, fit": run_fit,
    "fit, backend vector": partial(run_fit, datamodule=partial(RolloutDataModule, backend="vector")),
    "fit, compile": run_compiled,
    "fit, overlap": partial(run_fit, datamodule=partial(RolloutDataModule, overlap=True)),
    "fit, overlap, compile": partial(run_compiled, overlap=True),
    "fit, device, compile": partial(run_compiled, backend="device"),
    "fit, device, compile, overlap": partial(run_compiled, backend="device", overlap=True),
    "V-trace, ahead": run_vtrace,
    "V-trace, ahead, compile": partial(run_vtrace, compile=True),
    SB3: run_sb3,
}


def systems_of(workload: Workload) -> list[str]:
    """The systems that can run it: some environments have no vectorised code, and some algorithms allow no lag."""
    is_vectorised = gymnasium.spec(workload.env_id).vector_entry_point is not None
    able = {
        "vector": is_vectorised,
        "device": workload.env_id in TASKS,
        "overlap": workload.algorithm.corrects_policy_lag,
        "V-trace": workload.algorithm is A2C,
        "compile": not workload.whole_episodes,
    }
    return [
        name
        for name in SYSTEMS
        if (name != SB3 or workload.algorithm in SB3_PEERS) and all(can for word, can in able.items() if word in name)
    ]


def measure(workload: Workload, repeats: int) -> dict[str, Any]:
    """Runs every system once per repeat, in turn; the seed is the number of the repeat."""
    reference = SB3 if workload.algorithm in SB3_PEERS else BARE
    names = systems_of(workload)
    runs: dict[str, list[Stopwatch]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            gc.collect()
            stopwatch = Stopwatch(workload.warm_up, workload.warm_up + workload.steps)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                SYSTEMS[name](workload, stopwatch, repeat, Path(folder))
            runs[name].append(stopwatch)
    speeds = {name: np.array([run.steps_per_second for run in runs[name]]) for name in names}
    ratios = {name: speeds[name] / speeds[reference] for name in names}
    systems = {
        name: {
            "steps_per_second": float(np.median(speeds[name])),
            "ratio": float(np.median(ratios[name])),
            "ratio_ci95": median_interval(ratios[name]),
            "return_mean": mean_of_known([run.return_mean for run in runs[name]]),
            "timed_steps": [run.timed_steps for run in runs[name]],
            "repeats": speeds[name].tolist(),
        }
        for name in names
    }
    settings = asdict(workload) | {"algorithm": workload.algorithm.__name__, "warm_up": workload.warm_up}
    return {"settings": settings, "reference": reference, "systems": systems}


def mean_of_known(returns: list[float | None]) -> float | None:
    known = [x for x in returns if x is not None]
    return float(np.mean(known)) if known else None


def table(name: str, report: dict[str, Any]) -> str:
    """Markdown, one row per system."""
    of = report["settings"]
    lines = [
        f"### {name}\n",
        f"{of['algorithm']} on {of['env_id']}, {of['num_envs']} envs x {of['num_steps']} steps; "
        f"{of['steps']:,} env steps a run after {of['warm_up']:,} to warm up\n",
        f"| system | env steps/s | ratio to {report['reference']} [95 %] | return |",
        "|---|--:|--:|--:|",
    ]
    for system, row in report["systems"].items():
        speed, ratio = f"{row['steps_per_second']:,.0f}", with_interval(row["ratio"], row["ratio_ci95"])
        mean = "–" if row["return_mean"] is None else f"{row['return_mean']:.1f}"
        lines.append(f"| {system} | {speed} | {ratio} | {mean} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--repeats", type=positive, default=5, help="interleaved runs of each system (default: 5)")
    parser.add_argument(
        "--steps", type=positive, help="env steps on the clock in each run (default: the workload's own)"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--json", type=Path, help="where to write the numbers, of every repeat too")
    arguments = parser.parse_args()
    refuse_unknown(parser, "--workload", arguments.workload, WORKLOADS)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    report: dict[str, Any] = {"versions": versions(), "machine": machine(), "repeats": arguments.repeats}
    report["workloads"] = {}
    print(f"{listed(report['versions'])}\n{listed(report['machine'])}; {arguments.repeats} repeats\n", flush=True)
    for name in arguments.workload:
        workload = WORKLOADS[name]
        if arguments.steps:
            workload = replace(workload, steps=arguments.steps)
        try:
            report["workloads"][name] = measure(workload, arguments.repeats)
        except UserError as error:
            parser.exit(2, f"error: {name}: {error}\n")
        print(table(name, report["workloads"][name]) + "\n", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print("Medians over repeats, ratios within each; return: mean of the last 100 training episodes of each run.")


if __name__ == "__main__":
    main()
