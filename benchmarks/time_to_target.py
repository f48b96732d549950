"""Seconds of training until CartPole is solved: configs of `pg_lightning`, and Stable-Baselines3 with its preset.

    python benchmarks/time_to_target.py --config ppo_cartpole --seeds 1 2 3 --json time.json

The clock starts just before the first env step and is stopped while the policy is evaluated: deterministically, over
20 episodes that are always the same, after the first rollout at or past every 5,000 env steps, and at the end of the
budget. It ends at the evaluation whose mean return reaches the target. Logs, checkpoints and progress of `fit` are
included in the time. Seeds are interleaved: each is run by every system before the next seed starts.

Stable-Baselines3 uses the PPO preset that RL Baselines3 Zoo tuned for CartPole-v1. A run that never reaches the target
counts as infinitely long; the interquartile mean leaves out a quarter of the seeds at each end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measuring import bootstrap, listed, machine, positive, versions, with_interval
from scipy.stats import trim_mean
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from throughput import make_trainer
from workloads import SB3

from pg_lightning.class_path import resolve
from pg_lightning.cli.configs import find_config
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError

ENV_ID = "CartPole-v1"
SB3_ENVS, SB3_STEPS = 8, 100_000
SB3_PRESET: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
    "learning_rate": lambda remaining: 1e-3 * remaining,
    "clip_range": lambda remaining: 0.2 * remaining,
}


@dataclass(frozen=True)
class Goal:
    target: float
    every: int
    episodes: int


@dataclass
class Race:
    """The clock of one run, and its state at the end.

    Attributes:
        seconds: on the clock; of training only.
        env_steps: at the last stop of the clock.
        return_mean: of the last evaluation.
        is_won: whether it reached the target.
    """

    seconds: float = 0.0
    env_steps: int = 0
    return_mean: float = -math.inf
    is_won: bool = False

    def go(self) -> None:
        self._since = time.perf_counter()

    def halt(self, env_steps: int) -> None:
        self.seconds += time.perf_counter() - self._since
        self.env_steps = env_steps

    def judge(self, return_mean: float, target: float) -> None:
        """Continues unless the target is reached."""
        self.return_mean = return_mean
        self.is_won = return_mean >= target
        self.go()


def run_fit(config: dict[str, Any], goal: Goal, seed: int, folder: Path) -> Race:
    """`fit` with a config, evaluated according to the goal."""
    race = Race()

    class Judge(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            race.go()

        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            race.halt(pl_module.env_steps)

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            race.judge(float(trainer.callback_metrics["val/return_mean"]), goal.target)
            trainer.should_stop = trainer.should_stop or race.is_won

    seed_everything(seed, verbose=False)
    evaluation = {"eval_every_steps": goal.every, "eval_episodes": goal.episodes, "eval_deterministic": True}
    data = RolloutDataModule(**{**config["data"], **evaluation})
    algorithm, arguments = resolve("model", config["model"])
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    model = algorithm(**spaces, total_steps=data.total_steps, **arguments)
    make_trainer(folder, Judge(), **config["trainer"]).fit(model, data)
    return race


def run_sb3(goal: Goal, seed: int, folder: Path) -> Race:
    race = Race()

    class Judge(BaseCallback):
        """An update ends when the next rollout starts, or training ends."""

        due = goal.every

        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 0:
                race.go()
            elif self.num_timesteps >= self.due:
                self._evaluate()

        def _on_step(self) -> bool:
            return not race.is_won

        def _on_training_end(self) -> None:
            if not race.is_won:
                self._evaluate()

        def _evaluate(self) -> None:
            race.halt(self.num_timesteps)
            self.due = (self.num_timesteps // goal.every + 1) * goal.every
            eval_env.seed(seed + 1000)
            race.judge(float(np.mean(evaluate_policy(self.model, eval_env, goal.episodes)[0])), goal.target)

    make_envs = partial(make_vec_env, ENV_ID, SB3_ENVS, env_kwargs={"disable_env_checker": True})
    env, eval_env = make_envs(seed=seed), make_envs()
    model = stable_baselines3.PPO("MlpPolicy", env, seed=seed, device="cpu", **SB3_PRESET)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(SB3_STEPS, Judge(), log_interval=5)
    env.close()
    eval_env.close()
    return race


def interquartile_mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.asarray(trim_mean(x, 0.25, axis=axis))


def measure(systems: dict[str, Callable[[Goal, int, Path], Race]], goal: Goal, seeds: list[int]) -> dict[str, Any]:
    """Runs every system once per seed, in turn."""
    races: dict[str, list[Race]] = {name: [] for name in systems}
    for seed in seeds:
        for name, run in systems.items():
            gc.collect()
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                race = run(goal, seed, Path(folder))
            races[name].append(race)
            end = "reached" if race.is_won else "missed"
            print(
                f"seed {seed}, {name}: {end} at {race.env_steps:,}, {race.seconds:.1f} s", file=sys.stderr, flush=True
            )
    seconds = {name: np.array([race.seconds if race.is_won else math.inf for race in races[name]]) for name in systems}
    report = {}
    for name in systems:
        pairs = np.stack([seconds[SB3], seconds[name]], axis=1)
        report[name] = {
            "reached": sum(race.is_won for race in races[name]),
            "seconds": float(interquartile_mean(seconds[name])),
            "seconds_ci95": bootstrap(lambda x: interquartile_mean(x, axis=1), seconds[name]),
            "times_faster": float(quotient(pairs[None])[0]),
            "times_faster_ci95": bootstrap(quotient, pairs),
            "env_steps": float(interquartile_mean(np.array([race.env_steps for race in races[name]]))),
            "seeds": [{"seed": seed, **asdict(race)} for seed, race in zip(seeds, races[name], strict=True)],
        }
    return report


def quotient(pairs: np.ndarray) -> np.ndarray:
    """`[R]` ratio of the IQMs over seeds of the two columns of `[R, seeds, 2]`; NaN where both are infinite."""
    first, second = np.moveaxis(interquartile_mean(pairs, axis=1), -1, 0)
    with np.errstate(invalid="ignore"):
        return first / second


def table(report: dict[str, Any], seeds: int) -> str:
    """Markdown, one row per system."""
    lines = [
        f"| system | seconds, IQM [95 %] | times faster than {SB3} [95 %] | env steps, IQM | seeds that reached it |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in report.items():
        seconds, faster = (with_interval(row[key], row[f"{key}_ci95"]) for key in ("seconds", "times_faster"))
        lines.append(f"| {name} | {seconds} | {faster} | {row['env_steps']:,.0f} | {row['reached']} of {seeds} |")
    return "\n".join(lines)


def load_config(name: str) -> dict[str, Any]:
    """A config by path, or by the name of a shipped config.

    Raises:
        UserError: if there is none, or if it is for another environment.
    """
    config: dict[str, Any] = yaml.safe_load(find_config(name).read_text())
    if config["data"]["env_id"] != ENV_ID:
        raise UserError(f"--config: {name!r} is for {config['data']['env_id']}, the target is for {ENV_ID}")
    return {"trainer": {}, **config}


def finite(x: Any) -> Any:
    """Replaces infinity and NaN by null, because JSON has neither."""
    if isinstance(x, dict):
        return {key: finite(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        nargs="+",
        default=["ppo_cartpole_fast", "ppo_cartpole"],
        help="paths, or names of shipped configs (default: ppo_cartpole_fast ppo_cartpole)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)), help="(default: 1 to 10)")
    parser.add_argument("--target", type=float, default=475.0, help="mean return (default: 475)")
    parser.add_argument("--every", type=positive, default=5000, help="env steps between evaluations (default: 5000)")
    parser.add_argument("--episodes", type=positive, default=20, help="episodes per evaluation (default: 20)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--json", type=Path, help="where to write the numbers, of every seed too")
    arguments = parser.parse_args()
    try:
        configs = {name: load_config(name) for name in arguments.config}
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    goal = Goal(arguments.target, arguments.every, arguments.episodes)
    header = {"versions": versions(), "machine": machine(), "goal": asdict(goal)}
    print(f"{listed(header['versions'])}\n{listed(header['machine'])}\n")
    systems: dict[str, Callable[[Goal, int, Path], Race]] = {
        f"pg_lightning, {Path(name).stem}": partial(run_fit, config) for name, config in configs.items()
    }
    report = measure({**systems, SB3: run_sb3}, goal, arguments.seeds)
    print(
        f"{ENV_ID} until the deterministic mean return over {goal.episodes} episodes is {goal.target:g}, evaluated "
        f"every {goal.every:,} env steps; seeds {' '.join(map(str, arguments.seeds))}\n"
    )
    print(table(report, len(arguments.seeds)))
    if arguments.json:
        arguments.json.write_text(json.dumps(finite({**header, "systems": report}), indent=1) + "\n")


if __name__ == "__main__":
    main()
