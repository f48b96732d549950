"""Estimators of the policy gradient on the same episodes, and the critic that some of them need.

All of them estimate one vector, with the sum over the steps of an episode and the mean over episodes:

    g = E[ Σ_t Ψ_t ∇log π(a_t|s_t) ],   Ψ_t = Q(s_t, a_t),   the "γ-just" form of Schulman et al. 2016, §3

Returns are discounted from the current step, without a factor γ^t, as in the updates of all algorithms here. At a time
limit, V of the last observation replaces the rest of the return, for all estimators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.losses import policy_gradient_loss, value_loss
from pg_lightning.policies import ActorCritic, ValueNormalizer
from pg_lightning.returns import episode_index, gae, mean_of_other_episodes, reward_to_go
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.statistics import explained_variance

EPISODE_RETURN, REWARD_TO_GO, MEAN_BASELINE = "episode return", "reward-to-go", "mean baseline"
LEARNED_BASELINE, TD = "learned baseline", "TD"  # GAE with λ = 1 and λ = 0
UNBIASED = (REWARD_TO_GO, MEAN_BASELINE, LEARNED_BASELINE)
CRITIC_BATCHES = 16  # number of batches to which a critic is fitted
CRITIC_STEPS, CRITIC_ROWS, CRITIC_LR = 3000, 256, 1e-3  # of Adam


def give_critic(network: ActorCritic) -> None:
    """Adds a new critic, which shares nothing with the actor and starts with a copy of its features.

    Raises:
        UserError: if the policy is not the built-in `ActorCritic`.
    """
    if not isinstance(network, ActorCritic):
        raise UserError(
            "model.policy: only the built-in network can get a new critic; give ckpt_path, and fit_critic false"
        )
    network.critic_torso = deepcopy(network.actor_torso)
    network.critic_memory = deepcopy(network.actor_memory)
    weight = network.actor_head.linear.weight
    features: Any = network.actor_memory or network.actor_torso
    network.critic_head = nn.Linear(features.out_features, 1, dtype=weight.dtype, device=weight.device)
    network.value_normalizer = ValueNormalizer().to(weight.device)


def train_critic(model: PolicyGradientModule, rollouts: Sequence[Rollout]) -> None:
    """Regression of V on the returns of episodes.

    They must not be the episodes of the gradients: the baseline would know the results of the actions.
    """
    network = model.network
    optimizer = torch.optim.Adam(network.parameter_groups()[1], lr=CRITIC_LR)
    steps = 0
    while steps < CRITIC_STEPS:
        for rollout in rollouts:
            samples = model.targets(rollout, gae_lambda=1.0, normalize_advantage=False)
            for batch in samples.minibatches(math.ceil(len(samples) / CRITIC_ROWS)):
                optimizer.zero_grad()
                value_loss(network(batch)[1], batch.returns).backward()
                optimizer.step()
                steps += 1


def gradients_on(
    model: PolicyGradientModule, rollouts: Iterable[Rollout], gae_lambdas: Sequence[float]
) -> tuple[dict[str, Tensor], float]:
    """The gradients `[M, P]` of every estimator on M batches, and the explained variance of V."""
    gradients: dict[str, list[Tensor]] = {}
    predicted = []
    for rollout in rollouts:
        with torch.no_grad(), model.trainer.precision_plugin.forward_context():
            values, next_values = model.network.values(rollout)
        weights = weights_of(rollout, values, next_values, model.gamma, gae_lambdas)
        for name, gradient in gradients_of(model, rollout, weights).items():
            gradients.setdefault(name, []).append(gradient)
        predicted.append(torch.stack([values, weights[REWARD_TO_GO]])[:, rollout.valid])
    explained = explained_variance(*torch.cat(predicted, 1)).nan_to_num().item()
    return {name: torch.stack(of_batches) for name, of_batches in gradients.items()}, explained


def weights_of(
    rollout: Rollout, values: Tensor, next_values: Tensor, gamma: float, gae_lambdas: Sequence[float]
) -> dict[str, Tensor]:
    """Ψ `[T, N]` of every estimator, by its name, from the noisiest to the one that relies most on the critic.

    - episode return: Σ_k γ^|k−t| r_k over all steps k of the episode. Rewards before t, which the action could
      not change, have mean 0 times ∇log π. Without discount it is the return of the whole episode. (The return G_0
      discounted from the first step is different: it has the mean of γ^t G_t.)
    - reward-to-go: G_t.
    - mean baseline: G_t minus the mean of G over the other episodes of the batch.
    - learned baseline: G_t − V(s_t), which is GAE(1).
    - GAE(λ) (Schulman et al. 2016, eq. 16): for λ < 1 biased by the errors of V.
    - TD: r_t + γ V(s_{t+1}) − V(s_t), which is GAE(0).

    Args:
        rollout: whole episodes.
        values: `[T, N]` V(s_t).
        next_values: `[T, N]` V of the next state.
        gamma: γ.
        gae_lambdas: λ of GAE, in addition to 0 and 1.
    """
    rewards, valid, starts = rollout.rewards * rollout.valid, rollout.valid, rollout.starts
    cut = rollout.truncated & ~rollout.terminated & valid
    returns = reward_to_go(rewards + gamma * next_values * cut, rollout.done, valid, gamma)
    # Backwards in time, an episode ends where it starts.
    earned = reward_to_go(rewards.flip(0), starts.flip(0), valid.flip(0), gamma).flip(0) - rewards
    mean = torch.zeros_like(returns)
    mean[valid] = mean_of_other_episodes(returns[valid], episode_index(rollout.timesteps, valid))
    arguments = (rewards, values, next_values, rollout.terminated, rollout.truncated, valid, gamma)
    between = {f"GAE({x:g})": gae(*arguments, x) for x in sorted({*gae_lambdas} - {0.0, 1.0}, reverse=True)}
    return {
        EPISODE_RETURN: earned + returns,
        REWARD_TO_GO: returns,
        MEAN_BASELINE: returns - mean,
        LEARNED_BASELINE: gae(*arguments, 1.0),
        **between,
        TD: gae(*arguments, 0.0),
    }


def gradients_of(model: Any, rollout: Rollout, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """1/K Σ_episodes Σ_t Ψ_t ∇log π(a_t|s_t) `[P]`, with respect to the actor's P parameters, for Ψ `[T, N]`."""
    parameters = model.network.parameter_groups()[0]
    samples = Batch.of(rollout, *3 * (torch.zeros_like(rollout.rewards),))
    with model.trainer.precision_plugin.forward_context():
        log_probs = model.network.policy(samples).log_prob(samples.actions)
    rows_per_episode = len(samples) / int(rollout.starts.sum())
    gradients = {}
    for name, psi in weights.items():
        loss = rows_per_episode * policy_gradient_loss(log_probs, psi[rollout.valid])
        parts = torch.autograd.grad(-loss, parameters, retain_graph=True, materialize_grads=True)
        gradients[name] = torch.cat([part.flatten() for part in parts])
    return gradients
