"""A memory holds what its episode has shown so far, and nothing of the one before: in acting and in learning alike."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from pg_lightning.data import RolloutCollector
from pg_lightning.envs import make_vector_env
from pg_lightning.policies import ActorCritic, Memory
from pg_lightning.rollout import Batch, Rollout

T, N, ROLLOUTS = 7, 4, 4
MODES = ("same_step", "next_step", "disabled")
# Length and end of successive episodes. Environment n starts at entry n; with 7 rows some end with a rollout.
EPISODES = [
    (3, "truncated"),
    (1, "truncated"),
    (5, "terminated"),
    (2, "truncated"),
    (9, "terminated"),
    (7, "truncated"),
]

kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])
modes = pytest.mark.parametrize("mode", MODES)
shared_or_not = pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
Label = tuple[int, int, int]


class Labelled(gym.Env):
    """Observations say (env, episode, step), in eighths, which are exact in any precision."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.number, self.episode = seed, -1
        self.episode += 1
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        length, end = EPISODES[(self.number + self.episode) % len(EPISODES)]
        ended = self.steps == length
        return self._observation(), 1.0, ended and end == "terminated", ended and end == "truncated", {}

    def _observation(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.steps], dtype=np.float32) / 8


gym.register("tests/Labelled-v0", Labelled)


def label_of(obs: Tensor) -> Label:
    env, episode, step = (obs * 8).round().int().tolist()
    return env, episode, step


def make_network(kind: str, shared: bool = False, critic: bool = True) -> ActorCritic:
    """In double precision, so that a mistake stands out; far from uniform, so that π tells of the features."""
    net = ActorCritic(
        Labelled.observation_space,
        Labelled.action_space,
        hidden_sizes=[5],
        memory=kind,  # type: ignore[arg-type]
        memory_size=4,
        shared_torso=shared,
        normalize_obs=True,
        critic=critic,
    ).double()
    assert net.normalizer is not None
    net.normalizer.statistics.update(torch.rand(50, 3))
    with torch.no_grad():
        net.actor_head.linear.weight.mul_(200)
    return net


class NetworkActor:
    """Acts by the network alone, and keeps log π(a|s) and the memory before each of its rows."""

    policy_version = 0
    device = torch.device("cpu")

    def __init__(self, net: ActorCritic) -> None:
        self.net = net
        self.log_probs: list[Tensor] = []
        self.states: list[Tensor] = []

    def acting(self) -> torch.inference_mode:
        return torch.inference_mode()

    def initial_state(self, num_envs: int) -> Tensor | None:
        return self.net.initial_state(num_envs)

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        self.states.append(state)
        pi, state = self.net.act(obs, action_mask, state)
        actions = pi.sample(generator)
        self.log_probs.append(pi.log_prob(actions))
        return actions, state

    def env_actions(self, actions: Tensor) -> Tensor:
        return actions


def play(net: ActorCritic, mode: str) -> tuple[list[Rollout], NetworkActor]:
    actor = NetworkActor(net)
    env = make_vector_env("tests/Labelled-v0", N, autoreset_mode=mode)  # type: ignore[arg-type]
    collector = RolloutCollector(env, T, list(range(N)), action_seed=0)
    return [collector.collect(actor) for _ in range(ROLLOUTS)], actor


def samples_of(rollout: Rollout) -> Batch:
    nothing = torch.zeros_like(rollout.rewards)
    return Batch.of(rollout, nothing, nothing, nothing)


# What the network ought to say of a row follows from its label: its episode so far, from an empty memory.


def remembered(net: ActorCritic, label: Label, of_critic: bool, since: int = 0) -> Tensor:
    """Features `[1, H]` at a step of an episode; gradients flow back to step `since`."""
    torso, memory = (net.critic_torso, net.critic_memory) if of_critic else (net.actor_torso, net.actor_memory)
    assert torso is not None
    assert memory is not None
    state = torch.zeros(1, memory.state_size, dtype=torch.float64)
    env, episode, last = label
    for step in range(last + 1):
        if step == since:
            state = state.detach()
        obs = torch.tensor([[env, episode, step]], dtype=torch.float64) / 8
        out, state = memory(torso(net.normalizer(obs)), state)  # type: ignore[misc]
    return out


