"""Checks and timings on a GPU: correctness, precision, resume, learning and speed, with a table at the end.

    python benchmarks/gpu.py                                       # some ten minutes on a GPU
    python benchmarks/gpu.py --only equal precision --json gpu.json --markdown gpu.md
    python benchmarks/gpu.py --device cpu --small                  # the same without a GPU, in some four minutes

It needs no network and no packages besides those of `pip install pg_lightning`. A failed check is a row of the table
and exit status 1; the other checks still run.

- `equal`: learning from five recorded rollouts on the CPU and on the device, in float64 and float32, for every
  algorithm, head and memory. The largest difference of a weight is compared with a bound. Five compiled updates with
  tensor environments are compared with five eager ones on the device.
- `sync`: no step of a rollout of tensor environments waits for the device.
- `precision`: PPO learns in every precision of Lightning; the first minibatch of an update must have ratio π/π_old = 1.
- `commands`: the command line, each run in its own process: every algorithm, normalisers, memory, `overlap`,
  `compile`, and A3C, which must be refused in one line.
- `resume`: a run that is stopped half-way and resumed is bitwise equal to an uninterrupted one.
- `learn`: `ppo_cartpole` and `ppo_pendulum` on the device, with their test scores and wall seconds; seconds until
  training by tensor environments, eager and compiled, has CartPole's target.
- `speed`: `fit` and a single update, on the CPU and on the device, over sizes of rollouts and networks; `fit` with
  tensor environments, eager and compiled, up to 65,536, and the share of its time that is neither collecting nor
  learning.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gpu_tensor
import gymnasium
import numpy as np
import torch
from checks import Row, failed_speed, failure, make, synchronize, trainer
from lightning.pytorch import Callback, seed_everything
from measuring import listed, machine, positive, versions
from torch.utils.data import IterableDataset

from pg_lightning import A2C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline, Rollout, RolloutDataModule

ROOT = Path(__file__).parents[1]
# Bounds on the largest difference of a weight, relative to the largest change. In float32, Adam divides by the root of
# small squares and amplifies rounding errors of small gradients; a bug is visible in float64.
BOUNDS = {"64-true": 1e-9, "32-true": 0.1}
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true")
EQUAL = "equal bit by bit"
TARGETS = {"ppo_cartpole": 475.0, "ppo_pendulum": -200.0}


class Images(gymnasium.Env):
    """84 × 84 × 4 bytes of noise, six actions: the load of a Nature CNN without a game."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


gymnasium.register("BenchmarkImages-v0", Images, max_episode_steps=1000)


class Replayed(IterableDataset[Rollout]):
    """Recorded rollouts, each returned as if the current policy had collected it."""

    def __init__(self, rollouts: list[Rollout], module: Any, count: int) -> None:
        self.rollouts, self.module, self.count = rollouts, module, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Rollout]:
        for i in range(self.count):
            version = self.module.policy_version
            yield replace(self.rollouts[i % len(self.rollouts)], policy_version=version)


