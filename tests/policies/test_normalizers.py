import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from pg_lightning.algorithms import PPO
from pg_lightning.data import RolloutDataModule
from pg_lightning.policies import ActorCritic, ObservationNormalizer, RewardScaler, RunningMeanVar, ValueNormalizer
from pg_lightning.statistics import moments


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
        scaler.statistics.update(scaler.follow(rewards, done, valid))
        scale = discounted_returns_by_hand(rollouts[: i + 1], gamma).std()
        np.testing.assert_allclose(scaler(rewards), rewards / scale, rtol=1e-4)


def test_the_mean_reward_is_not_subtracted():
    scaler = RewardScaler(0.0)
    no = torch.zeros(2, 1, dtype=torch.bool)
    scaler.statistics.update(scaler.follow(torch.tensor([[10.0], [14.0]]), no, ~no))
    torch.testing.assert_close(scaler(torch.tensor([[10.0], [14.0]])), torch.tensor([[5.0], [7.0]]))


def test_scaled_rewards_are_clipped():
    assert RewardScaler(0.9)(torch.tensor([[1e6, -1e6]])).tolist() == [[10.0, -10.0]]


def test_scaling_rewards_does_not_move_the_statistics():
    scaler = RewardScaler(0.9)
    rewards, done, valid = reward_rollout(20, 3, seed=0)
    scaler.statistics.update(scaler.follow(rewards, done, valid))
    before = {name: value.clone() for name, value in scaler.state_dict().items()}
    scaler(100 * rewards)
    assert all(torch.equal(value, before[name]) for name, value in scaler.state_dict().items())


def test_a_reward_scaler_is_restored_from_its_state_dict():
    scaler, restored = RewardScaler(0.9), RewardScaler(0.9)
    rewards, done, valid = reward_rollout(20, 3, seed=0)
    scaler.statistics.update(scaler.follow(rewards, done, valid))
    restored.load_state_dict(scaler.state_dict())
    assert torch.equal(restored(rewards), scaler(rewards))
    assert not torch.equal(RewardScaler(0.9)(rewards), scaler(rewards))


def test_observation_statistics_are_part_of_the_networks_state_dict():
    space = spaces.Box(-1.0, 1.0, (3,))
    networks = [ActorCritic(space, spaces.Discrete(2), hidden_sizes=[4], normalize_obs=True) for _ in range(2)]
    (batch,) = batches_of(10)
    networks[0].normalizer.statistics.update(batch)
    networks[1].load_state_dict(networks[0].state_dict())
    assert torch.equal(networks[1].v(batch), networks[0].v(batch))
    assert_statistics_of(networks[1].normalizer.statistics, batch)


# PopArt.


def returns_of(seed, size=50, mean=300.0, std=40.0):
    return mean + std * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_moving_the_statistics_of_values_changes_no_value():
    normalizer, output = ValueNormalizer(), nn.Linear(6, 1).double()
    features = torch.randn(20, 6).double()
    for seed, (mean, std) in enumerate([(300.0, 40.0), (-5.0, 0.1), (0.0, 1e3)]):
        before = normalizer.restore(output(features))
        weight = output.weight.clone()
        normalizer.update(moments(returns_of(seed, mean=mean, std=std)), output)
        assert not torch.equal(output.weight, weight)
        torch.testing.assert_close(normalizer.restore(output(features)), before, rtol=1e-6, atol=1e-6)


