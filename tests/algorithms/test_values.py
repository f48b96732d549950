"""What the critic learns of time limits and ends, and that advantages are exact in every autoreset mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pg_lightning.algorithms import PPO
from pg_lightning.learning.actor import PolicyActor
from pg_lightning.rollout import Batch, Rollout

ENDLESS = "pg_lightning.envs.tasks.toy:pg_lightning/Endless-v0"
MODES = ["same_step", "next_step", "disabled"]
GAMMA = 0.9
FOREVER = 1 / (1 - GAMMA)


def values(module: Any) -> Tensor:
    """V of every observation of `Endless`, in units of the reward."""
    num_obs = module.network.critic_head.in_features
    with torch.no_grad():
        v = module.network.v(torch.eye(num_obs))
    return v if module.reward_scaler is None else v * module.reward_scaler.statistics.var.sqrt().float()


@pytest.fixture
def learn(fit: Any) -> Any:
    """V of every observation after a training that is long enough for it; without hidden layers V is a table."""

    def run(mode: str, env_kwargs: dict[str, Any], **model: Any) -> Tensor:
        data = {"env_kwargs": env_kwargs, "num_envs": 8, "num_steps": 20, "total_steps": 8000, "autoreset_mode": mode}
        model = {"gamma": GAMMA, "lr": 0.2, "lr_schedule": "linear", "hidden_sizes": [], "num_minibatches": 1, **model}
        return values(fit(ENDLESS, data | {"eval_every_steps": 8000, "eval_episodes": 1}, **model))

    return run


@pytest.mark.parametrize("mode", MODES)
def test_a_time_limit_does_not_lower_the_value_of_an_endless_task(learn: Any, mode: str) -> None:
    torch.testing.assert_close(learn(mode, {}), torch.full((2,), FOREVER), rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_what_follows_a_time_limit_is_the_final_observation_not_the_next_episode(learn: Any, mode: str) -> None:
    """The first step of an episode costs 9, so V(first) = V(later) − 10: far from what would have gone on."""
    v = learn(mode, {"first_reward": -9.0})
    torch.testing.assert_close(v, torch.tensor([FOREVER - 10, FOREVER]), rtol=0, atol=0.2)


@pytest.mark.parametrize("max_episode_steps", [6, 1000])
@pytest.mark.parametrize("mode", MODES)
def test_value_falls_to_one_before_a_true_end_even_at_the_time_limit(
    learn: Any, mode: str, max_episode_steps: int
) -> None:
    v = learn(mode, {"terminate_after": 6, "max_episode_steps": max_episode_steps})
    expected = torch.tensor([(1 - GAMMA ** (6 - t)) / (1 - GAMMA) for t in range(6)])
    torch.testing.assert_close(v[:6], expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_scaled_rewards_and_values_are_in_one_unit_and_only_rewards_are_clipped(learn: Any, mode: str) -> None:
    """V = 50 is about 20 in units of the scaled reward, beyond the ±10 to which rewards are clipped."""
    v = learn(mode, {}, gamma=0.98, scale_rewards=True, lr=0.5)
    torch.testing.assert_close(v, torch.full((2,), 50.0), rtol=0.05, atol=0)


class ByMode(PolicyActor):
    """Does not explore."""

    def act(self, obs: Tensor, generator: torch.Generator, deterministic: bool = False, *args: Any) -> Any:
        return super().act(obs, generator, True, *args)


class Still(PPO):
    """Acts by its mode and never learns; keeps what it would have learned from."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[tuple[Rollout, Batch]] = []
        self.actor = ByMode(self.network, self.progress)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        self.seen.append((rollout, self.targets(rollout, self.gae_lambda, self.normalize_advantage)))
        return {}


@pytest.fixture
def watch(fit: Any) -> Any:
    """The first rollout of CartPole under a time limit of 9, where some episodes fall and some are cut."""

    def run(mode: str, **model: Any) -> tuple[Still, Rollout, Batch]:
        data = {"env_kwargs": {"max_episode_steps": 9}, "num_steps": 64, "autoreset_mode": mode, "eval_episodes": 1}
        torch.manual_seed(3)
        module = fit("CartPole-v1", data, algorithm=Still, gamma=GAMMA, normalize_advantage=False, **model)
        rollout, samples = module.seen[0]
        assert (rollout.truncated & ~rollout.terminated).any()
        assert (rollout.truncated & rollout.terminated).any()
        assert (~rollout.truncated & rollout.terminated).any()
        return module, rollout, samples

    return run


def advantages_by_definition(module: Still, rollout: Rollout) -> list[float]:
    """A_t = Σ_k (γλ)^(k−t) δ_k over the rows k >= t of the same episode, for every valid row."""
    T, N = rollout.rewards.shape
    final = dict(zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True))
    with torch.no_grad():
        v = [[float(module.network.v(o)[n]) for n in range(N)] for o in rollout.obs]
        v_final = {row: float(module.network.v(o[None])) for row, o in final.items()}
    advantages = torch.zeros(T, N, dtype=torch.float64)
    for n in range(N):
        for t in range(T):
            for k in range(t, T):
                bootstrap = 0.0 if rollout.terminated[k, n] else v_final.get(k * N + n, v[k + 1][n])
                delta = float(rollout.rewards[k, n]) + GAMMA * bootstrap - v[k][n]
                advantages[t, n] += (GAMMA * module.gae_lambda) ** (k - t) * delta
                if rollout.terminated[k, n] or rollout.truncated[k, n]:
                    break
    return advantages[rollout.valid].tolist()


@pytest.mark.parametrize("scale_rewards", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_advantages_are_the_sum_over_what_was_left_of_their_episode(watch: Any, mode: str, scale_rewards: bool) -> None:
    module, rollout, samples = watch(mode, scale_rewards=scale_rewards)
    assert samples.advantages.tolist() == pytest.approx(advantages_by_definition(module, rollout), abs=1e-4)


def finished(rollout: Rollout, samples: Batch) -> dict[tuple[float, ...], list[float]]:
    """Action, value, advantage and return at every observation of an episode that ended in the rollout."""
    ended = rollout.terminated | rollout.truncated
    whole = ended.flip(0).cummax(0).values.flip(0)[rollout.valid]
    columns = (samples.actions, samples.old_values, samples.advantages, samples.returns)
    return dict(zip(map(tuple, samples.obs[whole].tolist()), torch.stack(columns, 1)[whole].tolist(), strict=True))


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_advantages_do_not_depend_on_the_autoreset_mode(watch: Any, mode: str) -> None:
    reference, found = (finished(*watch(m)[1:]) for m in ("same_step", mode))
    common = reference.keys() & found.keys()
    assert len(common) > 0.8 * len(reference)
    for obs in common:
        assert found[obs] == pytest.approx(reference[obs], abs=1e-5)