def value_of(net: ActorCritic, label: Label, since: int = 0) -> Tensor:
    return net.critic_head(remembered(net, label, True, since)).squeeze()  # type: ignore[misc]


def log_prob_of(net: ActorCritic, label: Label, action: Tensor, since: int = 0) -> Tensor:
    return net.actor_head(remembered(net, label, False, since)).log_prob(action[None]).squeeze()


def rows_of(rollout: Rollout) -> list[tuple[int, int, Label]]:
    """(t, n, label) of the valid rows, in the order of samples."""
    return [(t, n, label_of(rollout.obs[t, n])) for t, n in rollout.valid.nonzero().tolist()]


def test_the_rollouts_of_these_tests_hold_what_can_go_wrong() -> None:
    for mode in MODES:
        rollouts, _ = play(make_network("gru"), mode)
        assert any((rollout.truncated & rollout.valid).any() for rollout in rollouts)
        assert any((rollout.terminated & rollout.valid).any() for rollout in rollouts)
        assert any(rollout.done[-1].any() for rollout in rollouts[:-1])
        assert any(not rollout.done[-1].all() for rollout in rollouts[:-1])
        assert any(label[2] > 6 for rollout in rollouts for _, _, label in rows_of(rollout))
        assert all((len(rollout.final_rows) > 0) == (mode != "next_step") for rollout in rollouts)
        assert any((rollout.truncated[-1] & rollout.valid[-1]).any() for rollout in rollouts)


# The cell and its unrolling.


@kinds
def test_one_step_is_that_of_the_papers(kind: str) -> None:
    memory = Memory(kind, 3, 4)  # type: ignore[arg-type]
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter)
    x, state = np.random.randn(2, 3), np.random.randn(2, memory.state_size)  # noqa: NPY002
    weights = {name.partition(".")[2]: p.detach().numpy().astype(float) for name, p in memory.named_parameters()}
    h = state[:, :4]
    inputs = x @ weights["weight_ih"].T + weights["bias_ih"]
    hidden = h @ weights["weight_hh"].T + weights["bias_hh"]

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    if kind == "lstm":
        i, f, g, o = np.split(inputs + hidden, 4, 1)
        cell = sigmoid(f) * state[:, 4:] + sigmoid(i) * np.tanh(g)
        expected = sigmoid(o) * np.tanh(cell)
        expected_state = np.concatenate([expected, cell], 1)
    else:
        (r_in, z_in, n_in), (r_hid, z_hid, n_hid) = np.split(inputs, 3, 1), np.split(hidden, 3, 1)
        z = sigmoid(z_in + z_hid)
        expected = (1 - z) * np.tanh(n_in + sigmoid(r_in + r_hid) * n_hid) + z * h
        expected_state = expected
    out, after = memory(torch.tensor(x, dtype=torch.float32), torch.tensor(state, dtype=torch.float32))
    np.testing.assert_allclose(out.detach(), expected, atol=1e-5)
    np.testing.assert_allclose(after.detach(), expected_state, atol=1e-5)


@kinds
def test_weights_are_orthogonal_and_biases_zero(kind: str) -> None:
    for name, parameter in Memory(kind, 5, 4).named_parameters():  # type: ignore[arg-type]
        if "bias" in name:
            assert not parameter.any()
        else:
            torch.testing.assert_close(parameter.T @ parameter, torch.eye(parameter.shape[1]), atol=1e-5, rtol=0)