class Record(Callback):
    """Keeps every rollout that is used for learning."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Rollout, batch_idx: int) -> None:
        self.rollouts.append(batch.to("cpu"))


def record(algorithm: type, env_id: str, data: dict[str, Any], model: dict[str, Any], count: int) -> list[Rollout]:
    """The first `count` rollouts of a training on the CPU."""
    seed_everything(1, verbose=False)
    rollouts = RolloutDataModule(env_id, total_steps=10**6, **data)
    recorder = Record()
    module = make(algorithm, rollouts, **model)
    trainer("cpu", limit_train_batches=count, callbacks=[recorder], limit_val_batches=0).fit(module, rollouts)
    return recorder.rollouts


def learn_from(
    rollouts: list[Rollout], device: str, precision: str, algorithm: type, env_id: str, model: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """The weights `[P]` after one update per rollout, and the largest change of a weight."""
    module = make(algorithm, RolloutDataModule(env_id, total_steps=10**6), **model)
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    trainer(device, precision).fit(module, Replayed(rollouts, module, len(rollouts)))
    after = torch.nn.utils.parameters_to_vector(module.parameters()).detach().cpu().double()
    return after, (after - before).abs().max().item()


def equal(device: str, small: bool) -> Iterator[Row]:
    steps, whole = {"num_envs": 4, "num_steps": 32}, {"num_envs": 4, "num_steps": 1, "whole_episodes": True}
    ppo = {"num_epochs": 2, "num_minibatches": 2}
    scaled = {"normalize_obs": True, "normalize_values": True, "scale_rewards": True}
    cases: dict[str, tuple[type, str, dict[str, Any], dict[str, Any]]] = {
        "REINFORCE": (REINFORCE, "CartPole-v1", whole, {}),
        "REINFORCE, batch mean": (REINFORCE, "CartPole-v1", whole, {"baseline": "batch_mean"}),
        "REINFORCEBaseline": (REINFORCEBaseline, "CartPole-v1", whole, {}),
        "OneStepActorCritic": (OneStepActorCritic, "CartPole-v1", steps, {}),
        "A2C": (A2C, "CartPole-v1", steps, {}),
        "PPO": (PPO, "CartPole-v1", steps, ppo),
        "PPO, normalisers": (PPO, "Pendulum-v1", steps, ppo | scaled),
        "PPO, target_kl": (PPO, "CartPole-v1", steps, ppo | {"target_kl": 0.01}),
        "PPO, kl_penalty": (PPO, "CartPole-v1", steps, ppo | {"target_kl": 0.01, "kl_penalty": 1.0}),
        "PPO, GRU": (PPO, "CartPole-v1", steps, ppo | {"memory": "gru"}),
        "PPO, LSTM, shared": (PPO, "CartPole-v1", steps, ppo | {"memory": "lstm", "shared_torso": True}),
        "PPO, squashed Gaussian": (PPO, "Pendulum-v1", steps, ppo | {"head": "squashed_gaussian"}),
        "PPO, beta": (PPO, "Pendulum-v1", steps, ppo | {"head": "beta"}),
        "PPO, Nature CNN": (PPO, "BenchmarkImages-v0", {"num_envs": 2, "num_steps": 8}, ppo | {"torso": "nature_cnn"}),
    }
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions would round to 10 bits
    for name, (algorithm, env_id, data, model) in cases.items():
        try:
            rollouts = record(algorithm, env_id, data, model, 5)
        except Exception as error:
            yield Row("equal", name, failure(error), False)
            continue
        for precision, bound in BOUNDS.items():
            try:
                (one, moved), (other, _) = (
                    learn_from(rollouts, x, precision, algorithm, env_id, model) for x in ("cpu", device)
                )
                apart = (one - other).abs().max().item()
                passed = apart <= bound * moved
                yield Row("equal", f"{name}, {precision}", f"{apart:.1e} apart after moving {moved:.1e}", passed)
            except Exception as error:
                yield Row("equal", f"{name}, {precision}", failure(error), False)
    yield from gpu_tensor.equal(device, small)


class FirstRatios(PPO):
    """Records |log π/π_old| in the first minibatch of every update."""

    def update(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        self.noted = getattr(self, "noted", [])
        self.is_first = True
        return super().update(rollout)

    def loss(self, batch: Any) -> Any:
        if self.is_first:
            self.is_first = False
            with torch.no_grad():
                pi, _ = self.network(batch)
                self.noted.append((pi.log_prob(batch.actions) - batch.old_log_probs).abs().max().item())
        return super().loss(batch)


def precision(device: str, small: bool) -> Iterator[Row]:
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        for kind in PRECISIONS:
            case = f"PPO {env_id}, {kind}"
            try:
                data = RolloutDataModule(env_id, num_envs=8, num_steps=64, total_steps=1024 if small else 5120)
                module = make(FirstRatios, data)
                trainer(device, kind, max_epochs=-1, limit_val_batches=0).fit(module, data)
                finite = all(bool(p.isfinite().all()) for p in module.parameters())
                apart = max(module.noted)
                yield Row(
                    "precision", case, f"log ratio {apart:.1e}, {module.env_steps} env steps", finite and apart < 1e-3
                )
            except Exception as error:
                yield Row("precision", case, failure(error), False)


def call(folder: Path, device: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs one command line in its own process; returns it and its seconds."""
    where = ["--trainer.accelerator", "gpu" if device == "cuda" else device, "--trainer.default_root_dir", str(folder)]
    command = [sys.executable, "-m", "pg_lightning", *arguments, *(where if arguments[0] == "fit" else where[:2])]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    return done, time.perf_counter() - start


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last lines of a failed command; its whole output goes to stderr."""
    if done.returncode:
        print(" ".join(done.args), done.stderr[-4000:], sep="\n", file=sys.stderr, flush=True)
    lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"status {done.returncode}"


def commands(device: str, small: bool) -> Iterator[Row]:
    steps = "1024" if small else "4096"
    short = ["--data.total_steps", steps, "--data.eval_every_steps", steps, "--data.eval_episodes", "4"]
    cases: dict[str, list[str]] = {
        name: ["--config", name]
        for name in ("reinforce_cartpole", "reinforce_baseline_cartpole", "actor_critic_cartpole", "a2c_cartpole")
    }
    ppo = ["--config", "ppo_cartpole"]
    cases |= {
        "ppo_cartpole": ppo,
        "ppo_pendulum": ["--config", "ppo_pendulum"],
        "ppo_recall, memory": ["--config", "ppo_recall"],
        "ppo_cartpole, normalisers": [
            *ppo,
            "--model.normalize_obs=true",
            "--model.normalize_values=true",
            "--model.scale_rewards=true",
        ],
        "ppo_cartpole, overlap": [*ppo, "--data.overlap", "true"],
        "ppo_cartpole, compile": [*ppo, "--model.compile", "true"],
        "ppo_cartpole, async": [*ppo, "--data.backend", "async"],
        "ppo_cartpole, vector": [*ppo, "--data.backend", "vector"],
        "ppo_cartpole, device": [*ppo, "--data.backend", "device"],
        "ppo_cartpole, device, compile": [*ppo, "--data.backend", "device", "--model.compile", "true"],
        "ppo_cartpole, bf16-mixed": [*ppo, "--trainer.precision", "bf16-mixed"],
        "ppo_cartpole, 16-mixed": [*ppo, "--trainer.precision", "16-mixed"],
    }
    refused = {"a3c_cartpole": ["--config", "a3c_cartpole", "--trainer.devices", "1"]} if device != "cpu" else {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2 if device == "cpu" else 7) as pool:
        calls = {
            name: pool.submit(call, Path(folder) / str(i), device, "fit", *arguments, *short)
            for i, (name, arguments) in enumerate((cases | refused).items())
        }
        for name, future in calls.items():
            try:
                done, seconds = future.result()
            except subprocess.TimeoutExpired:
                yield Row("commands", name, "did not end within 240 s", False)
                continue
            one_line = done.returncode in (1, 2) and "Traceback" not in done.stderr
            passed = one_line if name in refused else done.returncode == 0
            result = f"{seconds:.0f} s" if done.returncode == 0 else last_words(done)
            yield Row("commands", name, result, passed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = sorted(folder.glob("*/version_*/checkpoints/last.ckpt"))[-1]
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def resume(device: str, small: bool) -> Iterator[Row]:
    ppo = ["--model.clip_schedule", "constant"]
    cases = {
        "a2c_cartpole": (1024, []),
        "ppo_cartpole, device": (1024, [*ppo, "--data.backend", "device"]),
        "ppo_pendulum": (4096, ppo),
        "ppo_recall": (2048, ppo),
        "ppo_cartpole, overlap": (1024, [*ppo, "--data.overlap", "true"]),
        "ppo_cartpole, 16-mixed": (1024, [*ppo, "--trainer.precision", "16-mixed"]),
    }
    cases = dict(list(cases.items())[: 2 if small else None])
    with ThreadPoolExecutor(1 if device == "cpu" else len(cases)) as pool:
        jobs = {
            case: pool.submit(resumed, device, case.partition(",")[0], *settings) for case, settings in cases.items()
        }
        for case, job in jobs.items():
            try:
                result = job.result()
            except subprocess.TimeoutExpired:
                result = "did not end within 240 s"
            yield Row("resume", case, result, result == EQUAL)


def resumed(device: str, config: str, half: int, more: list[str]) -> str:
    """Compares a run that was resumed half-way with an uninterrupted one."""
    fit = ["fit", "--config", config, "--model.lr_schedule", "constant", "--data.eval_episodes", "4", *more]
    fit += ["--data.eval_every_steps", str(half)]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        done = [call(whole, device, *fit, "--data.total_steps", str(2 * half))[0]]
        done.append(call(parts, device, *fit, "--data.total_steps", str(half))[0])
        if not any(x.returncode for x in done):
            path = next(parts.glob("*/version_*/checkpoints/last.ckpt"))
            done.append(call(parts, device, *fit, "--data.total_steps", str(2 * half), "--ckpt_path", str(path))[0])
        if failed := [x for x in done if x.returncode]:
            return last_words(failed[0])
        one, other = weights(whole), weights(parts)
    apart = max((one[key].double() - other[key].double()).abs().max().item() for key in one)
    return EQUAL if apart == 0 else f"differs by {apart:.1e}"


def learn(device: str, small: bool) -> Iterator[Row]:
    if small:
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        fits = {name: pool.submit(call, Path(folder), device, "fit", "--config", name) for name in TARGETS}
        for name, fit in fits.items():
            done, seconds = fit.result()
            best = sorted((Path(folder) / name).glob("version_*/checkpoints/best.ckpt"))
            if done.returncode or not best:
                yield Row("learn", name, last_words(done), False)
                continue
            test, _ = call(Path(folder), device, "test", "--ckpt_path", str(best[0]), "--data.eval_episodes", "100")
            if test.returncode:
                yield Row("learn", name, last_words(test), False)
                continue
            score = json.loads((best[0].parents[1] / "test.json").read_text())["return_mean"]
            yield Row("learn", name, f"return {score:.1f}, {seconds:.0f} s", score >= TARGETS[name])
    yield from gpu_tensor.learn(device)


def fit_speed(device: str, env_id: str, data: dict[str, Any], rollouts: int, model: dict[str, Any]) -> float:
    """Env steps per second of `fit` after three rollouts of warm-up."""

    class Clock(Callback):
        laps: list[float] = []  # noqa: RUF012 - a new one for each class created here

        def on_train_batch_end(self, *arguments: Any) -> None:
            synchronize(device)
            self.laps.append(time.perf_counter())

    seed_everything(1, verbose=False)
    rows = data["num_envs"] * data["num_steps"]
    module_data = RolloutDataModule(env_id, total_steps=(rollouts + 3) * rows, **data)
    clock = Clock()
    fitting = trainer(device, max_epochs=-1, callbacks=[clock], limit_val_batches=0, log_every_n_steps=5)
    fitting.fit(make(PPO, module_data, **model), module_data)
    return rows * (len(clock.laps) - 3) / (clock.laps[-1] - clock.laps[2])


def update_seconds(
    device: str, env_id: str, data: dict[str, Any], model: dict[str, Any], precision: str, count: int
) -> float:
    """Seconds of one update on an existing rollout."""
    module_data = RolloutDataModule(env_id, total_steps=10**9, **(data | {"backend": "sync"}))
    rollout = record(PPO, env_id, data | {"num_steps": 2}, model | {"num_epochs": 1, "num_minibatches": 1}, 1)[0]
    times = data["num_steps"] // 2

    def longer(x: torch.Tensor, last: int = 0) -> torch.Tensor:
        return torch.cat([x[:2]] * times + [x[2:]] * last)

    names = ("actions", "rewards", "terminated", "truncated", "valid", "timesteps")
    rows = {name: longer(getattr(rollout, name)) for name in names} | {"obs": longer(rollout.obs, 1)}
    rollout = replace(rollout, **rows, env_steps=int(rows["valid"].sum())).to(device)
    module = make(PPO, module_data, **model)
    laps: list[float] = []

    class Clock(Callback):
        def on_train_batch_start(self, *arguments: Any) -> None:
            synchronize(device)
            laps.append(-time.perf_counter())

        def on_train_batch_end(self, *arguments: Any) -> None:
            synchronize(device)
            laps[-1] += time.perf_counter()

    trainer(device, precision, callbacks=[Clock()], log_every_n_steps=5).fit(module, Replayed([rollout], module, count))
    return float(np.median(laps[2:]))


def speed(device: str, small: bool) -> Iterator[Row]:
    devices = tuple(dict.fromkeys(("cpu", device)))
    vector = {"backend": "vector", "autoreset_mode": None}
    sizes = {
        "fit, CartPole 8 x 128": ({"num_envs": 8, "num_steps": 128}, 10),
        "fit, CartPole 64 x 128, vector": ({"num_envs": 64, "num_steps": 128, **vector}, 6),
        "fit, CartPole 1,024 x 32, vector": ({"num_envs": 1024, "num_steps": 32, **vector}, 6),
    }
    for name, (data, rollouts) in sizes.items():
        for where in devices:
            try:
                rate = fit_speed(
                    where, "CartPole-v1", data, 1 if small else rollouts, {"num_epochs": 4, "num_minibatches": 4}
                )
                yield Row("speed", f"{name}, {where}", f"{rate:,.0f} env steps/s")
            except Exception as error:
                yield failed_speed(f"{name}, {where}", error)
    images = ("BenchmarkImages-v0", {"num_envs": 8, "num_steps": 128}, {"torso": "nature_cnn", "shared_torso": True})
    updates = {
        "update, MLP 64-64, 8 x 128": ("CartPole-v1", {"num_envs": 8, "num_steps": 128}, {}),
        "update, MLP 64-64, 4,096 x 32": ("CartPole-v1", {"num_envs": 4096, "num_steps": 32}, {}),
        "update, MLP 512-256-128, 4,096 x 24": (
            "Pendulum-v1",
            {"num_envs": 4096, "num_steps": 24},
            {"hidden_sizes": [512, 256, 128]},
        ),
        "update, Nature CNN, 8 x 128": images,
    }
    for name, (env_id, data, model) in list(updates.items())[: 1 if small else None]:
        for where, kind in [*((x, "32-true") for x in devices), *((x, "bf16-mixed") for x in devices if x == "cuda")]:
            if where == "cpu" and "4,096" in name:
                continue
            try:
                took = update_seconds(where, env_id, data, {"num_epochs": 4, "num_minibatches": 4, **model}, kind, 8)
                rate = data["num_envs"] * data["num_steps"] / took
                yield Row("speed", f"{name}, {where}, {kind}", f"{1000 * took:.1f} ms, {rate:,.0f} rows/s")
            except Exception as error:
                yield failed_speed(f"{name}, {where}, {kind}", error)
    yield from gpu_tensor.speed(device, small)


SECTIONS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "equal": equal,
    "sync": gpu_tensor.sync,
    "precision": precision,
    "commands": commands,
    "resume": resume,
    "learn": learn,
    "speed": speed,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="few env steps, to test the script itself")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=positive, help="start no section after this many")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: --device: there is no GPU here; give --device cpu\n")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
    head = f"{card}; {listed(versions())}; {listed(machine())}"
    print(head, flush=True)
    rows: list[Row] = []
    start = time.perf_counter()
    for name in arguments.only:
        if arguments.seconds and time.perf_counter() - start > arguments.seconds:
            rows.append(Row(name, "", "not run: out of time", False))
            continue
        began = time.perf_counter()
        for row in SECTIONS[name](arguments.device, arguments.small):
            rows.append(row)
            print(f"{row.check:10} {row.case:50} {'ok  ' if row.passed else 'FAIL'} {row.result}", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"head": head, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
            )
    if arguments.markdown:
        lines = [f"| {row.check} | {row.case} | {row.result} | {'ok' if row.passed else 'fails'} |" for row in rows]
        arguments.markdown.write_text(
            "\n".join([head, "", "| check | case | result | |", "|---|---|---|---|", *lines]) + "\n"
        )
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows)} rows, {failed} failed, {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