def test_normalising_values_and_restoring_them_is_the_identity():
    normalizer = ValueNormalizer()
    normalizer.update(moments(returns_of(0)), nn.Linear(6, 1))
    values = torch.tensor([-1e3, -1.0, 0.0, 1.0, 250.0, 1e3])
    torch.testing.assert_close(normalizer.restore(normalizer(values)), values, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(normalizer(normalizer.restore(values)), values, rtol=1e-5, atol=1e-3)


def test_the_targets_that_the_critic_learns_have_mean_0_and_variance_1_over_all_seen():
    normalizer, seen = ValueNormalizer(), []
    for seed, mean in enumerate((300.0, 320.0, -100.0)):
        seen.append(returns_of(seed, mean=mean))
        normalizer.update(moments(seen[-1]), nn.Linear(6, 1))
        targets = normalizer(torch.cat(seen).double())
        assert float(targets.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(targets.std(correction=0)) == pytest.approx(1.0, abs=1e-6)


def test_without_targets_yet_values_are_as_the_network_says():
    values = torch.randn(5)
    torch.testing.assert_close(ValueNormalizer().restore(values), values)


class Targets(PPO):
    """Keeps V before and after the statistics move, and the samples it was to learn from."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def targets(self, rollout, *args, **kwargs):
        with torch.no_grad():
            before = self.network.values(rollout)[0]
        samples = super().targets(rollout, *args, **kwargs)
        with torch.no_grad():
            after, (_, unit) = self.network.values(rollout)[0], self.network(samples)
        self.seen.append((before[rollout.valid], after[rollout.valid], unit, samples))
        return samples


ENDLESS = "pg_lightning.envs.tasks.toy:pg_lightning/Endless-v0"


@pytest.mark.parametrize("model", [{}, {"shared_torso": True}, {"memory": "gru", "num_minibatches": 2}], ids=str)
def test_targets_are_in_the_unit_of_the_critic_and_values_in_that_of_the_rewards(fit, model):
    options = {"lr": 1e-2, "normalize_values": True, "normalize_advantage": False, **model}
    data = {"env_kwargs": {"first_reward": 500.0}, "num_steps": 20, "total_steps": 400, "eval_episodes": 1}
    module = fit(ENDLESS, data, algorithm=Targets, **options)
    normalizer, seen = module.network.value_normalizer, []
    for before, after, unit, samples in module.seen:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)  # float32, next to returns of 500
        torch.testing.assert_close(samples.old_values, unit, rtol=1e-4, atol=1e-4)
        advantages = samples.returns - samples.old_values
        ratio = samples.advantages / advantages
        std = ratio.median()
        torch.testing.assert_close(samples.advantages, std * advantages, rtol=1e-3, atol=std * 1e-3)
        seen.append(float(std))
    assert module.network.value_normalizer.statistics.count == module.env_steps
    assert seen[-1] == pytest.approx(float(normalizer.statistics.var.sqrt()), rel=1e-3)
    assert seen[0] > 50


def test_a_critic_of_large_returns_is_learned(fit):
    """V is 10 but −1881 at the first step: Adam goes the 20 that 200 steps with lr 0.2, falling to 0, add up to."""
    data = {"env_kwargs": {"first_reward": -1890.0}, "num_envs": 8, "num_steps": 20, "total_steps": 8000}
    data |= {"eval_every_steps": 8000, "eval_episodes": 1}

    def error(normalize_values):
        model = {"gamma": 0.9, "lr": 0.2, "lr_schedule": "linear", "hidden_sizes": [], "num_minibatches": 1}
        module = fit(ENDLESS, data, normalize_values=normalize_values, **model)
        with torch.no_grad():
            values = module.network.v(torch.eye(2))
        return (values - torch.tensor([-1881.0, 10.0])).abs().max()

    assert error(True) < 20
    assert error(False) > 1000


def test_evaluation_leaves_the_statistics_of_values_alone_and_a_checkpoint_keeps_them(fit, quiet_trainer, tmp_path):
    data = {"env_kwargs": {"first_reward": 500.0}, "num_steps": 20, "total_steps": 400, "eval_episodes": 3}
    module = fit(ENDLESS, data, normalize_values=True)
    count = module.network.value_normalizer.statistics.count.item()
    rollouts = RolloutDataModule(ENDLESS, **data)
    trainer = quiet_trainer()
    trainer.validate(module, datamodule=rollouts, verbose=False)
    assert module.network.value_normalizer.statistics.count.item() == count == module.env_steps
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    options = {"observation_space": rollouts.observation_space, "action_space": rollouts.action_space}
    fresh = PPO(hidden_sizes=[32], normalize_values=True, **options)
    quiet_trainer().validate(
        fresh, datamodule=rollouts, ckpt_path=tmp_path / "kept.ckpt", weights_only=False, verbose=False
    )
    assert fresh.network.value_normalizer.statistics.mean > 10
    assert torch.equal(fresh.network.v(torch.eye(2)), module.network.v(torch.eye(2)))


@pytest.mark.parametrize("value", [0.0, 5.0, -500.0])
def test_what_does_not_vary_has_no_scale(value):
    """Else the first reward of another size, or the distance to the mean, would count in units of nothing."""
    scaler, normalizer, head = RewardScaler(0.9), ValueNormalizer(), nn.Linear(3, 1)
    ends = torch.ones(4, 2, dtype=torch.bool)
    scaler.statistics.update(scaler.follow(torch.full((4, 2), value), ends, ends))
    assert scaler(torch.tensor([3.0])).item() == 3.0
    normalizer.update(moments(torch.full((8,), value)), head)
    assert normalizer(torch.tensor([value + 2.0])).item() == 2.0
