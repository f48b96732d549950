"""The actor sees its groups of a `Dict` observation and nothing else; so does the critic."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import pg_lightning
from pg_lightning.algorithms import A2C, PPO, REINFORCE
from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.description import described_policy, made_policy
from pg_lightning.policies.numpy_actor import numpy_sampler
from pg_lightning.rollout import Batch, Rollout, Sequences
from pg_lightning.run.checkpoints import SafeCheckpointIO
from pg_lightning.spaces import FlattenedBox

B, T = 5, 4
BOX, DISCRETE = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)


def box(size: int) -> spaces.Box:
    return spaces.Box(-2.0, 2.0, (size,))


# THREE has columns 0-1, 2-4 and 5; NESTED 0-5 and 6-7, which is not the order of the alphabet.
PAIR = FlattenedBox(spaces.Dict(critic=box(2), policy=box(3)))
PLAYGROUND = FlattenedBox(spaces.Dict({"state": box(3), "privileged_state": box(2)}))  # Gymnasium sorts a dict
MJLAB = FlattenedBox(spaces.Dict(actor=box(3), critic=box(2)))
THREE = FlattenedBox(spaces.Dict(a=box(2), b=box(3), c=box(1)))
DEEP = spaces.Dict(kind=spaces.Discrete(3), place=spaces.Box(-2.0, 2.0, (3, 1)))
NESTED = FlattenedBox(spaces.Dict(policy=DEEP, critic=box(2)))
LAST = FlattenedBox(spaces.Dict(critic=box(2), policy=DEEP))


class Cosine(nn.Module):
    """A torso of one's own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__()
        self.layer = nn.Linear(observation_space.shape[0], 6)
        self.out_features = 6

    def forward(self, obs: Tensor) -> Tensor:
        return self.layer(obs).cos()


