import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pg_lightning.policies import RewardScaler
from pg_lightning.returns import gae

GOES_ON, TERMINATES, IS_TRUNCATED, BOTH = range(4)


def gae_from_the_definition(rewards, values, next_values, terminated, truncated, valid, gamma, gae_lambda):
    """Sum over k of (γλ)^k δ_{t+k}, up to the end of the episode or of the rollout."""
    T, N = rewards.shape
    advantages = np.zeros((T, N))
    for t, n in np.argwhere(valid):
        for k in range(T - t):
            bootstrap = 0.0 if terminated[t + k, n] else gamma * next_values[t + k, n]
            delta = rewards[t + k, n] + bootstrap - values[t + k, n]
            advantages[t, n] += (gamma * gae_lambda) ** k * delta
            if terminated[t + k, n] or truncated[t + k, n]:
                break
    return advantages


@st.composite
def rollouts(draw):
    """Rewards, values and masks of any autoreset mode, with numbers in the invalid rows that must not leak."""
    T, N = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    ends = draw(hnp.arrays(np.int8, (T, N), elements=st.integers(GOES_ON, BOTH)))
    valid = np.ones((T, N), dtype=bool)
    if draw(st.booleans(), label="next-step autoreset"):
        valid[0] = draw(hnp.arrays(bool, N), label="row 0 is valid")
        for t in range(T):
            ends[t, ~valid[t]] = GOES_ON
            if t + 1 < T:
                valid[t + 1] = ends[t] == GOES_ON
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed of the numbers"))
    rewards, values, next_values = rng.normal(0, draw(st.sampled_from([1.0, 30.0])), (3, T, N)).astype(np.float32)
    terminated = (ends == TERMINATES) | (ends == BOTH)
    truncated = (ends == IS_TRUNCATED) | (ends == BOTH)
    return rewards, values, next_values, terminated, truncated, valid


def run_gae(rollout, gamma, gae_lambda):
    return gae(*map(torch.from_numpy, rollout), gamma, gae_lambda)


factors = st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0)


@given(rollouts(), factors, factors)
def test_gae_is_the_discounted_sum_of_td_errors_within_the_episode(rollout, gamma, gae_lambda):
    expected = gae_from_the_definition(*rollout, gamma, gae_lambda)
    actual = run_gae(rollout, gamma, gae_lambda).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


@given(rollouts(), factors)
def test_lambda_0_is_the_td_error(rollout, gamma):
    rewards, values, next_values, terminated, _, valid = rollout
    td_error = np.where(terminated, rewards, rewards + np.float32(gamma) * next_values) - values
    np.testing.assert_allclose(run_gae(rollout, gamma, 0.0)[valid], td_error[valid], rtol=1e-5, atol=1e-4)


@given(rollouts(), factors)
def test_lambda_1_of_episodes_that_terminate_is_the_monte_carlo_return_minus_the_value(rollout, gamma):
    rewards, values, _, terminated, truncated, valid = rollout
    next_values = np.roll(values, -1, axis=0)
    terminated, truncated = terminated | truncated, np.zeros_like(truncated)
    terminated[-1] = valid[-1]
    expected, to_go = np.zeros(rewards.shape), np.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        to_go = np.where(valid[t], rewards[t] + gamma * to_go * ~terminated[t], 0.0)
        expected[t] = to_go - values[t]
    actual = run_gae((rewards, values, next_values, terminated, truncated, valid), gamma, 1.0)
    np.testing.assert_allclose(actual[valid], expected[valid], rtol=1e-4, atol=1e-3)


@given(rollouts(), factors, factors)
def test_invalid_rows_get_advantage_0(rollout, gamma, gae_lambda):
    assert (run_gae(rollout, gamma, gae_lambda).numpy()[~rollout[-1]] == 0).all()


def one_row(end):
    ended = {"terminated": [[end in (TERMINATES, BOTH)]], "truncated": [[end in (IS_TRUNCATED, BOTH)]]}
    return {name: torch.tensor(flag) for name, flag in ended.items()} | {"valid": torch.ones(1, 1, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("end", "advantage"), [(GOES_ON, 1 + 9 - 4), (TERMINATES, 1 - 4), (IS_TRUNCATED, 1 + 9 - 4), (BOTH, 1 - 4)]
)
def test_only_a_termination_stops_the_bootstrap(end, advantage):
    rewards, values, next_values = torch.tensor([1.0, 4.0, 18.0]).view(3, 1, 1)
    assert gae(rewards, values, next_values, **one_row(end), gamma=0.5, gae_lambda=0.9).item() == advantage


def test_the_clip_of_scaled_rewards_does_not_touch_the_bootstrapped_value():
    scaler = RewardScaler(gamma=0.5)
    rewards, values, next_values = torch.tensor([50.0, 700.0, 1000.0]).view(3, 1, 1)
    advantage = gae(scaler(rewards), values, next_values, **one_row(IS_TRUNCATED), gamma=0.5, gae_lambda=0.9)
    assert advantage.item() == scaler.clip + 0.5 * 1000 - 700


@pytest.mark.parametrize("wrong", range(6))
def test_shapes_that_differ_are_refused(wrong):
    tensors = [torch.zeros(4, 2)] * 3 + [torch.zeros(4, 2, dtype=torch.bool)] * 3
    tensors[wrong] = tensors[wrong].flatten()
    with pytest.raises(ValueError, match="share one shape"):
        gae(*tensors, 0.99, 0.95)
