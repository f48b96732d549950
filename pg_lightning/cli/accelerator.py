"""`trainer.accelerator auto`: measures which device is fastest."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from pg_lightning.algorithms import PolicyGradientModule
from pg_lightning.rollout import Batch, Rollout


def choose_accelerator(
    module: PolicyGradientModule, data: Any, devices: tuple[str, ...] | None = None, repeats: int = 3
) -> tuple[str, str]:
    """Measures acting and learning on each device with observations of the task, without environments.

    A small MLP is often faster on a CPU, because launching an operation on a GPU takes longer than the operation.

    Args:
        module: the algorithm; its state and the state of the random generators are left unchanged.
        data: the `RolloutDataModule`.
        devices: candidates; by default the CPU and, if there is one, the GPU.
        repeats: of each measurement, of which the shortest counts.

    Returns:
        The Trainer's name of the faster device, and the reason in words.
    """
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() and not module.is_asynchronous else ("cpu",)
    if len(devices) == 1:
        return devices[0], f"{devices[0]}, the only device available to {type(module).__name__}"
    seconds = {device: seconds_per_rollout(module, data, device, repeats) for device in devices}
    best = min(seconds, key=lambda device: seconds[device])
    measured = ", ".join(f"{device} {1000 * value:,.1f}" for device, value in seconds.items())
    return best, f"{best}, the fastest at acting and learning ({measured} ms per rollout, without environments)"


@torch.random.fork_rng(devices=[])
def seconds_per_rollout(module: PolicyGradientModule, data: Any, device: str, repeats: int = 3) -> float:
    """Time of acting and learning in one iteration: one call of the policy per step, one loss per minibatch."""
    module = deepcopy(module).to(device)
    rollout = _random_rollout(module, data)
    generator = torch.Generator(device).manual_seed(0)
    state = module.network.initial_state(data.num_envs)

    def act() -> None:
        with torch.inference_mode(), module.network.acting():
            actions, _ = module.network.sample(rollout.obs[0], generator, None, state)
            actions.cpu()

    zeros = torch.zeros_like(rollout.rewards)
    samples = Batch.of(rollout, zeros, zeros, zeros)
    samples.old_log_probs = zeros.flatten()
    num_minibatches, num_epochs = getattr(module, "num_minibatches", 1), getattr(module, "num_epochs", 1)
    minibatch = next(iter(samples.minibatches(num_minibatches)))

    def learn() -> None:
        loss, _ = module.loss(minibatch)
        loss.backward()
        loss.item()

    return data.num_steps * _seconds(act, repeats) + num_epochs * num_minibatches * _seconds(learn, repeats)


def _random_rollout(module: PolicyGradientModule, data: Any) -> Rollout:
    """A rollout of the run's shape with actions of the policy; all other fields are zero."""
    T, N, device = data.num_steps, data.num_envs, module.device
    obs = torch.as_tensor(np.stack([data.observation_space.sample() for _ in range(N)]), device=device)
    state = module.network.initial_state(N)
    with torch.inference_mode(), module.network.acting():
        actions, _ = module.network.sample(obs, torch.Generator(device).manual_seed(0), None, state)
    zeros, nothing = torch.zeros(T, N, device=device), torch.zeros(T, N, dtype=torch.bool, device=device)
    return Rollout(
        obs=obs.expand(T + 1, *obs.shape).clone(),
        actions=actions.clone().expand(T, *actions.shape).clone(),
        rewards=zeros,
        terminated=nothing,
        truncated=nothing,
        valid=~nothing,
        timesteps=torch.ones(T, N, dtype=torch.int64, device=device),
        final_obs=obs[:0],
        final_rows=torch.zeros(0, dtype=torch.int64, device=device),
        episode_returns=zeros[0, :0],
        episode_lengths=zeros[0, :0],
        policy_version=0,
        env_steps=T * N,
        state=state,
    )


def _seconds(work: Any, repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
