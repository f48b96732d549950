"""The checks and timings of `gpu.py` for tensor environments (`data.backend: device`)."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from checks import Row, failed_speed, failure, make, synchronize, trainer
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from pg_lightning import PPO, Rollout, RolloutDataModule
from pg_lightning.data import RolloutCollector
from pg_lightning.envs.backends.tensor import TensorEnvironments

NUM_STEPS, MINIBATCHES = 32, {"num_epochs": 4, "num_minibatches": 4}
NUM_ENVS = {"CartPole-v1": (64, 1024, 4096, 65536), "Pendulum-v1": (64, 1024, 4096, 65536)}
MODES = {"eager": False, "compiled": True}
WARM_UP = 3
EQUAL_BOUND = 0.1  # see BOUNDS of `gpu.py`: float32
LEARNER = {**MINIBATCHES, "lr": 1e-3}
TARGET, LEARN_STEPS = 475.0, 4_000_000
# Operators with a result on the host, or a shape that depends on values; `lift_fresh` copies Python numbers to tensors.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select", "_unique2", "lift_fresh")


def equal(device: str, small: bool) -> Iterator[Row]:
    """Five compiled updates and the rollouts before them, compared with eager ones of the same random numbers."""
    for env_id in list(NUM_ENVS)[: 1 if small else None]:
        case = f"PPO {env_id}, tensor environments, compiled and eager"
        try:
            (one, rollouts, moved), (other, others, _) = (trained(device, env_id, x) for x in MODES.values())
            apart = (one - other).abs().max().item()
            differ = max((x.obs - y.obs).abs().max().item() for x, y in zip(rollouts, others, strict=True))
            result = f"{apart:.1e} apart after moving {moved:.1e}; observations {differ:.1e}"
            yield Row("equal", case, result, apart <= EQUAL_BOUND * moved and differ < 1e-2)
        except Exception as error:
            yield Row("equal", case, failure(error), False)


def trained(device: str, env_id: str, compiles: bool) -> tuple[torch.Tensor, list[Rollout], float]:
    """The weights `[P]` after five updates, their rollouts, and the largest change of a weight."""

    class Record(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Rollout, batch_idx: int) -> None:
            rollouts.append(batch.to("cpu"))

    rollouts: list[Rollout] = []
    torch.compiler.reset()
    data = datamodule(env_id, 64, updates=5)
    module = make(PPO, data, compile=compiles, **MINIBATCHES)
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    trainer(device, max_epochs=-1, callbacks=[Record()], limit_val_batches=0).fit(module, data)
    after = torch.nn.utils.parameters_to_vector(module.parameters()).detach().cpu()
    return after, rollouts, (after - before).abs().max().item()


def datamodule(env_id: str, num_envs: int, updates: int) -> RolloutDataModule:
    total = updates * num_envs * NUM_STEPS
    return RolloutDataModule(env_id, num_envs=num_envs, num_steps=NUM_STEPS, total_steps=total, backend="device")


class Waits(TorchDispatchMode):
    """Counts operators that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in WAITS or any(x is not None and x.dtype == torch.bool for x in masks):
            self.found.append(name)
        return operator(*args, **(kwargs or {}))


def sync(device: str, small: bool) -> Iterator[Row]:
    """The steps of a rollout; the rollout made of them at the end waits for the device once.

    On a GPU an operation that waits is an error. Elsewhere operators are counted, which compiled code hides.
    """
    for env_id in NUM_ENVS:
        for mode, compiles in MODES.items():
            if device == "cpu" and compiles:
                continue
            case = f"{env_id}, {NUM_STEPS} steps, {mode}"
            try:
                found = waits(device, env_id, compiles)
                result = ", ".join(sorted(set(found))) or "no step waits for the device"
                yield Row("sync", case, result, not found)
            except Exception as error:
                yield Row("sync", case, failure(error), False)


