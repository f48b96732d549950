"""PPO, A2C and REINFORCE as plain PyTorch loops: the algorithms of `pg_lightning` without Lightning and without a log.

Every loop is an endless generator: after each update it yields the env steps of its rollout, and the
returns of the episodes that ended in it. Hyperparameters have the same names and meanings as in
`pg_lightning.algorithms`. The environments have `Box` observations, `Discrete` or `Box` actions, and reset within the
step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

Updates = Iterator[tuple[int, list[float]]]


def ppo(
    env: VectorEnv,
    seed: int,
    num_steps: int,
    total_steps: int,
    num_epochs: int,
    num_minibatches: int,
    lr: float,
    gamma: float,
    gae_lambda: float,
    clip_range: float,
    vf_coef: float,
    max_grad_norm: float,
    lr_schedule: str = "constant",
    log_std_init: float = 0.0,
    normalize_obs: bool = False,
    scale_rewards: bool = False,
) -> Updates:
    torch.manual_seed(seed)
    policy, critic = Policy(env, log_std_init), mlp([num_inputs(env), 64, 64, 1], 1.0)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, eps=1e-5, fused=True)
    see = ObservationNormalizer(num_inputs(env)) if normalize_obs else nn.Identity()
    scaler = RewardScaler(gamma, env.num_envs) if scale_rewards else None
    env_steps = 0
    for rollout in rollouts(env, seed, policy, see, num_steps):
        if lr_schedule == "linear":
            optimizer.param_groups[0]["lr"] = lr * max(0.0, 1 - env_steps / total_steps)
        if scaler is not None:
            rollout.rewards = scaler(rollout.rewards, rollout.terminated.maximum(rollout.truncated))
        obs, actions = see(rollout.obs[:-1]).flatten(0, 1), rollout.actions.flatten(0, 1)
        advantages, targets = gae(rollout, critic, see, gamma, gae_lambda)
        advantages = standardize(advantages)
        with torch.no_grad():
            old = policy.log_prob(obs, actions)
        for _ in range(num_epochs):
            for b in torch.randperm(len(obs)).split(len(obs) // num_minibatches):
                ratio, advantage = (policy.log_prob(obs[b], actions[b]) - old[b]).exp(), advantages[b]
                clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                surrogate = torch.minimum(ratio * advantage, clipped * advantage).mean()
                value_loss = (critic(obs[b]).squeeze(-1) - targets[b]).square().mean()
                optimizer.zero_grad()
                (vf_coef * value_loss - surrogate).backward()
                nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
        if isinstance(see, ObservationNormalizer):
            see.update(rollout.obs[:-1].flatten(0, 1))
        env_steps += len(obs)
        yield len(obs), rollout.episodes


def a2c(
    env: VectorEnv,
    seed: int,
    num_steps: int,
    total_steps: int,
    lr: float,
    gamma: float,
    gae_lambda: float,
    vf_coef: float,
    max_grad_norm: float,
) -> Updates:
    torch.manual_seed(seed)
    policy, critic = Policy(env), mlp([num_inputs(env), 64, 64, 1], 1.0)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=lr, alpha=0.99, eps=1e-5)
    see = nn.Identity()
    for rollout in rollouts(env, seed, policy, see, num_steps):
        obs, actions = rollout.obs[:-1].flatten(0, 1), rollout.actions.flatten(0, 1)
        advantages, targets = gae(rollout, critic, see, gamma, gae_lambda)
        policy_loss = -(advantages * policy.log_prob(obs, actions)).mean()
        value_loss = (critic(obs).squeeze(-1) - targets).square().mean()
        optimizer.zero_grad()
        (policy_loss + vf_coef * value_loss).backward()
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        yield len(obs), rollout.episodes


def reinforce(
    env: VectorEnv, seed: int, num_steps: int, total_steps: int, lr: float, gamma: float, max_grad_norm: float
) -> Updates:
    """Every environment plays whole episodes until one ends at or after `num_steps` rows, then waits for the others."""
    torch.manual_seed(seed)
    policy, N = Policy(env), env.num_envs
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr, eps=1e-5, fused=True)
    first = env.reset(seed=seed)[0]
    while True:
        rows: list[tuple[Tensor, ...]] = []
        episodes: list[float] = []
        obs, playing, running = as_rows(first), np.ones(N, dtype=bool), np.zeros(N)
        while len(rows) < num_steps or playing.any():
            with torch.no_grad():
                action = policy.sample(obs)
            after, reward, terminated, truncated, _ = env.step(policy.env_actions(action))
            ended = terminated | truncated
            rows.append((obs, action, *map(torch.from_numpy, (reward.astype(np.float32), ended, playing.copy()))))
            obs = as_rows(after)
            running += reward
            episodes += running[ended & playing].tolist()
            running[ended] = 0.0
            if len(rows) >= num_steps:
                playing &= ~ended
        all_obs, actions, rewards, ends, valid = map(torch.stack, zip(*rows, strict=True))
        returns = sums_of_what_follows(rewards * valid, gamma * (valid & ~ends))
        loss = -(standardize(returns[valid]) * policy.log_prob(all_obs[valid], actions[valid])).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        optimizer.step()
        first = env.reset()[0]
        yield int(valid.sum()), episodes


@dataclass
class Rollout:
    """T rows of N environments; `finals` holds, at `t * N + n`, the last observation of a truncated episode."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    finals: dict[int, Tensor] = field(default_factory=dict)
    episodes: list[float] = field(default_factory=list)


