"""A checkpoint stands alone: its policy acts in a loop of one's own, without Trainer, data or Lightning."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import pg_lightning
from pg_lightning.algorithms import A2C, A3C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline
from pg_lightning.envs import make_env
from pg_lightning.errors import UserError
from pg_lightning.policies.heads import CategoricalHead
from pg_lightning.policies.trained import TrainedPolicy
from pg_lightning.run.checkpoints import SafeCheckpointIO
from pg_lightning.spaces import FlattenedBox

INF = np.inf
VECTOR = spaces.Box(-1.0, 1.0, (3,))
NESTED = spaces.Dict(
    position=spaces.Box(-2.0, 2.0, (2, 2)),
    kind=spaces.Discrete(3, start=1),
    parts=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])]),
)
OBSERVATIONS = {
    "vector": VECTOR,
    "float64": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (36, 40, 2), np.uint8),
    "one number": spaces.Box(-1.0, 1.0, ()),
    "discrete": spaces.Discrete(5, start=-2),
    "multi_binary": spaces.MultiBinary([2, 3]),
    "dict": NESTED,
    "tuple": spaces.Tuple([spaces.Discrete(3), VECTOR]),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=2),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -5]]),
    "multi_binary": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-0.1, 0.1, (2, 2)),
    "box64": spaces.Box(-1, 2, (2,), np.float64),
    "unbounded": spaces.Box(-INF, INF, (2,)),
}
FLATTENED = ("one number", "discrete", "multi_binary", "dict", "tuple")


def module_for(obs: spaces.Space, action: spaces.Space, algorithm: Any = PPO, **options: Any) -> Any:
    """An algorithm with a policy that has opinions, and statistics of its observations if it keeps any."""
    flat = not isinstance(obs, spaces.Box) or not obs.shape
    module = algorithm(
        observation_space=FlattenedBox(obs) if flat else obs,
        action_space=action,
        **{"hidden_sizes": [8], "memory_size": 4, **options},
    )
    with torch.no_grad():
        module.network.actor_head.linear.weight *= 100
        if module.network.normalizer is not None:
            shape = module.network.normalizer.statistics.mean.shape
            module.network.normalizer.statistics.update(0.1 * torch.randn(20, *shape) + 0.5)
    return module


def saved(module: Any, path: Path) -> Path:
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(checkpoint)
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def trained(tmp_path):
    """Saves an algorithm and loads its policy; returns the algorithm and the policy."""

    def make(obs: spaces.Space = VECTOR, action: spaces.Space | None = None, **options: Any) -> Any:
        module = module_for(obs, action or ACTIONS["discrete"], **options)
        return module, pg_lightning.load(saved(module, tmp_path / "policy.ckpt"))

    return make


def stacked(space: spaces.Space, rows: list[Any]) -> Any:
    """Observations as a vector environment gives them."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [row[key] for row in rows]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [row[i] for row in rows]) for i, part in enumerate(space.spaces))
    return np.stack(rows)