def waits(device: str, env_id: str, compiles: bool) -> list[str]:
    """Names of the operators that wait within the steps of the second rollout; raises if the GPU is waited for."""
    torch.compiler.reset()
    num_envs = 1024  # so many that the policy is not computed in NumPy on a CPU either
    module = make(PPO, datamodule(env_id, num_envs, updates=1), compile=compiles).to(device)
    env = TensorEnvironments(env_id, num_envs, device=device)
    collector = RolloutCollector(env, NUM_STEPS, seeds=1, action_seed=2)
    collector.collect(module.actor)
    counted, finish = Waits(), collector.rows.rollout

    def finished(*arguments: Any) -> Rollout:
        end()
        return finish(*arguments)

    def end() -> None:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        elif not over:
            counted.__exit__(None, None, None)
        over.append(True)

    over: list[bool] = []
    collector.rows.rollout = finished  # type: ignore[method-assign]
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    else:
        counted.__enter__()
    try:
        collector.collect(module.actor)
    finally:
        end()
    return counted.found


class TimedPPO(PPO):
    """Adds up the seconds of learning; `synchronize` waits for the device."""

    seconds = 0.0

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        start = time.perf_counter()
        super().training_step(rollout, batch_idx)
        synchronize(self.device.type)
        self.seconds += time.perf_counter() - start


class Laps(Callback):
    """Wall time, and time of collecting and learning, at the end of each update.

    Attributes:
        laps: `[updates, 2]` seconds.
    """

    def __init__(self) -> None:
        self.laps: list[tuple[float, float]] = []
        self.collecting = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        collector = trainer.datamodule.collector
        collect = collector.collect

        def timed(actor: Any) -> Rollout:
            start = time.perf_counter()
            rollout = collect(actor)
            synchronize(pl_module.device.type)
            self.collecting += time.perf_counter() - start
            return rollout

        collector.collect = timed

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.laps.append((time.perf_counter(), self.collecting + pl_module.seconds))


def speed(device: str, small: bool) -> Iterator[Row]:
    few = 1 if small else None
    for env_id, sizes in list(NUM_ENVS.items())[:few]:
        for num_envs in sizes[: few or (4 if device == "cuda" else 3)]:
            for mode, compiles in MODES.items():
                case = f"fit, tensor {env_id} {num_envs:,} x {NUM_STEPS}, {mode}, {device}"
                try:
                    rate, share = fit_speed(device, env_id, num_envs, 2 if small else 10, compiles)
                    yield Row("speed", case, f"{rate:,.0f} env steps/s; {share:.1%} outside collecting and learning")
                except Exception as error:
                    yield failed_speed(case, error)


def fit_speed(device: str, env_id: str, num_envs: int, updates: int, compiles: bool) -> tuple[float, float]:
    """Env steps per second of `fit` after three updates, and the share of time that is Lightning's loop."""
    torch.compiler.reset()
    gc.collect()  # the memory of a size that did not fit
    data, laps = datamodule(env_id, num_envs, updates + WARM_UP), Laps()
    module = make(TimedPPO, data, compile=compiles, **MINIBATCHES)
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 5}
    trainer(device, max_epochs=-1, callbacks=[laps], **options).fit(module, data)
    wall, busy = np.subtract(laps.laps[-1], laps.laps[WARM_UP - 1])
    return updates * num_envs * NUM_STEPS / wall, 1 - busy / wall


def learn(device: str) -> Iterator[Row]:
    for mode, compiles in MODES.items():
        case = f"tensor CartPole to {TARGET:.0f}, {mode}"
        try:
            seconds, env_steps, mean = seconds_to_target(device, compiles)
            yield Row("learn", case, f"return {mean:.1f}, {seconds:.0f} s, {env_steps:,} env steps", mean >= TARGET)
        except Exception as error:
            yield Row("learn", case, failure(error), False)


def seconds_to_target(device: str, compiles: bool) -> tuple[float, int, float]:
    """Wall seconds of `fit`, with compilation, its env steps, and the mean return of the last 100 training episodes."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Rollout, *_: Any) -> None:
            returns.extend(batch.episode_returns.tolist())
            trainer.should_stop |= len(returns) >= 100 and float(np.mean(returns[-100:])) >= TARGET

    returns: list[float] = []
    torch.compiler.reset()
    data = datamodule("CartPole-v1", 256, LEARN_STEPS // (256 * NUM_STEPS))
    module = make(PPO, data, compile=compiles, **LEARNER)
    start = time.perf_counter()
    trainer(device, max_epochs=-1, callbacks=[Stop()], limit_val_batches=0, log_every_n_steps=5).fit(module, data)
    synchronize(device)
    return time.perf_counter() - start, module.env_steps, float(np.mean(returns[-100:]))