@kinds
def test_unrolling_is_stepping_with_an_empty_memory_at_every_start(kind: str) -> None:
    memory = Memory(kind, 3, 4).double()  # type: ignore[arg-type]
    features, starts = torch.randn(9, 5, 3).double(), torch.rand(9, 5) < 0.3
    first = torch.randn(5, memory.state_size).double()
    outputs, states = memory.unroll(features, first, starts)
    assert outputs.shape == (9, 5, 4)
    assert states.shape == (9, 5, memory.state_size)
    for n in range(5):
        state = first[n : n + 1]
        for t in range(9):
            if starts[t, n]:
                state = torch.zeros_like(state)
            out, state = memory(features[t, n : n + 1], state)
            torch.testing.assert_close(outputs[t, n], out[0])
            torch.testing.assert_close(states[t, n], state[0])


@kinds
def test_a_gradient_flows_back_to_the_start_of_the_episode_and_no_further(kind: str) -> None:
    memory = Memory(kind, 3, 4).double()  # type: ignore[arg-type]
    features = torch.randn(6, 1, 3).double().requires_grad_()
    first = torch.randn(1, memory.state_size).double().requires_grad_()
    starts = torch.tensor([0, 0, 1, 0, 1, 0], dtype=torch.bool)[:, None]
    outputs, _ = memory.unroll(features, first, starts)
    begins = [0, 0, 2, 2, 4, 4]
    for t in range(6):
        on_features, on_first = torch.autograd.grad(outputs[t].sum(), (features, first), retain_graph=True)
        assert [bool(row.any()) for row in on_features] == [begins[t] <= s <= t for s in range(6)]
        assert bool(on_first.any()) == (t < 2)


# The network in learning, against the episodes that its rows belong to.


@modes
@shared_or_not
@kinds
def test_values_are_those_of_the_episode_so_far(kind: str, shared: bool, mode: str) -> None:
    """Also across rollouts, and of the observation after: where the episode was cut, of its final one."""
    net = make_network(kind, shared)
    for rollout in play(net, mode)[0]:
        with torch.no_grad():
            values, next_values = net.values(rollout)
            for t, n, (env, episode, step) in rows_of(rollout):
                assert float(values[t, n]) == pytest.approx(float(value_of(net, (env, episode, step))), abs=1e-9)
                if not rollout.terminated[t, n]:
                    after = float(value_of(net, (env, episode, step + 1)))
                    assert float(next_values[t, n]) == pytest.approx(after, abs=1e-9)


@modes
@shared_or_not
@kinds
def test_policy_and_forward_are_those_of_the_episode_so_far_and_of_acting(kind: str, shared: bool, mode: str) -> None:
    net = make_network(kind, shared)
    rollouts, actor = play(net, mode)
    acted = torch.stack(actor.log_probs).split(T)
    for rollout, log_probs in zip(rollouts, acted, strict=True):
        samples = samples_of(rollout)
        with torch.no_grad():
            pi, values = net(samples)
            rows = rows_of(rollout)
            expected = torch.stack([log_prob_of(net, label, rollout.actions[t, n]) for t, n, label in rows])
            expected_values = torch.stack([value_of(net, label) for _, _, label in rows])
            alone = net.policy(samples).log_prob(samples.actions)
        torch.testing.assert_close(pi.log_prob(samples.actions), expected)
        torch.testing.assert_close(alone, expected)
        torch.testing.assert_close(log_probs[rollout.valid], expected)
        torch.testing.assert_close(values, expected_values)
        torch.testing.assert_close(net.values(rollout)[0][rollout.valid], expected_values)
        assert expected.std() > 1e-3


def test_a_policy_remembers_without_a_critic() -> None:
    net = make_network("lstm", critic=False)
    rollouts, actor = play(net, "same_step")
    with torch.no_grad():
        replayed = [net.policy(samples_of(rollout)).log_prob(samples_of(rollout).actions) for rollout in rollouts]
    torch.testing.assert_close(torch.cat(replayed), torch.cat(actor.log_probs))