def test_in_a_fresh_process_a_run_plays_without_lightning_or_data(run, tmp_path):
    code = f"""
import json, sys
import gymnasium as gym
import pg_lightning

policy = pg_lightning.load({str(run)!r})
env = gym.make("CartPole-v1")
obs, info = env.reset(seed=7)
ended, actions, state = False, [], policy.initial_state()
while not ended:
    action, state = policy.predict(obs, state)
    obs, reward, terminated, truncated, info = env.step(action)
    ended = terminated or truncated
    actions.append(int(action))
mine = ["lightning", "torchmetrics", "pg_lightning.data", "pg_lightning.envs", "pg_lightning.algorithms"]
print(json.dumps([actions, policy.env_steps, [name for name in mine if name in sys.modules]]))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    actions, env_steps, imported = json.loads(told.stdout)
    assert imported == []
    module = PPO.load_from_checkpoint(run / "checkpoints/best.ckpt").eval()
    assert module.env_steps == env_steps > 0
    assert module.network.normalizer.statistics.count > 0
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=7)
    for action in actions:
        expected = module.network.act(torch.from_numpy(obs)[None])[0].mode.item()
        assert action == expected
        obs, *_ = env.step(action)


@pytest.mark.parametrize("obs", OBSERVATIONS)
@pytest.mark.parametrize("memory", [None, "gru"])
def test_it_takes_the_observations_of_the_environment_one_or_many(trained, obs, memory):
    space = OBSERVATIONS[obs]
    module, policy = trained(space, ACTIONS["box"], normalize_obs=obs != "image", memory=memory)
    assert policy.observation_space == space
    space.seed(3)
    rows = [space.sample() for _ in range(5)]
    flat = np.stack([spaces.flatten(space, row) for row in rows]) if obs in FLATTENED else np.stack(rows)
    with torch.no_grad():
        pi, after = module.network.act(torch.from_numpy(flat), None, module.network.initial_state(5))
        expected = module.actor.env_actions(pi.mode).numpy()
    actions, states = policy.predict(stacked(space, rows), policy.initial_state(5))
    np.testing.assert_array_equal(actions, expected)
    assert len(np.unique(actions, axis=0)) > 1, "the policy does not look at its observations"
    for i, row in enumerate(rows):
        action, state = policy.predict(row, policy.initial_state())
        np.testing.assert_allclose(action, expected[i], atol=1e-6)
        if memory is None:
            assert state is states is None
        else:
            assert state.shape == policy.initial_state().shape
            np.testing.assert_allclose(state, states[i], atol=1e-6)
            np.testing.assert_allclose(state, after[i], atol=1e-6)


KINDS = [
    *((name, {}) for name in ACTIONS),
    *((name, {"head": head}) for name in ("box", "box64") for head in ("squashed_gaussian", "beta")),
]


@pytest.mark.parametrize(("action", "options"), KINDS, ids=str)
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_those_of_the_environment(trained, action, deterministic, options):
    space = ACTIONS[action]
    _, policy = trained(VECTOR, space, **options)
    obs = np.random.default_rng(0).normal(size=(20, 3))
    actions, _ = policy.predict(obs, deterministic=deterministic)
    assert actions.dtype == space.dtype
    for given in [policy.predict(obs[0], deterministic=deterministic)[0], *actions]:
        assert space.contains(given), given


def test_samples_follow_the_seed(trained, tmp_path):
    trained()
    obs = np.zeros((50, 3))

    def sampled(seed: int) -> list[np.ndarray]:
        policy = pg_lightning.load(tmp_path / "policy.ckpt", seed=seed)
        return [policy.predict(obs, deterministic=False)[0] for _ in range(2)]

    (one, two), (again, _), (other, _) = sampled(0), sampled(0), sampled(1)
    assert (one == again).all()
    assert (one != two).any()
    assert (one != other).any()


def test_a_recurrent_policy_is_carried_from_step_to_step(trained):
    module, policy = trained(VECTOR, ACTIONS["box"], memory="lstm")
    obs = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    state, expected = policy.initial_state(2), module.network.initial_state(2)
    for t in range(6):
        if t == 3:  # an episode of the second environment has ended
            state[1] = 0
            expected = expected * torch.tensor([[1.0], [0.0]])
        actions, state = policy.predict(obs[t], state)
        with torch.no_grad():
            pi, expected = module.network.act(torch.from_numpy(obs[t]), None, expected)
        np.testing.assert_array_equal(actions, module.actor.env_actions(pi.mode).detach())
        np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_a_mask_forbids_is_not_played(trained, deterministic):
    _, policy = trained(VECTOR, ACTIONS["discrete"])
    obs = np.random.default_rng(0).normal(size=(30, 3))
    masks = np.random.default_rng(1).integers(0, 2, (30, 3))
    masks[:, 0] |= ~masks.any(1)
    unmasked, _ = policy.predict(obs)
    assert not masks[np.arange(30), unmasked - 2].all()
    actions, _ = policy.predict(obs, action_mask=masks, deterministic=deterministic)
    assert masks[np.arange(30), actions - 2].all()
    for i in range(30):
        action, _ = policy.predict(obs[i], action_mask=masks[i].astype(bool), deterministic=deterministic)
        assert masks[i, action - 2]


def test_it_acts_in_the_precision_of_double_weights(tmp_path):
    module = module_for(VECTOR, ACTIONS["box64"]).double()
    policy = pg_lightning.load(saved(module, tmp_path / "policy.ckpt"))
    obs = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    expected = module.actor.env_actions(module.network.act(torch.from_numpy(obs))[0].mode).detach()
    np.testing.assert_array_equal(policy.predict(obs)[0], expected)


# Wrong arguments of a policy on NESTED (recurrent or not) or on an image.
ROW = {"position": np.zeros((2, 2)), "kind": 1, "parts": (np.zeros(2, np.int8), np.array([0, 0]))}
WRONG = {
    "shape": ("vector", {"obs": np.zeros(4)}, r"obs: expected shape \[3\], or \[N, 3\] of N observations, got \[4\]"),
    "two batches": ("vector", {"obs": np.zeros((2, 2, 3))}, r"obs: expected shape \[3\].*got \[2, 2, 3\]"),
    "floats for bytes": ("image", {"obs": np.zeros((36, 40, 2))}, "obs: expected dtype uint8, got float64"),
    "words": ("vector", {"obs": ["a", "b", "c"]}, "obs: expected dtype float32, got <U1"),
    "no dict": ("dict", {"obs": np.zeros(3)}, "obs: expected a dict with 'position', 'kind', 'parts', got ndarray"),
    "a part is missing": ("dict", {"obs": {"kind": 1}}, "obs: expected a dict with .*, got one without 'position'"),
    "shape of a part": (
        "dict",
        {"obs": ROW | {"position": np.zeros(2)}},
        r"obs\['position'\]: expected shape \[2, 2\]",
    ),
    "dtype of a part": ("dict", {"obs": ROW | {"kind": 1.0}}, r"obs\['kind'\]: expected dtype int64, got float64"),
    "no such category": ("dict", {"obs": ROW | {"kind": 0}}, r"obs\['kind'\]: expected observations of Discrete\(3"),
    "half a batch": ("dict", {"obs": ROW | {"kind": np.ones(2, int)}}, "obs: its parts disagree on the number"),
    "a tuple of one": ("dict", {"obs": ROW | {"parts": (np.zeros(2, np.int8),)}}, r"obs\['parts'\]: expected a tuple"),
    "a state": ("vector", {"obs": np.zeros(3), "state": np.zeros(4)}, "state: this policy is not recurrent"),
    "no state": ("recurrent", {"obs": np.zeros(3)}, "state: this policy is recurrent; pass initial_state()"),
    "a state of many": (
        "recurrent",
        {"obs": np.zeros(3), "state": np.zeros((1, 8))},
        r"state: expected shape \[8\], got \[1, 8\]",
    ),
    "a state of one": (
        "recurrent",
        {"obs": np.zeros((2, 3)), "state": np.zeros(8)},
        r"state: expected shape \[2, 8\], got \[8\]",
    ),
    "a mask": (
        "vector",
        {"obs": np.zeros(3), "action_mask": np.ones(2)},
        r"action_mask: expected one entry per choice, \[1, 3\]",
    ),
}


@pytest.mark.parametrize(("kind", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line(trained, kind, arguments, message):
    obs = OBSERVATIONS.get(kind, VECTOR)
    _, policy = trained(obs, memory="gru" if kind == "recurrent" else None)
    with pytest.raises(UserError, match=message) as raised:
        policy.predict(**arguments)
    assert "\n" not in str(raised.value)


def test_of_a_run_the_best_is_loaded_else_the_last(tmp_path):
    folder = tmp_path / "version_0"
    for name in ("last", "best"):
        module = module_for(VECTOR, ACTIONS["discrete"])
        module.progress.env_steps = len(name + name) if name == "best" else 5
        saved(module, folder / "checkpoints" / f"{name}.ckpt")
    assert pg_lightning.load(str(folder)).env_steps == 8
    assert pg_lightning.load(folder / "checkpoints").env_steps == 8
    (folder / "checkpoints/best.ckpt").unlink()
    assert pg_lightning.load(folder).env_steps == 5
    (folder / "checkpoints/last.ckpt").unlink()
    with pytest.raises(UserError, match=r"path: no best\.ckpt or last\.ckpt in .*; give a checkpoint"):
        pg_lightning.load(folder)
    with pytest.raises(UserError, match="path: no file or folder"):
        pg_lightning.load(tmp_path / "nothing")


def test_what_is_no_checkpoint_or_an_old_one_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="path: cannot read"):
        pg_lightning.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is not a checkpoint of pg_lightning"):
        pg_lightning.load(path)
    module = module_for(VECTOR, ACTIONS["discrete"])
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    del checkpoint["pg_lightning"]["policy"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="from before checkpoints described their policy; resume") as raised:
        pg_lightning.load(path)
    assert "\n" not in str(raised.value)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = saved(module_for(VECTOR, ACTIONS["discrete"]), tmp_path / "x.ckpt")
    content = bytearray(path.read_bytes())
    weight = torch.load(path)["state_dict"]["network.critic_head.weight"].numpy().tobytes()
    place = content.index(weight)
    content[place : place + len(weight)] = bytes(len(weight))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"path: cannot read .*: damaged at"):
        pg_lightning.load(path)


class Cosine(nn.Module):
    """A torso of one's own."""

    def __init__(self, observation_space: Any, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(observation_space.shape[0], width)
        self.out_features = width

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layer(obs).cos()


class Upside(CategoricalHead):
    """A head of one's own."""

    def distribution(self, outputs: torch.Tensor, action_mask: torch.Tensor | None = None) -> Any:
        return super().distribution(-outputs, action_mask)


OWN = {"class_path": f"{__name__}.Cosine", "init_args": {"width": 6}}


def test_torsos_and_heads_of_ones_own_come_back(trained):
    module, policy = trained(torso=OWN, head=f"{__name__}.Upside")
    assert isinstance(policy.policy.actor_torso, Cosine)
    assert isinstance(policy.policy.actor_head, Upside)
    obs = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    expected = module.actor.env_actions(module.network.act(torch.from_numpy(obs))[0].mode)
    np.testing.assert_array_equal(policy.predict(obs)[0], expected)


def test_a_class_that_is_not_there_any_more_is_named(tmp_path):
    module = module_for(VECTOR, ACTIONS["discrete"], torso=OWN)
    module.network.init_args["torso"] = {**OWN, "class_path": "nowhere.Cosine"}
    with pytest.raises(UserError, match=r"model\.torso: cannot import 'nowhere\.Cosine'"):
        pg_lightning.load(saved(module, tmp_path / "policy.ckpt"))


@pytest.mark.parametrize("part", ["torso", "head", "policy"])
def test_a_checkpoint_cannot_have_anything_called_but_modules(tmp_path, part):
    """It is read without trust: what it names as a class may be any function."""
    module = module_for(VECTOR, ACTIONS["discrete"])
    call = {"class_path": "os.mkdir", "init_args": {}}
    if part != "policy":
        module.network.init_args[part] = call
    path = saved(module, tmp_path / "policy.ckpt")
    if part == "policy":
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["pg_lightning"]["policy"]["class_path"] = "os.mkdir"
        torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"mkdir.* (is not a class of torch modules|must be a Head)"):
        pg_lightning.load(path)


