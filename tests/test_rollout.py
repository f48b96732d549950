from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollouts import BOX, OBSERVATIONS
from rollouts import make_rollout as random_rollout

from pg_lightning.policies import ActorCritic
from pg_lightning.rollout import Batch, Rollout, Sequences


def numbered_samples(rows):
    """Row i holds the number i in every field."""
    i = torch.arange(rows).float()
    return Batch(
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


# Whole sequences, for a policy with memory.


def numbered_sequences(T, n, seed):
    """Row t of environment i holds t * n + i in every field; some rows are not valid, and so is all of some columns."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(T * n).view(T, n)
    valid = (torch.rand(T, n, generator=generator) < 0.7) & (torch.rand(n, generator=generator) < 0.8)
    starts = (torch.rand(T, n, generator=generator) < 0.3) & valid
    i = numbers[valid]
    flat = {"actions": i, "old_log_probs": i, "old_values": i, "advantages": i, "returns": i, "action_mask": i}
    sequences = Sequences(numbers[0].float().view(n, 1), starts, valid)
    return Batch(obs=numbers.float().unsqueeze(-1).expand(T, n, 2), sequences=sequences, **flat), numbers


sequences_of_any_size = given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000))


@sequences_of_any_size
def test_minibatches_of_sequences_hold_every_valid_row_exactly_once(T, n, num_minibatches, seed):
    samples, numbers = numbered_sequences(T, n, seed)
    batches = list(samples.minibatches(num_minibatches))
    assert sorted(n for batch in batches for n in batch.actions.tolist()) == numbers[samples.sequences.valid].tolist()
    assert all(len(batch) > 0 for batch in batches)
    assert len(batches) <= min(n, num_minibatches)
    widths = [len(batch.sequences.state) for batch in batches]
    assert not samples.sequences.valid.any(0).all() or max(widths) - min(widths) <= 1


@sequences_of_any_size
def test_the_rows_of_an_environment_stay_together_and_in_order(T, n, num_minibatches, seed):
    samples, _ = numbered_sequences(T, n, seed)
    whole = samples.sequences
    for batch in samples.minibatches(num_minibatches):
        part = batch.sequences
        envs = part.state[:, 0].long()
        assert torch.equal(batch.obs, samples.obs[:, envs])
        assert torch.equal(part.starts, whole.starts[:, envs])
        assert torch.equal(part.valid, whole.valid[:, envs])
        # The rows of the batch are those that the network gives a value for: obs[valid], time first.
        rows = batch.obs[part.valid][:, 0]
        for name in ("actions", "old_log_probs", "old_values", "advantages", "returns", "action_mask"):
            assert torch.equal(getattr(batch, name).float(), rows)


@pytest.mark.parametrize("chosen", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_chosen_environments_bring_the_rows_that_are_valid(chosen):
    samples, numbers = numbered_sequences(5, 4, seed=3)
    valid = samples.sequences.valid
    assert not valid.all()
    batch = samples.of_environments(torch.tensor(chosen))
    assert batch.actions.tolist() == numbers[:, chosen][valid[:, chosen]].tolist()


def test_every_epoch_deals_the_sequences_out_anew():
    samples, _ = numbered_sequences(2, 32, seed=0)
    batches = list(samples.epochs(num_epochs=3, num_minibatches=2))
    dealt = {tuple(batch.sequences.state[:, 0].tolist()) for batch in batches}
    assert len(dealt) == 6
    assert sorted(torch.cat([batch.sequences.state[:, 0] for batch in batches[:2]]).tolist()) == list(range(32))


def test_samples_of_a_rollout_with_a_state_keep_its_rows_and_know_its_starts():
    rollout = make_rollout()
    rollout.state, rollout.valid = torch.ones(1, 4), torch.tensor([[False], [True]])
    rollout.timesteps, rollout.env_steps = torch.zeros(2, 1, dtype=torch.int64), 1
    rollout.obs = torch.arange(3.0).view(3, 1, 1)
    rollout.actions = torch.tensor([[7], [8]])
    nothing = torch.zeros(2, 1)
    samples = Batch.of(rollout, nothing, nothing, nothing)
    assert samples.obs.tolist() == [[[0.0]], [[1.0]]]
    assert samples.actions.tolist() == [8]
    assert samples.sequences.starts.tolist() == [[False], [True]]  # a row that is not valid starts nothing
    assert torch.equal(samples.sequences.state, rollout.state)
    rollout.state = None
    samples = Batch.of(rollout, nothing, nothing, nothing)
    assert samples.obs.tolist() == [[1.0]]
    assert samples.sequences is None


def make_rollout():
    flags = torch.zeros(2, 1, dtype=torch.bool)
    return Rollout(
        obs=torch.zeros(3, 1, 4),
        actions=torch.zeros(2, 1),
        rewards=torch.zeros(2, 1),
        terminated=flags,
        truncated=flags,
        valid=~flags,
        timesteps=torch.zeros(2, 1, dtype=torch.int64),
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
    assert len(tensors) == 11
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.policy_version, moved.env_steps) == (7, 2)


def test_what_a_gpu_has_sampled_is_not_page_locked(monkeypatch):
    """It cannot be. `meta` stands for the GPU."""
    locked = []

    def pin_memory(x):
        assert x.device.type == "cpu"
        locked.append(x)
        return x

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking: x)
    replace(make_rollout(), actions=torch.zeros(2, 1, device="meta")).to("cuda")
    assert len(locked) == 10


def test_a_rollout_that_is_in_place_is_not_copied():
    rollout = make_rollout()
    assert rollout.to("cpu") is rollout


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_envs", [3, 9])
def test_a_padded_rollout_has_the_values_of_the_one_that_it_was(seed, num_envs):
    torch.manual_seed(seed)
    rollout = random_rollout(T=6, N=num_envs, seed=seed)
    if seed == 0:
        rollout = replace(rollout, final_rows=rollout.final_rows[:0], final_obs=rollout.final_obs[:0])
    network = ActorCritic(OBSERVATIONS, BOX, hidden_sizes=[4])
    padded = rollout.padded()
    assert len(padded.final_rows) == len(padded.final_obs) == (8 if num_envs == 3 else 16)
    for one, other in zip(network.values(rollout), network.values(padded), strict=True):
        torch.testing.assert_close(one, other)
    assert len(padded.padded().final_rows) == len(padded.final_rows)
