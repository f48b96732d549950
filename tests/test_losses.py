import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pg_lightning.losses import approximate_kl, clipped_surrogate_loss, clipped_value_loss, value_loss


def test_clipped_surrogate_worked_by_hand():
    ratio, advantages = torch.tensor([1.5, 0.5, 1.1, 0.5]), torch.tensor([1.0, -1.0, 2.0, 4.0])
    # min(1.5, 1.2), min(-0.5, -0.8), 1.1 * 2, min(2, 3.2)
    expected = -(1.2 - 0.8 + 2.2 + 2.0) / 4
    assert clipped_surrogate_loss(ratio.log(), advantages, 0.2).item() == pytest.approx(expected)


def test_clipped_surrogate_agrees_with_numpy():
    rng = np.random.default_rng(0)
    log_ratio, advantages = rng.normal(0, 0.5, 200), rng.normal(0, 2, 200)
    ratio = np.exp(log_ratio)
    pessimistic = np.where(advantages > 0, np.minimum(ratio, 1.3), np.maximum(ratio, 0.7)) * advantages
    actual = clipped_surrogate_loss(torch.from_numpy(log_ratio), torch.from_numpy(advantages), 0.3)
    assert actual.item() == pytest.approx(-pessimistic.mean())


@pytest.mark.parametrize(
    ("ratio", "advantage", "active"),
    [(1.3, 1.0, True), (0.7, -1.0, True), (1.3, -1.0, False), (0.7, 1.0, False), (1.1, 1.0, False), (1.0, -1.0, False)],
)
def test_the_surrogate_has_no_gradient_exactly_where_its_clip_is_active(ratio, advantage, active):
    log_ratio = torch.tensor([ratio]).log().requires_grad_()
    clipped_surrogate_loss(log_ratio, torch.tensor([advantage]), 0.2).backward()
    expected = 0.0 if active else -ratio * advantage
    assert log_ratio.grad.item() == pytest.approx(expected)


def test_a_ratio_that_overflows_has_no_gradient_where_the_clip_is_active():
    log_ratio = torch.tensor([100.0, 0.0], requires_grad=True)
    clipped_surrogate_loss(log_ratio, torch.ones(2), 0.2).backward()
    assert log_ratio.grad.tolist() == [0.0, -0.5]


def test_value_loss_worked_by_hand():
    assert value_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])).item() == (1 + 9) / 2


def test_clipped_value_loss_worked_by_hand():
    values, old_values = torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3)
    returns = torch.tensor([2.0, -1.0, 1.0])
    # max(1, 1.8²), max(4, 1.2²), not clipped
    expected = (1.8**2 + 4 + 0.9**2) / 3
    assert clipped_value_loss(values, old_values, returns, 0.2).item() == pytest.approx(expected)


def test_clipped_value_loss_agrees_with_numpy():
    rng = np.random.default_rng(0)
    values, old_values, returns = rng.normal(size=(3, 200))
    moved = np.clip(values, old_values - 0.3, old_values + 0.3)
    expected = np.maximum((values - returns) ** 2, (moved - returns) ** 2).mean()
    assert clipped_value_loss(*map(torch.from_numpy, (values, old_values, returns)), 0.3).item() == pytest.approx(
        expected
    )


@pytest.mark.parametrize(("target", "gradient"), [(2.0, 0.0), (-1.0, 4.0)])
def test_the_value_has_no_gradient_where_its_clip_is_active(target, gradient):
    values = torch.tensor([1.0], requires_grad=True)
    clipped_value_loss(values, torch.zeros(1), torch.tensor([target]), 0.2).backward()
    assert values.grad.item() == gradient


column, flat = torch.zeros(4, 1), torch.zeros(4)


@pytest.mark.parametrize(
    "call",
    [
        (value_loss, column, flat),
        (value_loss, flat, column),
        (clipped_surrogate_loss, column, flat, 0.2),
        (clipped_surrogate_loss, flat, column, 0.2),
        (clipped_value_loss, column, flat, flat, 0.2),
        (clipped_value_loss, flat, column, flat, 0.2),
        (clipped_value_loss, flat, flat, column, 0.2),
    ],
    ids=lambda call: f"{call[0].__name__}-{[x is column for x in call].index(True)}",
)
def test_a_column_against_a_vector_is_refused_instead_of_broadcast(call):
    loss, *arguments = call
    with pytest.raises(ValueError, match=r"one shape \[B\].*\(4, 1\)"):
        loss(*arguments)


def test_approximate_kl_is_never_negative():
    small = torch.logspace(-12, 0, 2001)
    for log_ratio in torch.cat([small, -small, torch.linspace(-20, 20, 2001), torch.zeros(1)]):
        assert approximate_kl(log_ratio[None]).item() >= 0
    assert approximate_kl(torch.zeros(3)).item() == 0


def test_approximate_kl_of_samples_of_the_old_policy_is_the_exact_kl_in_expectation():
    old, new = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(0.3).double(), 1.3)
    actions = old.sample((200_000,))
    log_ratio = new.log_prob(actions) - old.log_prob(actions)
    error_of_the_mean = (log_ratio.expm1() - log_ratio).std() / len(actions) ** 0.5
    exact, reverse = kl_divergence(old, new), kl_divergence(new, old)
    assert abs(exact - reverse) > 20 * error_of_the_mean
    assert abs(approximate_kl(log_ratio) - exact) < 4 * error_of_the_mean
