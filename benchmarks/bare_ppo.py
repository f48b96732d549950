"""PPO as a plain PyTorch loop: the update and the rollouts of `pg_lightning`, with neither Lightning nor a log."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn


def mlp(sizes: list[int], last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, np.sqrt(2))
        nn.init.zeros_(layers[-2].bias)
    nn.init.orthogonal_(layers[-2].weight, last_gain)
    return nn.Sequential(*layers[:-1])


def train(
    env: VectorEnv,
    seed: int,
    num_steps: int = 128,
    num_epochs: int = 4,
    batch_size: int = 256,
    lr: float = 3e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_range: float = 0.2,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
) -> Iterator[list[float]]:
    """Yields the returns of the episodes that ended in each rollout, after the update with it; without end.

    The environments have `Box` observations and `Discrete` actions, and reset within the step.
    """
    T, N = num_steps, env.num_envs
    torch.manual_seed(seed)
    num_inputs = int(np.prod(env.single_observation_space.shape))
    actor, critic = mlp([num_inputs, 64, 64, int(env.single_action_space.n)], 0.01), mlp([num_inputs, 64, 64, 1], 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, eps=1e-5, fused=True)
    obs, actions = torch.zeros(T + 1, N, num_inputs), torch.zeros(T, N, dtype=torch.int64)
    rewards, terminated, truncated = torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N)
    obs[0] = torch.from_numpy(env.reset(seed=seed)[0].reshape(N, -1))
    running = np.zeros(N)
    while True:
        episodes: list[float] = []
        finals: dict[int, Tensor] = {}
        with torch.no_grad():
            for t in range(T):
                logits = actor(obs[t])
                actions[t] = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)
                after, reward, ends, cuts, infos = env.step(actions[t].numpy())
                obs[t + 1] = torch.from_numpy(after.reshape(N, -1))
                rewards[t], terminated[t], truncated[t] = map(torch.from_numpy, (reward, ends, cuts))
                running += reward
                for n in np.flatnonzero(ends | cuts):
                    episodes.append(float(running[n]))
                    running[n] = 0.0
                    if cuts[n] and not ends[n]:
                        finals[t * N + int(n)] = torch.from_numpy(infos["final_obs"][n]).float().flatten()
            values = critic(obs).squeeze(-1)
            following = values[1:].clone()
            if finals:
                following.view(-1)[list(finals)] = critic(torch.stack([*finals.values()])).squeeze(-1)
            deltas = rewards + gamma * following * (1 - terminated) - values[:-1]
            decays = gamma * gae_lambda * (1 - torch.maximum(terminated, truncated))
            advantages, advantage = torch.zeros(T, N), torch.zeros(N)
            for t in reversed(range(T)):
                advantages[t] = advantage = deltas[t] + decays[t] * advantage
            s, a, adv = obs[:-1].flatten(0, 1), actions.flatten(), advantages.flatten()
            targets, adv = adv + values[:-1].flatten(), (adv - adv.mean()) / (adv.std() + 1e-8)
            old = actor(s).log_softmax(-1).gather(-1, a[:, None]).squeeze(-1)
        for _ in range(num_epochs):
            for b in torch.randperm(T * N).split(batch_size):
                log_prob = actor(s[b]).log_softmax(-1).gather(-1, a[b, None]).squeeze(-1)
                ratio = (log_prob - old[b]).exp()
                surrogate = torch.minimum(ratio * adv[b], ratio.clamp(1 - clip_range, 1 + clip_range) * adv[b]).mean()
                value_loss = (critic(s[b]).squeeze(-1) - targets[b]).square().mean()
                optimizer.zero_grad()
                (vf_coef * value_loss - surrogate).backward()
                nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
        obs[0] = obs[T].clone()
        yield episodes
