"""Training speed in env steps per second, on a CPU: `pg_lightning`, other trainers, a bare loop and upper bounds.

    python benchmarks/throughput.py                                  # everything; takes about half an hour
    python benchmarks/throughput.py --workload ppo_cartpole a2c_cartpole --repeats 7 --json speed.json
    python benchmarks/throughput.py --workload ppo_cartpole_1024 --purejaxrl ../purejaxrl/purejaxrl

The systems of a workload do the same number of env steps with the same hyperparameters. The clock starts after a
warm-up and stops after the update with the last rollout. All but PureJaxRL run in this one process, in turns, so
that the repeats of different systems are seconds apart and see the same load of the machine: ratios are taken
within a repeat. They only share the imported libraries and torch's random stream, which each seeds for itself.
The mean return of the last 100 training episodes is reported with each speed, to show that no system is fast because
it learns less.

The upper bounds are the environments alone, with random actions; the environments and the policy, without learning;
and `fit` on one rollout that is used repeatedly, without collection.

Peers are Stable-Baselines3; rsl_rl, if it is installed, on our tensor environments; and PureJaxRL, if `--purejaxrl`
names the folder of its `ppo.py`, in another process. `peers.py` lists what differs.

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
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import bare_loops
import gymnasium
import numpy as np
import peers
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from measuring import listed, machine, median_interval, positive, refuse_unknown, versions, with_interval
from workloads import BARE, FIT, PUREJAXRL, RSL_RL, SB3, WORKLOADS, Stopwatch, Workload

from pg_lightning.actor import Actor
from pg_lightning.algorithms import A2C, PPO, REINFORCE, PolicyGradientModule, VTrace
from pg_lightning.callbacks import EnvStepProgress, EvaluateEverySteps
from pg_lightning.cli.assembly import TRAINER_DEFAULTS
from pg_lightning.data import RolloutDataModule, RolloutDataset
from pg_lightning.data.collector import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.envs.backends.tensor import TASKS
from pg_lightning.errors import UserError
from pg_lightning.rollout import Rollout


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


def run_compiled(*run: Any, **data: Any) -> None:
    """`fit` with `model.compile`, whose time is in the warm-up; clears earlier compilations, as in a new process."""
    torch.compiler.reset()
    run_fit(*run, datamodule=partial(RolloutDataModule, **data), compile=True)


def run_vtrace(workload: Workload, *run: Any, **model: Any) -> None:
    """V-trace instead of A2C, with rollouts collected by a second process; uses one more core than the others."""
    torch.compiler.reset()
    run_fit(replace(workload, algorithm=VTrace), *run, datamodule=partial(RolloutDataModule, overlap=True), **model)


System = Callable[[Workload, Stopwatch, int, Path], None]
# To add a variant of `fit`, add one line: "fit, ReLU": partial(run_fit, activation="relu").
SYSTEMS: dict[str, System] = {
    "envs, random actions": run_envs,
    "envs and inference": run_collector,
    "learning alone, fit": partial(run_fit, datamodule=ReplayDataModule),
    BARE: run_bare,
    FIT: run_fit,
    "fit, backend vector": partial(run_fit, datamodule=partial(RolloutDataModule, backend="vector")),
    "fit, compile": run_compiled,
    "fit, overlap": partial(run_fit, datamodule=partial(RolloutDataModule, overlap=True)),
    "fit, overlap, compile": partial(run_compiled, overlap=True),
    "fit, device": partial(run_fit, datamodule=partial(RolloutDataModule, backend="device")),
    "fit, device, compile": partial(run_compiled, backend="device"),
    "fit, device, compile, overlap": partial(run_compiled, backend="device", overlap=True),
    "V-trace, ahead": run_vtrace,
    "V-trace, ahead, compile": partial(run_vtrace, compile=True),
    SB3: peers.run_sb3,
    RSL_RL: peers.run_rsl_rl,
    "rsl_rl, compile": partial(peers.run_rsl_rl, compile=True),
}


def systems_of(workload: Workload) -> list[str]:
    """The systems that can run it: some environments have no vectorised code, and some algorithms allow no lag."""
    able = {
        "vector": gymnasium.spec(workload.env_id).vector_entry_point is not None,
        "device": workload.env_id in TASKS,
        "overlap": workload.algorithm.corrects_policy_lag,
        "V-trace": workload.algorithm is A2C,
        "compile": not workload.whole_episodes,
        SB3: peers.sb3_can_run(workload),
        RSL_RL: peers.rsl_rl_can_run(workload),
        PUREJAXRL: peers.purejaxrl_can_run(workload),
    }
    names = [*SYSTEMS, PUREJAXRL] if workload.systems is None else workload.systems
    return [name for name in names if all(can for word, can in able.items() if word in name)]


def measure(workload: Workload, repeats: int, systems: dict[str, System]) -> dict[str, Any]:
    """Runs every system once per repeat, in turn; the seed is the number of the repeat."""
    names = [name for name in systems_of(workload) if name in systems]
    if not names:
        raise UserError("none of these systems can run it")
    first = SB3 if SB3 in names else BARE
    references = [name for name in (first, RSL_RL, PUREJAXRL) if name in names] or names[:1]
    runs: dict[str, list[Stopwatch]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            gc.collect()
            stopwatch = Stopwatch(workload.warm_up, workload.warm_up + workload.steps)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                systems[name](workload, stopwatch, repeat, Path(folder))
            runs[name].append(stopwatch)
    speeds = {name: np.array([run.steps_per_second for run in runs[name]]) for name in names}
    report = {
        name: {
            "steps_per_second": float(np.median(speeds[name])),
            "ratios": {reference: ratio(speeds[name], speeds[reference]) for reference in references},
            "return_mean": mean_of_known([run.return_mean for run in runs[name]]),
            "timed_steps": [run.timed_steps for run in runs[name]],
            "repeats": speeds[name].tolist(),
        }
        for name in names
    }
    settings = asdict(workload) | {"algorithm": workload.algorithm.__name__, "warm_up": workload.warm_up}
    return {"settings": settings, "references": references, "systems": report}


def ratio(speeds: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """The median of the ratios within a repeat, and its interval."""
    ratios = speeds / others
    return {"median": float(np.median(ratios)), "ci95": median_interval(ratios)}


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
        "| system | env steps/s | "
        + " | ".join(f"ratio to {name} [95 %]" for name in report["references"])
        + " | return |",
        "|---|--:|" + "--:|" * len(report["references"]) + "--:|",
    ]
    for system, row in report["systems"].items():
        ratios = " | ".join(with_interval(x["median"], x["ci95"]) for x in row["ratios"].values())
        mean = "–" if row["return_mean"] is None else f"{row['return_mean']:.1f}"
        lines.append(f"| {system} | {row['steps_per_second']:,.0f} | {ratios} | {mean} |")
    return "\n".join(lines)


def available(purejaxrl: Path | None, interpreter: str) -> dict[str, System]:
    """All systems but those whose code is not here; prints how to get it."""
    systems = dict(SYSTEMS)
    if not peers.HAS_RSL_RL:
        systems = {name: run for name, run in systems.items() if RSL_RL not in name}
        print('no rows for rsl_rl: pip install "rsl-rl-lib>=5.5", or the extra [bench]')
    if purejaxrl is None:
        print(
            "no rows for PureJaxRL: git clone https://github.com/luchris429/purejaxrl, and give --purejaxrl its folder"
        )
    else:
        systems[PUREJAXRL] = partial(peers.run_purejaxrl, source=purejaxrl, interpreter=interpreter)
    return systems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--repeats", type=positive, default=5, help="interleaved runs of each system (default: 5)")
    parser.add_argument(
        "--steps", type=positive, help="env steps on the clock in each run (default: the workload's own)"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="only these rows of the tables (default: all)")
    parser.add_argument("--purejaxrl", type=Path, metavar="FOLDER", help="of PureJaxRL's ppo.py and wrappers.py")
    parser.add_argument(
        "--purejaxrl-python", default=sys.executable, metavar="PYTHON", help="which has jax (default: this one)"
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers, of every repeat too")
    arguments = parser.parse_args()
    refuse_unknown(parser, "--workload", arguments.workload, WORKLOADS)
    if arguments.purejaxrl and not (arguments.purejaxrl / "ppo.py").is_file():
        parser.exit(2, f"error: --purejaxrl: there is no ppo.py in {arguments.purejaxrl}\n")
    if shutil.which(arguments.purejaxrl_python) is None:
        parser.exit(2, f"error: --purejaxrl-python: {arguments.purejaxrl_python} is not a program\n")
    systems = available(arguments.purejaxrl, arguments.purejaxrl_python)
    refuse_unknown(parser, "--systems", arguments.systems or [], systems)
    systems = {name: run for name, run in systems.items() if name in (arguments.systems or systems)}
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
            report["workloads"][name] = measure(workload, arguments.repeats, systems)
        except UserError as error:
            parser.exit(2, f"error: {name}: {error}\n")
        print(table(name, report["workloads"][name]) + "\n", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print("Medians over repeats, ratios within each; return: mean of the last 100 training episodes of each run.")


if __name__ == "__main__":
    main()