@dataclass
class Case:
    space: FlattenedBox
    actor: list[int]  # columns that it sees
    critic: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    actions: spaces.Space = field(default_factory=lambda: BOX)
    masked: bool = False

    def make(self, space: spaces.Box | None = None, **options: Any) -> ActorCritic:
        torch.manual_seed(3)
        given = {"hidden_sizes": [8], "memory_size": 4, **self.options, **options}
        if space is not None:
            given.pop("obs_groups", None)
        policy = ActorCritic(space or self.space, self.actions, **given)
        nn.init.normal_(policy.actor_head.linear.weight, std=0.5)
        if policy.normalizer is not None:
            policy.normalizer.statistics.update(self.observations(50, seed=1))
        return policy

    def observations(self, count: int, seed: int = 0) -> Tensor:
        return torch.rand(count, *self.space.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    def mask(self, count: int) -> Tensor | None:
        return torch.tensor([[1, 0, 1]]).expand(count, -1) if self.masked else None


MIXED = {"obs_groups": {"actor": ["c", "a"], "critic": ["b", "c"]}}
CASES = {
    "by name": Case(PAIR, [2, 3, 4], [0, 1]),
    "of the playground": Case(PLAYGROUND, [2, 3, 4], [0, 1]),
    "of mjlab": Case(MJLAB, [0, 1, 2], [3, 4]),
    "of ones own": Case(THREE, [0, 1, 5], [2, 3, 4, 5], MIXED),
    "neighbours": Case(THREE, [0, 1, 2, 3, 4], [5], {"obs_groups": {"actor": ["b", "a"], "critic": ["c"]}}),
    "nested": Case(NESTED, [0, 1, 2, 3, 4, 5], [6, 7]),
    "discrete": Case(PAIR, [2, 3, 4], [0, 1], actions=DISCRETE),
    "masked": Case(PAIR, [2, 3, 4], [0, 1], actions=DISCRETE, masked=True),
    "normalised": Case(THREE, [0, 1, 5], [2, 3, 4, 5], {**MIXED, "normalize_obs": True, "normalize_values": True}),
    "no hidden layer": Case(PAIR, [2, 3, 4], [0, 1], {"hidden_sizes": []}),
    "own torso": Case(PAIR, [2, 3, 4], [0, 1], {"torso": f"{__name__}.Cosine"}),
    "own torso, normalised": Case(THREE, [0, 1, 5], [2, 3, 4, 5], {**MIXED, "torso": f"{__name__}.Cosine"}),
    "lstm": Case(PAIR, [2, 3, 4], [0, 1], {"memory": "lstm", "normalize_obs": True}),
    "gru": Case(THREE, [0, 1, 5], [2, 3, 4, 5], {**MIXED, "memory": "gru"}, DISCRETE, masked=True),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def moved(obs: Tensor, columns: list[int]) -> Tensor:
    """Other numbers in these columns."""
    others = obs.clone()
    others[..., columns] = others[..., columns].flip(-1).neg() + 0.25
    return others


def hidden_from(case: Case, seen: list[int]) -> list[int]:
    return [column for column in range(case.space.shape[0]) if column not in seen]


def played(case: Case, policy: ActorCritic, obs: Tensor) -> list[Tensor]:
    """Everything that comes of acting on `[T, B, D]`, step by step: samples, modes, log-probabilities."""
    state, generator, out = policy.initial_state(B), torch.Generator().manual_seed(2), []
    for row in obs:
        pi, _ = policy.act(row, case.mask(B), state)
        action, after = policy.sample(row, generator, case.mask(B), state)
        mode, _ = policy.mode(row, case.mask(B), state)
        out += [action, mode, pi.log_prob(action), pi.entropy(), policy.env_actions(action)]
        state = after
    return out


def batch_of(case: Case, policy: ActorCritic, obs: Tensor, actions: Tensor) -> Batch:
    """`[T, B, D]` observations as rows or, with memory, as sequences in which episodes begin."""
    rows = obs.flatten(0, 1)
    nothing, sequences = torch.zeros(len(rows)), None
    state = policy.initial_state(B)
    if state is not None:
        starts = torch.zeros(T, B, dtype=torch.bool)
        starts[2, 1:3] = True
        sequences = Sequences(state, starts, torch.ones_like(starts))
    seen = rows if sequences is None else obs
    return Batch(seen, actions, nothing, nothing, nothing, action_mask=case.mask(len(rows)), sequences=sequences)


def rollout_of(policy: ActorCritic, obs: Tensor) -> Rollout:
    """`[T, B, D]` observations, of which one is the last of an episode that was cut."""
    no, zeros = torch.zeros(T - 1, B, dtype=torch.bool), torch.zeros(T - 1, B)
    cut = no.clone()
    cut[1, 2] = True
    return Rollout(
        obs,
        zeros,
        zeros,
        terminated=no,
        truncated=cut,
        valid=~no,
        timesteps=torch.arange(T - 1).unsqueeze(1).expand(T - 1, B),
        final_obs=obs[1, 2:3] * 0.5,
        final_rows=torch.tensor([B + 2]),
        episode_returns=zeros[0, :0],
        episode_lengths=zeros[0, :0],
        policy_version=0,
        env_steps=no.numel(),
        state=policy.initial_state(B),
    )


def sampled(case: Case) -> Tensor:
    """Actions `[T * B, ...]`."""
    if case.actions is DISCRETE:
        return torch.arange(T * B) % 2 * 2
    return torch.linspace(-0.9, 0.9, T * B * 2).view(-1, 2)


def all_values(policy: ActorCritic, case: Case, obs: Tensor) -> list[Tensor]:
    rows = batch_of(case, policy, obs, sampled(case))
    return [policy.v(obs[0]), policy.value(rows), policy(rows)[1], *policy.values(rollout_of(policy, obs))]


def test_what_the_actor_does_not_see_does_not_move_a_bit_of_it_and_moves_the_values(case):
    policy, obs = case.make(), case.observations(T * B).unflatten(0, (T, B))
    others = moved(obs, hidden_from(case, case.actor))
    with torch.no_grad():
        for one, other in zip(played(case, policy, obs), played(case, policy, others), strict=True):
            assert torch.equal(one, other)
        actions = sampled(case)
        rows = [batch_of(case, policy, x, actions) for x in (obs, others)]
        for of in (policy.policy, lambda batch: policy(batch)[0]):
            one, other = (of(batch).log_prob(actions) for batch in rows)
            assert torch.equal(one, other)
        assert torch.equal(policy.pi(obs[0]).log_prob(actions[:B]), policy.pi(others[0]).log_prob(actions[:B]))
        for one, other in zip(all_values(policy, case, obs), all_values(policy, case, others), strict=True):
            assert (one != other).all()


def test_what_the_critic_does_not_see_does_not_move_a_bit_of_it_and_moves_the_actor(case):
    policy, obs = case.make(), case.observations(T * B).unflatten(0, (T, B))
    others = moved(obs, hidden_from(case, case.critic))
    with torch.no_grad():
        for one, other in zip(all_values(policy, case, obs), all_values(policy, case, others), strict=True):
            assert torch.equal(one, other)
        actions = sampled(case)
        one, other = (policy.policy(batch_of(case, policy, x, actions)).log_prob(actions) for x in (obs, others))
        assert (one != other).all()


def test_the_numpy_path_sees_what_the_actor_sees(case):
    policy, obs = case.make(), case.observations(B)
    sampler = numpy_sampler(policy.actor_torso, policy.actor_head, policy.normalizer)
    if "torso" in case.options:
        assert sampler is None
        return
    assert sampler is not None
    if policy.has_memory:
        return
    with torch.inference_mode():
        drawn = []
        for x in (obs, moved(obs, hidden_from(case, case.actor)), moved(obs, case.actor)):
            with policy.acting():
                drawn.append(policy.sample(x, torch.Generator().manual_seed(1))[0])
        one, other, changed = drawn
        assert torch.equal(one, other)
        assert case.actions is DISCRETE or (one != changed).all()
        if case.actions is BOX:  # the noise is drawn before anything is seen, so the difference is that of the means
            means = [policy.pi(x).mode for x in (obs, moved(obs, case.actor))]
            torch.testing.assert_close(one - changed, means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_actor_and_critic_are_those_of_what_they_see_alone(case):
    """A policy of the actor's columns, and another of the critic's, with the same weights."""
    policy, obs = case.make(), case.observations(T * B).unflatten(0, (T, B))
    weights = {name.replace("torso.torso.", "torso."): x for name, x in policy.state_dict().items()}
    for part, columns in (("actor", case.actor), ("critic", case.critic)):
        alone = case.make(spaces.Box(case.space.low[columns], case.space.high[columns]), normalize_obs=False)
        own = {name: x for name, x in weights.items() if name.startswith((part, "value_normalizer"))}
        assert {name for name, _ in alone.named_parameters() if name.startswith(part)} <= own.keys()
        alone.load_state_dict(own, strict=False)
        seen = obs if policy.normalizer is None else policy.normalizer(obs.flatten(0, 1)).unflatten(0, (T, B))
        with torch.no_grad():
            if part == "actor":
                theirs, ours = played(case, alone, seen[..., columns]), played(case, policy, obs)
            else:
                theirs, ours = all_values(alone, case, seen[..., columns]), all_values(policy, case, obs)
                # Final observations are half the last ones before they are normalised.
                theirs, ours = (values[: 3 if policy.normalizer else 4] for values in (theirs, ours))
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_what_is_not_seen(case):
    policy, actions = case.make(), sampled(case)
    obs = case.observations(T * B).unflatten(0, (T, B)).requires_grad_()
    pi, values = policy(batch_of(case, policy, obs, actions))
    for loss, seen in ((-pi.log_prob(actions).mean(), case.actor), (values.square().mean(), case.critic)):
        (gradient,) = torch.autograd.grad(loss, obs, retain_graph=True)
        reached = (gradient != 0).flatten(0, 1).any(0)
        assert reached.nonzero().flatten().tolist() == seen


def test_the_names_of_a_pair_decide_and_of_another_dict_both_see_everything():
    assert ActorCritic(PAIR, BOX).groups == {"actor": ["policy"], "critic": ["critic"]}
    assert ActorCritic(PLAYGROUND, BOX).groups == {"actor": ["state"], "critic": ["privileged_state"]}
    assert ActorCritic(PAIR, BOX, critic=False).groups == {"actor": ["policy"]}
    everything = ActorCritic(THREE, BOX)
    assert everything.groups == {"actor": ["a", "b", "c"], "critic": ["a", "b", "c"]}
    assert ActorCritic(box(3), BOX).groups is None
    both = {"actor": ["policy", "critic"], "critic": ["critic", "policy"]}
    for policy in (everything, ActorCritic(PAIR, BOX, obs_groups=both)):
        torch.manual_seed(0)
        plain = ActorCritic(spaces.Box(policy.init_args["observation_space"].low, 2.0), BOX)
        assert {name: x.shape for name, x in plain.state_dict().items()} == {
            name: x.shape for name, x in policy.state_dict().items()
        }


CROWD = FlattenedBox(spaces.Dict(policy=box(1), critic=box(1), picture=box(4)))
OF_PAIR = "the groups of data.env_id are critic, policy"
WRONG = {
    "no groups": (box(3), {"obs_groups": {"actor": ["policy"], "critic": ["critic"]}}, "no Dict of groups; set it to"),
    "no dict": (
        FlattenedBox(spaces.Tuple([box(1), box(2)])),
        {"obs_groups": {"actor": ["0"], "critic": ["1"]}},
        "model.obs_groups: the observations of data.env_id are no Dict of groups; set it to null",
    ),
    "an unknown group": (
        PAIR,
        {"obs_groups": {"actor": ["policy"], "critic": ["policy", "state"]}},
        f"model.obs_groups.critic: there is no group 'state'; {OF_PAIR}",
    ),
    "an actor without a group": (
        PAIR,
        {"obs_groups": {"critic": ["critic"]}},
        f"model.obs_groups.actor: give a list of one group or more; {OF_PAIR}",
    ),
    "an actor with an empty list": (
        PAIR,
        {"obs_groups": {"actor": [], "critic": ["critic"]}},
        f"model.obs_groups.actor: give a list of one group or more; {OF_PAIR}",
    ),
    "a critic without a group": (
        PAIR,
        {"obs_groups": {"actor": ["policy"]}},
        f"model.obs_groups.critic: give a list of one group or more; {OF_PAIR}",
    ),
    "no list": (PAIR, {"obs_groups": {"actor": "policy", "critic": ["critic"]}}, "model.obs_groups.actor: give a list"),
    "somebody else": (
        PAIR,
        {"obs_groups": {"actor": ["policy"], "critic": ["critic"], "student": ["policy"]}},
        "model.obs_groups: 'student' is neither actor nor critic",
    ),
    "a shared torso": (
        PAIR,
        {"shared_torso": True},
        r"model.shared_torso: the actor sees \['policy'\] and the critic \['critic'\]; set it to false, or give both",
    ),
    "a pair among others": (
        CROWD,
        {},
        r"model.obs_groups: data.env_id has the groups policy and critic, and picture; say which ones actor and critic "
        r"see, as in {actor: \[policy\], critic: \[critic\]}",
    ),
}


@pytest.mark.parametrize(("space", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_line(space, options, message):
    with pytest.raises(UserError, match=message) as raised:
        PPO(observation_space=space, action_space=DISCRETE, **options)
    assert "\n" not in str(raised.value)


def test_an_algorithm_without_a_critic_leaves_its_groups_alone():
    for groups in (None, {"actor": ["policy"]}, {"actor": ["policy"], "critic": ["critic"]}):
        module = REINFORCE(observation_space=PAIR, action_space=DISCRETE, obs_groups=groups)
        assert module.network.groups == {"actor": ["policy"]}
    with pytest.raises(UserError, match=r"model\.obs_groups\.critic: there is no group 'state'"):
        REINFORCE(observation_space=PAIR, action_space=DISCRETE, obs_groups={"actor": ["policy"], "critic": ["state"]})


def saved(module: Any, path: Any) -> Any:
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(checkpoint)
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


@pytest.mark.parametrize("memory", [None, "lstm"])
@pytest.mark.parametrize("flat_space", [NESTED, LAST], ids=["first", "last"])
def test_a_trained_policy_is_played_with_the_groups_of_its_actor_alone(tmp_path, memory, flat_space):
    space = flat_space.original
    options = {"normalize_obs": True, "memory": memory, "hidden_sizes": [8], "memory_size": 4}
    module = A2C(observation_space=flat_space, action_space=BOX, **options)
    nn.init.normal_(module.network.actor_head.linear.weight, std=0.3)
    module.network.normalizer.statistics.update(torch.rand(20, 8))
    policy = pg_lightning.load(saved(module, tmp_path / "x.ckpt"))
    assert policy.observation_space == spaces.Dict({"policy": space["policy"]})
    space.seed(1)
    rows = [space.sample() for _ in range(6)]
    flat = torch.from_numpy(np.stack([spaces.flatten(space, row) for row in rows]))
    state, states, expected = policy.initial_state(), policy.initial_state(), module.network.initial_state(1)
    actions = []
    for t, row in enumerate(rows):
        with torch.no_grad():
            pi, expected = module.network.act(flat[t : t + 1], None, expected)
        action, state = policy.predict({"policy": row["policy"]}, state)
        whole, states = policy.predict({**row, "critic": np.full(2, np.nan)}, states)
        np.testing.assert_array_equal(action, whole)
        np.testing.assert_array_equal(action, module.actor.env_actions(pi.mode)[0])
        actions.append(action)
    assert len(np.unique(actions, axis=0)) == len(rows)
    many = {
        "kind": np.stack([row["policy"]["kind"] for row in rows]),
        "place": np.stack([row["policy"]["place"] for row in rows]),
    }
    if memory is None:
        np.testing.assert_allclose(policy.predict({"policy": many})[0], actions, atol=1e-6)
    with pytest.raises(UserError, match="obs: expected a dict with 'policy', got one without 'policy'"):
        policy.predict({"critic": np.zeros(2)}, policy.initial_state())


def test_groups_of_ones_own_come_back_from_a_checkpoint(tmp_path):
    module = PPO(observation_space=THREE, action_space=BOX, **MIXED)
    path = saved(module, tmp_path / "x.ckpt")
    assert pg_lightning.load(path).policy.groups == {"actor": ["a", "c"], "critic": ["b", "c"]}
    assert [*pg_lightning.load(path).observation_space] == ["a", "c"]
    again = PPO.load_from_checkpoint(path)
    assert again.network.groups == module.network.groups
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_checkpoint_of_other_groups_of_the_same_size_is_refused(tmp_path):
    other = {"actor": ["a"], "critic": ["b", "c"]}
    same = FlattenedBox(spaces.Dict({name: box(2) for name in "abc"}))
    path = saved(PPO(observation_space=same, action_space=BOX, obs_groups=other), tmp_path / "x.ckpt")
    assert PPO.load_from_checkpoint(path).network.groups == other
    changed = {"actor": ["b"], "critic": ["a", "c"]}
    with pytest.raises(
        UserError, match=r"model\.obs_groups: the checkpoint was trained with .*\['a'\].* not .*\['b'\]"
    ):
        PPO.load_from_checkpoint(path, obs_groups=changed)


def test_a_policy_from_before_there_were_groups_sees_everything():
    torch.manual_seed(0)
    before = ActorCritic(PAIR, BOX, obs_groups={role: ["policy", "critic"] for role in ("actor", "critic")})
    description = described_policy(before)
    del description["init_args"]["obs_groups"]
    policy = made_policy(description)
    assert policy.groups == {"actor": ["critic", "policy"], "critic": ["critic", "policy"]}
    policy.load_state_dict(before.state_dict())
