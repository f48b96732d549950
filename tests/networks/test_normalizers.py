import numpy as np
import pytest
import torch
from gymnasium import spaces

from pg_lightning.networks import ActorCritic, ObservationNormalizer, RewardScaler, RunningMeanVar


def batches_of(*sizes, scale=(1.0, 20.0, 0.1), shift=(0.0, 5.0, -300.0)):
    """Batches whose three dimensions have nothing in common."""
    return [torch.randn(size, 3) * torch.tensor(scale) + torch.tensor(shift) + i for i, size in enumerate(sizes)]


def assert_statistics_of(statistics, data):
    data = np.asarray(data, dtype=np.float64)
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics.var, data.var(0), rtol=1e-7)
    assert statistics.count == len(data)


def test_statistics_are_those_of_all_data_per_dimension():
    statistics, batches = RunningMeanVar((3,)), batches_of(7, 1, 40, 2)
    for i, batch in enumerate(batches):
        statistics.update(batch)
        assert_statistics_of(statistics, torch.cat(batches[: i + 1]))


def test_statistics_have_the_shape_of_an_observation():
    statistics, batch = RunningMeanVar((2, 3)), torch.randn(9, 2, 3)
    statistics.update(batch)
    assert_statistics_of(statistics, batch)


def test_statistics_survive_an_offset_that_float32_does_not():
    statistics = RunningMeanVar((3,))
    batches = batches_of(*[50] * 100, scale=(0.1, 0.1, 0.1), shift=(1e4, -1e5, 1e3))
    for batch in batches:
        statistics.update(batch)
    assert_statistics_of(statistics, torch.cat(batches))


def test_statistics_stay_exact_in_a_network_of_half_precision():
    statistics, batches = RunningMeanVar((3,)).to(torch.bfloat16), batches_of(*[64] * 20)
    for batch in batches:
        statistics.update(batch)
    assert_statistics_of(statistics, torch.cat(batches))


def test_an_empty_batch_changes_nothing():
    statistics = RunningMeanVar((3,))
    statistics.update(torch.zeros(0, 3))
    assert (statistics.mean.tolist(), statistics.var.tolist(), statistics.count.item()) == ([0.0] * 3, [1.0] * 3, 0.0)
    (batch,) = batches_of(5)
    statistics.update(batch)
    statistics.update(torch.zeros(0, 3))
    assert_statistics_of(statistics, batch)


def normalizer_of(batch):
    normalizer = ObservationNormalizer((3,))
    normalizer.statistics.update(batch)
    return normalizer


def test_observations_are_shifted_and_scaled_per_dimension():
    (batch,) = batches_of(100)
    scaled = normalizer_of(batch)(batch)
    np.testing.assert_allclose(scaled, (batch - batch.mean(0)) / batch.std(0, correction=0), atol=1e-3)


def test_scaled_observations_are_clipped():
    (batch,) = batches_of(100)
    normalizer = normalizer_of(batch)
    far = torch.full((1, 3), 1e6)
    assert normalizer(torch.cat([far, -far])).tolist() == [[10.0] * 3, [-10.0] * 3]


def test_normalising_observations_does_not_move_the_statistics():
    first, second = batches_of(10, 10)
    normalizer = normalizer_of(first)
    normalizer(second)
    assert_statistics_of(normalizer.statistics, first)


def test_a_constant_dimension_is_not_divided_by_0():
    assert normalizer_of(torch.full((4, 3), 2.0))(torch.full((1, 3), 2.0)).tolist() == [[0.0] * 3]


def reward_rollout(T, N, seed):
    rng = np.random.default_rng(seed)
    done = rng.random((T, N)) < 0.2
    valid = np.ones((T, N), dtype=bool)
    valid[1:] = ~done[:-1]
    done &= valid
    rewards = rng.normal(1, 5, (T, N)) * (1 + np.arange(N))
    return tuple(torch.from_numpy(x) for x in (rewards.astype(np.float32), done, valid))


def discounted_returns_by_hand(rollouts, gamma):
    """R ← γ R + r in each environment, from the start of each episode, over all rollouts in turn."""
    seen = []
    for n in range(rollouts[0][0].shape[1]):
        running = 0.0
        for rewards, done, valid in rollouts:
            for reward, end, ok in zip(rewards[:, n].tolist(), done[:, n], valid[:, n], strict=True):
                if ok:
                    running = gamma * running + reward
                    seen.append(running)
                if end:
                    running = 0.0
    return np.array(seen)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return_over_all_rollouts(gamma):
    scaler = RewardScaler(gamma)
    rollouts = [reward_rollout(T=20, N=3, seed=seed) for seed in range(3)]
    assert not all(valid.all() for _, _, valid in rollouts)
    for i, (rewards, done, valid) in enumerate(rollouts):
        scaler.update(rewards, done, valid)
        scale = discounted_returns_by_hand(rollouts[: i + 1], gamma).std()
        np.testing.assert_allclose(scaler(rewards), rewards / scale, rtol=1e-4)


def test_the_mean_reward_is_not_subtracted():
    scaler = RewardScaler(0.0)
    no = torch.zeros(2, 1, dtype=torch.bool)
    scaler.update(torch.tensor([[10.0], [14.0]]), no, ~no)
    torch.testing.assert_close(scaler(torch.tensor([[10.0], [14.0]])), torch.tensor([[5.0], [7.0]]))


def test_scaled_rewards_are_clipped():
    assert RewardScaler(0.9)(torch.tensor([[1e6, -1e6]])).tolist() == [[10.0, -10.0]]


def test_scaling_rewards_does_not_move_the_statistics():
    scaler = RewardScaler(0.9)
    rewards, done, valid = reward_rollout(20, 3, seed=0)
    scaler.update(rewards, done, valid)
    before = {name: value.clone() for name, value in scaler.state_dict().items()}
    scaler(100 * rewards)
    assert all(torch.equal(value, before[name]) for name, value in scaler.state_dict().items())


def test_a_reward_scaler_is_restored_from_its_state_dict():
    scaler, restored = RewardScaler(0.9), RewardScaler(0.9)
    rewards, done, valid = reward_rollout(20, 3, seed=0)
    scaler.update(rewards, done, valid)
    restored.load_state_dict(scaler.state_dict())
    assert torch.equal(restored(rewards), scaler(rewards))
    assert not torch.equal(RewardScaler(0.9)(rewards), scaler(rewards))


def test_observation_statistics_are_part_of_the_networks_state_dict():
    space = spaces.Box(-1.0, 1.0, (3,))
    networks = [ActorCritic(space, spaces.Discrete(2), [4], "tanh", False, 0.0, True) for _ in range(2)]
    (batch,) = batches_of(10)
    networks[0].normalizer.statistics.update(batch)
    networks[1].load_state_dict(networks[0].state_dict())
    assert torch.equal(networks[1].v(batch), networks[0].v(batch))
    assert_statistics_of(networks[1].normalizer.statistics, batch)
