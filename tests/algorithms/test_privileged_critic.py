"""Training with a critic that sees more than the actor, and without one: in one process and in several."""

import shutil
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from compilations import compiled_graphs
from rollouts import BOX, GROUPS, make_rollout, weights_of
from rollouts import fit as learn
from run_files import read_metrics
from torch import Tensor

import pg_lightning
from pg_lightning import A2C, A3C, REINFORCE, TRPO, VTrace
from pg_lightning.strategies import HogwildStrategy

ENV_ID = "odd_envs:Privileged-v0"
SYMMETRIC = {"actor": ["policy"], "critic": ["policy"]}


def episodes(module: Any, count: int) -> tuple[Tensor, Tensor, float]:
    """Values and what followed, of steps that the policy plays, and the share of actions that are as shown."""
    env = gym.make(ENV_ID)
    values, returns, right = [], [], []
    for seed in range(count):
        obs, _ = env.reset(seed=seed)
        rewards, ended = [], False
        while not ended:
            x = torch.from_numpy(np.concatenate([obs["critic"], obs["policy"]]))[None]
            with torch.no_grad():
                action = module.network.pi(x).mode.item()
                values.append(module.network.v(x))
            right.append(action == obs["policy"][0])
            obs, reward, ended, *_ = env.step(action)
            rewards.append(reward)
        returns += np.cumsum(rewards[::-1])[::-1].tolist()
    return torch.cat(values), torch.tensor(returns), float(np.mean(right))


def test_a_critic_that_sees_what_decides_the_return_explains_it_and_one_that_does_not_cannot(fit):
    data = {"num_envs": 8, "num_steps": 40, "total_steps": 16_000, "eval_episodes": 1, "eval_every_steps": 16_000}
    model = {"lr": 3e-3, "gamma": 1.0, "gae_lambda": 0.95, "num_minibatches": 4}
    explained, actors = {}, {}
    for name, groups in (("privileged", None), ("symmetric", SYMMETRIC)):
        torch.manual_seed(1)
        module = fit(ENV_ID, data, obs_groups=groups, **model)
        values, returns, right = episodes(module, 100)
        explained[name] = 1 - float((returns - values).var() / returns.var())
        assert right > 0.95, name
        parts = module.network.named_parameters()
        actors[name] = {part: x.shape for part, x in parts if part.startswith("actor")}
    assert actors["privileged"] == actors["symmetric"]
    assert explained["privileged"] > 0.9
    assert explained["symmetric"] < 0.5


@pytest.mark.parametrize("algorithm", [A2C, TRPO, VTrace, REINFORCE])
@pytest.mark.parametrize("memory", [None, "gru"])
def test_every_algorithm_learns_with_groups(fit, algorithm, memory):
    options = {"num_minibatches": 1} if algorithm is TRPO else {}
    data = {"whole_episodes": True} if algorithm is REINFORCE else {}
    module = fit(ENV_ID, data, algorithm=algorithm, memory=memory, normalize_obs=True, **options)
    assert module.env_steps >= 256
    assert all(x.isfinite().all() for x in module.network.parameters())


def test_workers_that_share_weights_learn_as_one_does(fit):
    def weights(algorithm: Any, workers: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        trainer = {"strategy": HogwildStrategy(), "devices": workers} if workers else {}
        data = {"num_envs": 4, "num_steps": 8, "total_steps": 640, "eval_every_steps": 320, "eval_episodes": 1}
        module = fit(ENV_ID, data, algorithm=algorithm, trainer=trainer, lr=1e-2, normalize_obs=True)
        return {name: x.clone() for name, x in module.network.state_dict().items()}

    alone, one, two = weights(A2C, 0), weights(A3C, 1), weights(A3C, 2)
    for name, tensor in alone.items():
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=1e-6)
        assert two[name].isfinite().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_loss_teaches_the_same():
    def learned(**options: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        module = A2C(observation_space=GROUPS, action_space=BOX, hidden_sizes=[4], lr=0.01, **options)
        rollouts = [replace(make_rollout(seed=k), policy_version=k) for k in range(2)]
        return weights_of(learn(module, *rollouts))

    torch.compiler.reset()
    before = compiled_graphs()
    eager, compiled = learned(), learned(compile=True)
    assert 0 < compiled_graphs() - before <= 2, "not compiled, or ever anew"
    for name in eager:
        np.testing.assert_allclose(compiled[name], eager[name], rtol=0, atol=2e-6)


def test_from_the_command_line_to_a_loop_of_ones_own(cli, tmp_path):
    """With evaluations, a test of the best checkpoint, and a robot that has no privileged observation."""
    small = ["--data.num_envs", 4, "--data.num_steps", 16, "--data.total_steps", 256, "--data.eval_episodes", 2]
    groups = ["--model.obs_groups", "{actor: [policy], critic: [policy, critic]}"]
    finished = cli(
        tmp_path,
        "fit",
        "--config",
        "ppo_cartpole",
        "--data.env_id",
        ENV_ID,
        *small,
        *groups,
        "--trainer.log_every_n_steps",
        1,
    )
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / finished.stdout.partition("run:   ")[2].splitlines()[0]
    assert any("train/explained_variance" in row for row in read_metrics(run))
    trusted = ("--ckpt_path", run / "checkpoints/best.ckpt", "--config", run / "config.yaml")
    tested = cli(tmp_path, "test", *trusted, "--data.eval_episodes", 2)
    assert tested.returncode == 0, tested.stderr
    policy = pg_lightning.load(run)
    assert policy.policy.groups == {"actor": ["policy"], "critic": ["critic", "policy"]}
    env = gym.make(ENV_ID)
    obs, _ = env.reset(seed=0)
    ended = False
    while not ended:
        action, _ = policy.predict({"policy": obs["policy"]})
        assert action == policy.predict(obs)[0]
        obs, _, ended, *_ = env.step(action)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model.obs_groups", "{actor: [policy], critic: [state]}", "model.obs_groups.critic: there is no group 'st"),
        ("--model.obs_groups", "{actor: policy}", "model.obs_groups"),
        ("--model.shared_torso", "true", "model.shared_torso: the actor sees"),
    ],
)
def test_a_mistake_is_one_line_before_any_environment_steps(cli, tmp_path, monkeypatch, option, value, message):
    import odd_envs

    def refuse(*_: Any) -> Any:
        raise AssertionError("stepped")

    monkeypatch.setattr(odd_envs.Privileged, "step", refuse)
    finished = cli(tmp_path, "fit", "--config", "ppo_cartpole", "--data.env_id", ENV_ID, option, value)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.stderr