def rollouts(env: VectorEnv, seed: int, policy: Policy, see: nn.Module, num_steps: int) -> Iterator[Rollout]:
    """An endless sequence of rollouts, each with the current policy."""
    T, N = num_steps, env.num_envs
    last, running = as_rows(env.reset(seed=seed)[0]), np.zeros(N)
    shape, dtype = ((), torch.int64) if policy.log_std is None else (policy.log_std.shape, torch.float32)
    while True:
        rollout = Rollout(
            torch.empty(T + 1, N, num_inputs(env)),
            torch.empty(T, N, *shape, dtype=dtype),
            *(torch.empty(T, N) for _ in range(3)),
        )
        rollout.obs[0] = last
        with torch.no_grad():
            for t in range(T):
                rollout.actions[t] = action = policy.sample(see(rollout.obs[t]))
                after, reward, ends, cuts, infos = env.step(policy.env_actions(action))
                rollout.obs[t + 1] = as_rows(after)
                rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = map(
                    torch.from_numpy, (reward, ends, cuts)
                )
                running += reward
                for n in np.flatnonzero(ends | cuts):
                    rollout.episodes.append(float(running[n]))
                    running[n] = 0.0
                    if cuts[n] and not ends[n]:
                        rollout.finals[t * N + int(n)] = torch.from_numpy(infos["final_obs"][n]).float().flatten()
        last = rollout.obs[T]
        yield rollout


@torch.no_grad()
def gae(rollout: Rollout, critic: nn.Module, see: nn.Module, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and the critic's targets, `[T * N]`."""
    values = critic(see(rollout.obs)).squeeze(-1)
    following = values[1:].clone()
    if rollout.finals:
        following.view(-1)[list(rollout.finals)] = critic(see(torch.stack([*rollout.finals.values()]))).squeeze(-1)
    deltas = rollout.rewards + gamma * following * (1 - rollout.terminated) - values[:-1]
    decays = gamma * gae_lambda * (1 - rollout.terminated.maximum(rollout.truncated))
    advantages = sums_of_what_follows(deltas, decays)
    return advantages.flatten(), (advantages + values[:-1]).flatten()


def sums_of_what_follows(terms: Tensor, decays: Tensor) -> Tensor:
    """S_t = x_t + d_t S_{t+1}, `[T, N]`."""
    sums, total = torch.empty_like(terms), torch.zeros_like(terms[0])
    for t in reversed(range(len(terms))):
        sums[t] = total = torch.addcmul(terms[t], decays[t], total)
    return sums


def standardize(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std() + 1e-8)


class Policy(nn.Module):
    """A softmax over `Discrete` actions, or normals with a separate σ over `Box` actions."""

    def __init__(self, env: VectorEnv, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.space: Any = env.single_action_space
        is_discrete = isinstance(self.space, Discrete)
        size = int(self.space.n) if is_discrete else int(np.prod(self.space.shape))
        self.net = mlp([num_inputs(env), 64, 64, size], 0.01)
        self.log_std = None if is_discrete else nn.Parameter(torch.full((size,), log_std_init))

    def sample(self, obs: Tensor) -> Tensor:
        x = self.net(obs)
        if self.log_std is None:
            return (x - torch.empty_like(x).exponential_().log_()).argmax(-1)
        return torch.addcmul(x, self.log_std.exp(), torch.randn_like(x))

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        x = self.net(obs)
        if self.log_std is None:
            return x.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        z = (actions - x) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def env_actions(self, actions: Tensor) -> np.ndarray:
        return actions.numpy() if self.log_std is None else actions.numpy().clip(self.space.low, self.space.high)


class RunningStatistics:
    """Mean and variance of all data seen (Chan et al. 1983), in float64."""

    def __init__(self, *shape: int) -> None:
        self.mean, self.var = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
        self.count = 0

    def update(self, batch: Tensor) -> None:
        batch, n = batch.double(), len(batch)
        total, delta = self.count + n, batch.mean(0) - self.mean
        squares = self.var * self.count + batch.var(0, correction=0) * n + delta.square() * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total

    @property
    def std(self) -> Tensor:
        return (self.var + 1e-8).sqrt()


class ObservationNormalizer(nn.Module):
    """The statistics are updated between rollouts only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.statistics = RunningStatistics(size)
        self.mean, self.std = self.statistics.mean.float(), self.statistics.std.float()

    def forward(self, obs: Tensor) -> Tensor:
        return ((obs - self.mean) / self.std).clamp(-10, 10)

    def update(self, batch: Tensor) -> None:
        self.statistics.update(batch)
        self.mean, self.std = self.statistics.mean.float(), self.statistics.std.float()


class RewardScaler:
    """Divides rewards by the standard deviation of the discounted return so far."""

    def __init__(self, gamma: float, num_envs: int) -> None:
        self.statistics, self.gamma, self.running = RunningStatistics(), gamma, torch.zeros(num_envs)

    def __call__(self, rewards: Tensor, done: Tensor) -> Tensor:
        seen = torch.empty_like(rewards)
        for t in range(len(rewards)):
            seen[t] = self.running = self.gamma * self.running + rewards[t]
            self.running = self.running * (1 - done[t])
        self.statistics.update(seen.flatten())
        return (rewards / self.statistics.std.float()).clamp(-10, 10)


def mlp(sizes: list[int], last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, np.sqrt(2))
        nn.init.zeros_(layers[-2].bias)
    nn.init.orthogonal_(layers[-2].weight, last_gain)
    return nn.Sequential(*layers[:-1])


def num_inputs(env: VectorEnv) -> int:
    return int(np.prod(env.single_observation_space.shape))


def as_rows(obs: np.ndarray) -> Tensor:
    """A copy, float32, `[N, num_inputs]`: the environments reuse their array."""
    return torch.from_numpy(obs.reshape(len(obs), -1).astype(np.float32))
