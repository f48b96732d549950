"""What every `Policy` must do, without a Trainer: one suite that each implementation runs through."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from scipy import stats
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic, Policy, make_policy
from pg_lightning.rollout import Batch, Rollout, Sequences
from pg_lightning.spaces import FlattenedBox

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (36, 36, 2), np.uint8)
GROUPS = FlattenedBox(spaces.Dict(critic=spaces.Box(-1.0, 1.0, (2,)), policy=spaces.Box(-1.0, 1.0, (3,))))
APART = FlattenedBox(spaces.Dict({name: spaces.Box(-1.0, 1.0, (2,)) for name in "abc"}))
BOX = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([0.5, 12.0], np.float32))
DISCRETE = spaces.Discrete(4, start=2)
MULTI = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -5]])


@dataclass
class Case:
    """A policy to make: its spaces, options, and the number of choices that its masks speak of."""

    actions: Space = field(default_factory=lambda: DISCRETE)
    obs: spaces.Box = field(default_factory=lambda: VECTOR)
    options: dict[str, Any] = field(default_factory=dict)
    choices: int | None = None

    def make(self) -> ActorCritic:
        torch.manual_seed(1)
        policy = ActorCritic(self.obs, self.actions, **{"hidden_sizes": [8], "memory_size": 5, **self.options})
        nn.init.normal_(policy.actor_head.linear.weight, std=0.5)  # a policy with opinions
        if policy.normalizer is not None:
            policy.normalizer.statistics.update(self.observations(50))
        if policy.value_normalizer is not None and policy.critic_head is not None:
            policy.value_normalizer.update((10, torch.tensor(3.0), torch.tensor(4.0)), policy.critic_head)
        return policy

    def observations(self, count: int, seed: int = 0) -> Tensor:
        space = spaces.Box(self.obs.low, self.obs.high, dtype=self.obs.dtype, seed=seed)  # type: ignore[arg-type]
        return torch.from_numpy(np.stack([space.sample() for _ in range(count)]))

    def masks(self, count: int) -> Tensor | None:
        if self.choices is None:
            return None
        return (torch.rand(count, self.choices, generator=torch.Generator().manual_seed(5)) < 0.7).to(torch.int8)


class OtherCase(Case):
    """Of a class that shares nothing with `ActorCritic`."""

    def make(self) -> ActorCritic:
        torch.manual_seed(1)
        own = {"class_path": "doubles.LinearPolicy", "init_args": {"scale": 0.5}}
        return make_policy(own, self.obs, self.actions, critic=True)


CASES = {
    "categorical": Case(),
    "multi-categorical": Case(MULTI),
    "bernoulli": Case(spaces.MultiBinary([2, 2])),
    "gaussian": Case(BOX),
    "gaussian, σ(s)": Case(BOX, options={"state_dependent_std": True}),
    "gaussian in float64": Case(spaces.Box(-1.0, 2.0, (2, 2), np.float64)),
    "unbounded": Case(spaces.Box(-np.inf, np.inf, (2,))),
    "squashed gaussian": Case(BOX, options={"head": "squashed_gaussian"}),
    "squashed gaussian, σ(s)": Case(BOX, options={"head": "squashed_gaussian", "state_dependent_std": True}),
    "beta": Case(BOX, options={"head": "beta"}),
    "masked": Case(choices=4),
    "masked multi-categorical": Case(MULTI, choices=11),
    "cnn": Case(obs=IMAGE, options={"torso": "nature_cnn"}),
    "cnn, shared torso": Case(obs=IMAGE, options={"torso": "nature_cnn", "shared_torso": True}),
    "lstm": Case(options={"memory": "lstm"}),
    "gru": Case(BOX, options={"memory": "gru"}),
    "lstm, masked": Case(options={"memory": "lstm"}, choices=4),
    "lstm, shared torso": Case(options={"memory": "lstm", "shared_torso": True}),
    "gru, no critic": Case(options={"memory": "gru", "critic": False}),
    "shared torso": Case(options={"shared_torso": True}),
    "no critic": Case(BOX, options={"critic": False}),
    "normalised": Case(BOX, options={"normalize_obs": True, "normalize_values": True}),
    "relu": Case(BOX, options={"activation": "relu", "hidden_sizes": [8, 8]}),
    "layer norm": Case(options={"layer_norm": True}),
    "no hidden layer": Case(options={"hidden_sizes": []}),
    "another class, masked": OtherCase(choices=4),
    "groups": Case(obs=GROUPS),
    "groups, normalised": Case(BOX, GROUPS, {"normalize_obs": True, "normalize_values": True}),
    "groups, masked": Case(MULTI, GROUPS, choices=11),
    "groups, lstm": Case(obs=GROUPS, options={"memory": "lstm"}),
    "groups, no critic": Case(BOX, GROUPS, {"critic": False}),
    "groups of ones own": Case(BOX, APART, {"obs_groups": {"actor": ["c", "a"], "critic": ["b", "c"]}}),
    "groups, shared torso": Case(
        obs=APART, options={"obs_groups": {"actor": ["a"], "critic": ["a"]}, "shared_torso": True, "memory": "gru"}
    ),
}
B = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(policy: Policy, obs: Tensor, actions: Tensor, mask: Tensor | None, state: Tensor | None = None) -> Batch:
    """Rows `[B]`; of a recurrent policy each is a sequence of its own, one step long."""
    nothing, sequences = torch.zeros(len(obs)), None
    if policy.has_memory:
        begins = torch.full((1, len(obs)), state is None)
        if state is None:
            state = policy.initial_state(len(obs))
        assert state is not None
        sequences, obs = Sequences(state, begins, torch.ones_like(begins)), obs.unsqueeze(0)
    return Batch(obs, actions, nothing, nothing, nothing, action_mask=mask, sequences=sequences)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def policy(case):
    return case.make()


@pytest.fixture
def played(case, policy):
    """Observations, the masks that came with them, and actions that were sampled there."""
    obs, mask = case.observations(B), case.masks(B)
    actions, _ = policy.sample(obs, seeded(), mask, policy.initial_state(B))
    return obs, mask, actions


def test_it_has_the_methods_of_a_policy(policy):
    assert isinstance(policy, Policy)


def test_actions_are_those_of_the_environment(case, policy, played):
    obs, mask, actions = played
    best, _ = policy.mode(obs, mask, policy.initial_state(B))
    for given in (actions, best):
        assert not given.requires_grad or given is best
        assert given.shape[0] == B
        for action in policy.env_actions(given.detach()).numpy():
            assert case.actions.contains(action if action.shape else action[()])
    assert best.shape == actions.shape
    assert best.dtype == actions.dtype


def test_sampling_is_reproducible_and_follows_the_generator_alone(policy, played):
    obs, mask, _ = played
    obs, mask = obs.repeat_interleave(10, 0), None if mask is None else mask.repeat_interleave(10, 0)
    with torch.inference_mode(), policy.acting():
        first = policy.sample(obs, seeded(), mask, policy.initial_state(60))[0]
    torch.manual_seed(99)
    with torch.inference_mode(), policy.acting():
        second = policy.sample(obs, seeded(), mask, policy.initial_state(60))[0]
        other = policy.sample(obs, seeded(1), mask, policy.initial_state(60))[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_mode_is_the_same_every_time(policy, played):
    obs, mask, _ = played
    first, second = (policy.mode(obs, mask, policy.initial_state(B))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert policy.policy(batch(policy, obs, first.detach(), mask)).log_prob(first.detach()).isfinite().all()


def test_log_probabilities_and_entropies_are_finite_numbers_of_each_row(policy, played):
    obs, mask, actions = played
    pi = policy.policy(batch(policy, obs, actions, mask))
    for numbers in (pi.log_prob(actions), pi.entropy()):
        assert numbers.shape == (B,)
        assert numbers.dtype == torch.float32
        assert numbers.isfinite().all()
        assert numbers.requires_grad


def test_a_row_does_not_depend_on_the_others(case, policy, played):
    obs, mask, actions = played
    together = policy.policy(batch(policy, obs, actions, mask)).log_prob(actions)
    has_critic = case.options.get("critic", True)
    values = policy.value(batch(policy, obs, actions, mask)) if has_critic else None
    for i in range(B):
        row = slice(i, i + 1)
        alone = batch(policy, obs[row], actions[row], None if mask is None else mask[row])
        torch.testing.assert_close(policy.policy(alone).log_prob(actions[row]), together[row], rtol=1e-4, atol=1e-5)
        if values is not None:
            torch.testing.assert_close(policy.value(alone), values[row], rtol=1e-4, atol=1e-5)


def test_the_entropy_is_the_mean_of_minus_log_probability(policy, played):
    obs, mask, _ = played
    count = 20_000
    obs, mask = obs[:1].expand(count, *obs.shape[1:]), None if mask is None else mask[:1].expand(count, -1)
    if obs[0].numel() > 10:
        pytest.skip("an image is too large to be seen so often; its heads are those of the other policies")
    with torch.inference_mode():
        actions, _ = policy.sample(obs, seeded(), mask, policy.initial_state(count))
        pi = policy.policy(batch(policy, obs, actions, mask))
        surprise = -pi.log_prob(actions).double()
        error = surprise.std().item() / count**0.5
        assert abs(surprise.mean() - pi.entropy()[0]) < 4.5 * error + 1e-5


def test_a_divergence_is_0_from_itself_and_positive_from_another(case, policy, played):
    obs, mask, actions = played
    rows = batch(policy, obs, actions, mask)
    before = policy.policy(rows)
    assert before.kl(policy.policy(rows)).abs().max() < 1e-6
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    divergence = before.kl(policy.policy(rows))
    assert divergence.shape == (B,)
    assert divergence.dtype == torch.float32
    assert divergence.isfinite().all()
    alone = torch.zeros(B, dtype=torch.bool)  # rows whose mask leaves one choice
    if mask is not None and mask.shape[1] == 4:
        alone = mask.sum(1) == 1
    assert (divergence[~alone] > 0).all()


def test_values_are_float32_and_the_same_alone_and_beside_pi(case, policy, played):
    obs, mask, actions = played
    rows = batch(policy, obs, actions, mask)
    if not case.options.get("critic", True):
        with pytest.raises(RuntimeError, match="without a critic"):
            policy.value(rows)
        with pytest.raises(RuntimeError, match="without a critic"):
            policy(rows)
        return
    pi, values = policy(rows)
    assert values.shape == (B,)
    assert values.dtype == torch.float32
    assert torch.equal(policy.value(rows), values)
    assert torch.equal(policy.policy(rows).log_prob(actions), pi.log_prob(actions))


def test_values_of_a_rollout_are_in_the_unit_of_the_rewards(case, policy):
    if not case.options.get("critic", True):
        pytest.skip("no critic")
    T, N = 3, 2
    obs = case.observations((T + 1) * N).unflatten(0, (T + 1, N))
    no = torch.zeros(T, N, dtype=torch.bool)
    zeros, times = torch.zeros(T, N), torch.arange(T).unsqueeze(1).expand(T, N)
    sparse = {"final_obs": obs[0, :0], "final_rows": torch.zeros(0, dtype=torch.int64)}
    ended = {"episode_returns": zeros[0, :0], "episode_lengths": zeros[0, :0]}
    masks = {"terminated": no, "truncated": no, "valid": ~no, "timesteps": times}
    rollout = Rollout(
        obs, zeros, zeros, **masks, **sparse, **ended, policy_version=0, env_steps=T * N, state=policy.initial_state(N)
    )
    values, next_values = policy.values(rollout)
    assert values.shape == next_values.shape == (T, N)
    assert torch.equal(values[1:], next_values[:-1])
    first = policy.value(batch(policy, obs[0], zeros[0], None))
    if policy.value_normalizer is not None:
        first = policy.value_normalizer.restore(first)
    torch.testing.assert_close(values[0], first, rtol=1e-4, atol=1e-5)


def test_only_a_recurrent_policy_has_a_state(case, policy):
    obs, mask, state = case.observations(B), case.masks(B), policy.initial_state(B)
    _, after = policy.sample(obs, seeded(), mask, state)
    _, after_mode = policy.mode(obs, mask, state)
    if not policy.has_memory:
        assert state is after is after_mode is None
        return
    assert not state.any()
    assert state.shape[0] == B
    assert state.shape == after.shape
    assert torch.equal(after, after_mode)
    assert (after != state).any(1).all()
    assert not torch.equal(policy.mode(obs, mask, after)[1], after)


def test_log_probabilities_and_values_are_the_same_step_by_step_and_in_one_pass(case, policy):
    """Of a recurrent policy over sequences in which episodes begin anywhere; of another over rows."""
    T, N = 7, 3
    obs = case.observations(T * N).unflatten(0, (T, N))
    mask = case.masks(T * N)
    mask = None if mask is None else mask.unflatten(0, (T, N))
    starts = torch.rand(T, N, generator=seeded(8)) < 0.3
    valid = torch.rand(T, N, generator=seeded(9)) < 0.8
    first = state = policy.initial_state(N)
    if state is not None:
        first = state = torch.randn(state.shape, generator=seeded(7))
    has_critic = case.options.get("critic", True)
    stepwise, values, actions = [], [], []
    for t in range(T):
        if state is not None:
            state = state * ~starts[t].unsqueeze(1)
        allowed = None if mask is None else mask[t]
        action, after = policy.sample(obs[t], seeded(t), allowed, state)
        rows = batch(policy, obs[t], action, allowed, state)
        stepwise.append(policy.policy(rows).log_prob(action))
        if has_critic:
            values.append(policy.value(rows))
        actions.append(action)
        state = after
    nothing = torch.zeros(int(valid.sum()))
    played = torch.stack(actions)[valid]
    sequences = None if first is None else Sequences(first, starts, valid)
    seen = obs[valid] if first is None else obs
    samples = Batch(
        seen, played, nothing, nothing, nothing, action_mask=None if mask is None else mask[valid], sequences=sequences
    )
    in_one = policy.policy(samples).log_prob(played)
    torch.testing.assert_close(in_one, torch.stack(stepwise)[valid], rtol=1e-4, atol=1e-5)
    if has_critic:
        torch.testing.assert_close(policy.value(samples), torch.stack(values)[valid], rtol=1e-4, atol=1e-5)


def test_acting_samples_from_the_same_distribution_within_the_same_bounds(case, policy, played):
    """Whether `sample` takes the NumPy path inside `acting` or not."""
    obs, mask, _ = played
    if obs[0].numel() > 10:
        pytest.skip("an image is too large to be seen so often; convolutions are not in NumPy")
    n, times = 60, 500
    obs, mask = obs[:1].expand(n, *obs.shape[1:]), None if mask is None else mask[:1].expand(n, -1)
    state = policy.initial_state(n)
    with torch.inference_mode():
        with policy.acting():
            inside = torch.cat([policy.sample(obs, seeded(i), mask, state)[0] for i in range(times)])
        outside = torch.cat([policy.sample(obs, seeded(times + i), mask, state)[0] for i in range(times)])
    assert inside.dtype == outside.dtype
    assert inside.shape == outside.shape
    for ours, theirs in zip(*(x.reshape(n * times, -1).T for x in (inside, outside)), strict=True):
        if len(theirs.unique()) < 20:
            choices = torch.cat([ours, theirs]).unique()
            table = [[int((x == choice).sum()) for choice in choices] for x in (ours, theirs)]
            assert len(choices) == 1 or stats.chi2_contingency(table).pvalue > 1e-4
        else:
            assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-4
    for action in policy.env_actions(inside[:100]).numpy():
        assert case.actions.contains(action if action.shape else action[()])


def test_what_a_mask_forbids_is_never_played(case, policy):
    if case.choices is None:
        wrong = torch.ones(B, 3)
        with pytest.raises(UserError, match="action_mask"):
            policy.sample(case.observations(B), seeded(), wrong, policy.initial_state(B))
        return
    mask = case.masks(B)
    sizes = [4] if case.choices == 4 else case.actions.nvec.flatten()
    for seed in range(50):
        actions, _ = policy.sample(case.observations(B), seeded(seed), mask, policy.initial_state(B))
        start = 0
        for d, size in enumerate(sizes):
            allowed = mask[:, start : start + size] != 0
            chosen = actions if actions.dim() == 1 else actions[:, d]
            assert (allowed.gather(1, chosen.unsqueeze(1)).squeeze(1) | ~allowed.any(1)).all()
            start += size
