import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pg_lightning.rollout import Rollout, Samples


def numbered_samples(rows):
    """Row i holds the number i in every field."""
    i = torch.arange(rows).float()
    return Samples(
        obs=i.view(-1, 1).expand(-1, 3), actions=i.long(), old_log_probs=i, old_values=i, advantages=i, returns=i
    )


def order(batches):
    return torch.cat([batch.actions for batch in batches]).tolist()


@given(st.integers(1, 40), st.integers(1, 12))
def test_minibatches_hold_every_row_exactly_once(rows, num_minibatches):
    batches = list(numbered_samples(rows).minibatches(num_minibatches))
    assert sorted(order(batches)) == list(range(rows))


@given(st.integers(1, 40), st.integers(1, 12))
def test_minibatches_are_as_many_as_asked_for_and_of_nearly_one_size(rows, num_minibatches):
    sizes = [len(batch) for batch in numbered_samples(rows).minibatches(num_minibatches)]
    assert len(sizes) == min(rows, num_minibatches)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 40), st.integers(1, 12))
def test_a_row_keeps_its_fields_together_through_the_shuffle(rows, num_minibatches):
    for batch in numbered_samples(rows).minibatches(num_minibatches):
        fields = (
            batch.obs[:, 0],
            batch.obs[:, 2],
            batch.old_log_probs,
            batch.old_values,
            batch.advantages,
            batch.returns,
        )
        assert all(torch.equal(field, batch.actions.float()) for field in fields)


def test_every_epoch_has_a_permutation_of_its_own():
    batches = list(numbered_samples(32).epochs(num_epochs=3, num_minibatches=4))
    orders = [order(batches[4 * epoch : 4 * epoch + 4]) for epoch in range(3)]
    assert [sorted(o) for o in orders] == [list(range(32))] * 3
    assert len({tuple(o) for o in [*orders, range(32)]}) == 4


def test_a_minibatch_mixes_rows_of_the_whole_rollout():
    first = next(iter(numbered_samples(1000).minibatches(10)))
    assert first.actions.float().mean().item() == pytest.approx(499.5, abs=120)


def make_rollout():
    flags = torch.zeros(2, 1, dtype=torch.bool)
    return Rollout(
        obs=torch.zeros(3, 1, 4),
        actions=torch.zeros(2, 1),
        rewards=torch.zeros(2, 1),
        terminated=flags,
        truncated=flags,
        valid=~flags,
        final_obs=torch.zeros(0, 4),
        final_rows=torch.zeros(0, dtype=torch.int64),
        episode_returns=torch.zeros(0),
        episode_lengths=torch.zeros(0),
        policy_version=7,
        env_steps=2,
    )


def test_a_rollout_moves_with_all_its_tensors_and_keeps_its_counts():
    moved = make_rollout().to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.policy_version, moved.env_steps) == (7, 2)


def test_a_rollout_that_is_in_place_is_not_copied():
    rollout = make_rollout()
    assert rollout.to("cpu") is rollout