@modes
@kinds
def test_gradients_are_those_of_backpropagation_to_the_first_row_of_the_rollout(kind: str, mode: str) -> None:
    net = make_network(kind)
    for rollout in play(net, mode)[0][1:]:
        samples = samples_of(rollout)
        pi, values = net(samples)
        found = torch.autograd.grad((pi.log_prob(samples.actions) + values).sum(), list(net.parameters()))
        total = torch.zeros((), dtype=torch.float64)
        for t, n, label in rows_of(rollout):
            since = label[2] - t  # the step that was in row 0; before 0 where the episode began within the rollout
            total = total + log_prob_of(net, label, rollout.actions[t, n], since) + value_of(net, label, since)
        expected = torch.autograd.grad(total, list(net.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


# The state from row to row and from rollout to rollout.


@modes
@kinds
def test_the_memory_is_empty_where_an_episode_begins_and_goes_on_where_it_does_not(kind: str, mode: str) -> None:
    rollouts, actor = play(make_network(kind), mode)
    states = torch.stack(actor.states).split(T)
    for rollout, of_rollout in zip(rollouts, states, strict=True):
        assert torch.equal(rollout.state, of_rollout[0])  # type: ignore[arg-type]
        for t, n, (_, _, step) in rows_of(rollout):
            assert bool(of_rollout[t, n].any()) == (step > 0)
            assert bool(rollout.starts[t, n]) == (step == 0)
    firsts = torch.cat([rollout.state.any(-1) for rollout in rollouts[1:]])  # type: ignore[union-attr]
    assert firsts.any()
    assert not firsts.all()


@shared_or_not
@kinds
def test_the_state_holds_the_memories_of_actor_and_critic(kind: str, shared: bool) -> None:
    state = make_network(kind, shared).initial_state(5)
    assert state is not None
    assert state.shape == (5, 4 * (1 + (kind == "lstm")) * (2 - shared))
    assert not state.any()


def test_without_a_memory_there_is_no_state() -> None:
    net = ActorCritic(Labelled.observation_space, Labelled.action_space)
    assert net.initial_state(3) is None
    assert net.act(torch.zeros(3, 3))[1] is None


@shared_or_not
def test_pi_and_v_are_those_of_a_first_observation(shared: bool) -> None:
    net = make_network("lstm", shared)
    obs = torch.rand(5, 3, dtype=torch.float64)
    with torch.no_grad():
        state = net.initial_state(5)
        log_prob = net.act(obs, None, state)[0].log_prob(torch.ones(5).long())
        assert torch.equal(net.pi(obs).log_prob(torch.ones(5).long()), log_prob)
        labels = [(1, 2, 0), (3, 0, 0)]
        firsts = torch.tensor(labels, dtype=torch.float64) / 8
        expected = torch.stack([value_of(net, label) for label in labels])
        torch.testing.assert_close(net.v(firsts), expected)


# Minibatches.


@modes
def test_a_minibatch_of_environments_is_their_part_of_the_whole(mode: str) -> None:
    net = make_network("lstm")
    rollout = play(net, mode)[0][1]
    samples = samples_of(rollout)
    columns = rollout.valid.nonzero()[:, 1]
    with torch.no_grad():
        pi, values = net(samples)
        log_probs = pi.log_prob(samples.actions)
        seen = 0
        for chosen in ([0, 2], [1], [3]):
            batch = samples.of_environments(torch.tensor(chosen))
            pi, part = net(batch)
            rows = torch.isin(columns, torch.tensor(chosen))
            torch.testing.assert_close(part, values[rows])
            torch.testing.assert_close(pi.log_prob(batch.actions), log_probs[rows])
            seen += len(batch)
    assert seen == len(samples)


@shared_or_not
def test_the_parameter_groups_hold_the_memories(shared: bool) -> None:
    net = make_network("gru", shared)
    actor, critic = (set(map(id, group)) for group in net.parameter_groups())
    assert net.actor_memory is not None
    assert net.critic_memory is not None
    assert {id(p) for p in net.actor_memory.parameters()} <= actor
    assert {id(p) for p in net.critic_memory.parameters()} <= (actor if shared else critic)
    assert not actor & critic
    assert len(actor | critic) == len(list(net.parameters()))
