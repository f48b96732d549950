"""`model.policy`: an algorithm improves any `Policy`, also one that shares nothing with the built-in network."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from doubles import LinearPolicy
from gymnasium import spaces
from torch import nn

import pg_lightning
from pg_lightning import A2C, A3C, PPO, REINFORCE, TRPO, OneStepActorCritic, VTrace
from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.run.checkpoints import SafeCheckpointIO
from pg_lightning.strategies import HogwildStrategy

LINEAR = "doubles.LinearPolicy"
SPACES = {"observation_space": spaces.Box(-1.0, 1.0, (4,)), "action_space": spaces.Discrete(2)}


@pytest.fixture
def learn(fit):
    """Trains for some updates on CartPole; returns the module."""

    def run(algorithm: Any, data: dict[str, Any] | None = None, trainer: Any = None, **model: Any) -> Any:
        small = {"num_envs": 4, "num_steps": 16, "total_steps": 256, "eval_every_steps": 128, "eval_episodes": 2}
        torch.manual_seed(0)
        own = {} if "hidden_sizes" in model else {"hidden_sizes": [64, 64]}  # the default
        return fit(
            "CartPole-v1", {**small, **(data or {})}, algorithm=algorithm, trainer=trainer, lr=1e-2, **own, **model
        )

    return run


def weights_of(module: Any) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in module.network.state_dict().items()}


CASES = {
    "A2C": (A2C, {}, {}),
    "one step": (OneStepActorCritic, {"num_steps": 1}, {}),
    "PPO": (PPO, {}, {"num_minibatches": 2, "scale_rewards": True}),
    "PPO, next_step": (PPO, {"autoreset_mode": "next_step"}, {"critic_optimizer": "rmsprop"}),
    "PPO, overlap": (PPO, {"overlap": True}, {}),
    "REINFORCE": (REINFORCE, {"whole_episodes": True}, {}),
    "TRPO": (TRPO, {}, {"num_minibatches": 1}),
    "V-trace": (VTrace, {}, {}),
    "A3C": (A3C, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_improves_it(learn, name):
    algorithm, data, options = CASES[name]
    module = learn(algorithm, data, policy={"class_path": LINEAR, "init_args": {"scale": 0.2}}, **options)
    assert isinstance(module.network, LinearPolicy)
    torch.manual_seed(0)
    before = LinearPolicy(module.network.init_args["observation_space"], module.network.init_args["action_space"], 0.2)
    for part, weights in weights_of(module).items():
        assert weights.isfinite().all()
        if module.has_critic or not part.startswith("baseline"):
            assert not torch.equal(weights, before.state_dict()[part]), part
    assert module.evaluation[0].shape == (2,)


def test_workers_that_share_its_weights_learn(learn):
    trainer = {"strategy": HogwildStrategy(), "devices": 2}
    assert all(x.isfinite().all() for x in weights_of(learn(A3C, trainer=trainer, policy=LINEAR)).values())


def test_the_built_in_network_by_its_class_path_learns_the_same(learn):
    path = "pg_lightning.policies.ActorCritic"
    own = learn(PPO, policy={"class_path": path, "init_args": {"hidden_sizes": [8], "normalize_obs": True}})
    built_in = learn(PPO, hidden_sizes=[8], normalize_obs=True)
    assert weights_of(own).keys() == weights_of(built_in).keys()
    for name, weights in weights_of(own).items():
        assert torch.equal(weights, weights_of(built_in)[name]), name
    assert own.network.init_args.keys() == built_in.network.init_args.keys()


class Doubtful(ActorCritic):
    """One of the built-in kind with arguments of its own."""

    def __init__(self, observation_space: Any, action_space: Any, width: int = 8) -> None:
        super().__init__(observation_space, action_space, hidden_sizes=[width])


def saved(module: Any, path: Any) -> Any:
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(checkpoint)
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


@pytest.mark.parametrize(
    "policy",
    [
        {"class_path": LINEAR, "init_args": {"scale": 3.0}},
        {"class_path": f"{__name__}.Doubtful", "init_args": {"width": 6}},
    ],
    ids=["linear", "subclass"],
)
def test_it_comes_back_from_a_checkpoint_and_plays(tmp_path, policy):
    module = PPO(**SPACES, policy=policy)
    path = saved(module, tmp_path / "x.ckpt")
    again = PPO.load_from_checkpoint(path)
    assert type(again.network) is type(module.network)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    loaded = pg_lightning.load(path)
    assert type(loaded.policy) is type(module.network)
    obs = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    actions, _ = loaded.predict(obs)
    with torch.no_grad():
        np.testing.assert_array_equal(actions, module.network.mode(torch.from_numpy(obs))[0])
    assert len(set(actions.tolist())) == 2 or isinstance(module.network, Doubtful)


class Half(nn.Module):
    """Not all that a policy has."""

    has_memory = False

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def sample(self, *_: Any) -> None:
        """Nothing."""


WRONG = {
    "a network option": (
        {"policy": LINEAR, "hidden_sizes": [8]},
        "model.hidden_sizes: an option of the built-in network",
    ),
    "memory": ({"policy": LINEAR, "memory": "gru"}, "model.memory: an option of the built-in network, which model.pol"),
    "no such class": ({"policy": "doubles.Nothing"}, "model.policy: cannot import 'doubles.Nothing'"),
    "a function": ({"policy": "os.mkdir"}, "model.policy: 'mkdir' is not a class of torch modules; it is not called"),
    "another module": (
        {"policy": f"{__name__}.Half"},
        "model.policy: Half has no parameter_groups, initial_state, act",
    ),
    "an argument": (
        {"policy": {"class_path": LINEAR, "init_args": {"size": 3}}},
        r"model.policy: cannot create LinearPolicy\(observation_space, action_space, \*\*init_args\): TypeError",
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_policy_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as raised:
        PPO(**SPACES, **options)
    assert "\n" not in str(raised.value)


def test_from_the_command_line(cli, tmp_path):
    small = ["--data.num_envs", 4, "--data.num_steps", 16, "--data.total_steps", 256, "--data.eval_episodes", 2]
    config = tmp_path / "own.yaml"
    config.write_text(
        "model:\n  class_path: pg_lightning.PPO\n  init_args:\n"
        f"    policy: {{class_path: {LINEAR}, init_args: {{scale: 0.5}}}}\ndata:\n  env_id: CartPole-v1\n"
    )
    finished = cli(tmp_path, "fit", "--config", config, *small)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / finished.stdout.partition("run:   ")[2].splitlines()[0]
    path = run / "checkpoints/last.ckpt"
    trusted = ("--ckpt_path", path, "--config", run / "config.yaml")  # the class is not installed
    assert cli(tmp_path, "test", *trusted, "--data.eval_episodes", 2).returncode == 0
    on = cli(tmp_path, "fit", "--config", config, *small, "--data.total_steps", 512, "--ckpt_path", path)
    assert on.returncode == 0, on.stderr
    assert gym.make("CartPole-v1").action_space.contains(pg_lightning.load(run).predict(np.zeros(4))[0])
    exported = cli(tmp_path, "export", *trusted, "--format", "torch")
    assert exported.stderr.strip().splitlines()[-1].startswith("error: model.policy: export supports only the built-in")
    assert exported.returncode != 0


def test_diagnose_cannot_give_it_a_new_critic(cli, tmp_path):
    arguments = ["--config", "a2c_cartpole", "--model.policy", LINEAR, "--batches", 8, "--episodes", 2]
    finished = cli(tmp_path, "diagnose", *arguments)
    assert finished.stderr.strip().splitlines()[-1].startswith("error: model.policy: only the built-in network can get")
    assert finished.returncode != 0