class Odd:
    """No plain type."""


def test_arguments_that_are_no_plain_types_are_named_when_it_is_loaded_not_when_it_is_saved(tmp_path):
    module = module_for(VECTOR, ACTIONS["discrete"])
    module.network.init_args["torso"] = {"class_path": f"{__name__}.Cosine", "init_args": {"width": Odd()}}
    with pytest.raises(UserError, match=r"model\.torso\.init_args\.width: .*Odd object.* is not of a plain type"):
        pg_lightning.load(saved(module, tmp_path / "policy.ckpt"))


def test_a_network_of_another_kind_does_not_keep_training_from_being_saved(tmp_path):
    module = module_for(VECTOR, ACTIONS["discrete"])
    module.network = nn.Linear(3, 2)
    with pytest.raises(UserError, match="policy: a Linear is not described by its checkpoint; only an ActorCritic and"):
        pg_lightning.load(saved(module, tmp_path / "policy.ckpt"))


ALGORITHMS = [A2C, A3C, PPO, REINFORCE, OneStepActorCritic, REINFORCEBaseline]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_an_algorithm_comes_back_from_its_checkpoint_alone(algorithm, tmp_path):
    options = {"lr": 0.25, "gamma": 0.5, "hidden_sizes": [7], "activation": "relu", "total_steps": 123}
    module = module_for(NESTED, ACTIONS["multi_discrete"], algorithm, **options)
    module.progress.env_steps = 77
    path = saved(module, tmp_path / "x.ckpt")
    loaded = algorithm.load_from_checkpoint(path)
    assert type(loaded) is algorithm
    assert (loaded.learner.settings.lr, loaded.gamma, loaded.total_steps, loaded.env_steps) == (0.25, 0.5, 123, 77)
    assert loaded.init_args["observation_space"].keys() >= {"space", "original"}
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, loaded.state_dict()[name], rtol=0, atol=0, equal_nan=True)
    assert algorithm.load_from_checkpoint(path, lr=0.125).learner.settings.lr == 0.125
    again = pg_lightning.load(saved(loaded, tmp_path / "again.ckpt"))
    assert again.observation_space == NESTED
    assert again.action_space == ACTIONS["multi_discrete"]


def test_the_environment_of_a_dict_says_what_it_was_before_it_was_flattened():
    env = make_env("pg_lightning.envs.tasks.toy:pg_lightning/ContextualReward-v0", {"observation": "dict"})
    assert isinstance(env.observation_space, FlattenedBox)
    assert isinstance(env.observation_space.original, spaces.Dict)
    assert env.observation_space == spaces.flatten_space(env.observation_space.original)
    env.close()


def test_a_policy_that_was_trained_on_dicts_plays_them(fit, quiet_trainer, tmp_path):
    env_id = "pg_lightning.envs.tasks.toy:pg_lightning/ContextualReward-v0"
    module = fit(env_id, {"env_kwargs": {"observation": "dict"}})
    policy = pg_lightning.load(saved(module, tmp_path / "x.ckpt"))
    assert isinstance(policy, TrainedPolicy)
    env = gym.make("pg_lightning/ContextualReward-v0", observation="dict")
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.predict(obs)[0])
