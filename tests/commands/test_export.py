"""`export`: a policy as a file that says what its checkpoint says, and a card that says what the file is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_files import load
from torch import nn

from pg_lightning.algorithms import PPO
from pg_lightning.commands import export as command
from pg_lightning.commands.trainer import PolicyTrainer
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs.contract import SingleStep
from pg_lightning.errors import UserError
from pg_lightning.policies.distributions import Categorical
from pg_lightning.policies.heads import CategoricalHead
from pg_lightning.run.config_file import trained_from

ROOT = Path(__file__).parents[2]
INF = np.inf
DEEP = spaces.Box(-1, 1, (2, 2))
OBSERVATIONS = {
    "box": spaces.Box(-5, 5, (3,), np.float64),
    "image": spaces.Box(0, 255, (36, 36, 2), np.uint8),
    "dict": spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2, 2))),
    "groups": spaces.Dict(critic=spaces.Box(-9, 9, (2,)), policy=spaces.Dict(a=spaces.Discrete(3), b=DEEP)),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=2),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -5]]),
    "multi_binary": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-1, 2, (2, 2), np.float32),
    "box64": spaces.Box(-1, 2, (2,), np.float64),
    "unbounded": spaces.Box(-INF, INF, (2,), np.float32),
}


class Any_(gym.Env[Any, Any]):
    """Episodes of six steps with observations drawn at random, and masks if asked for."""

    def __init__(self, obs: str = "box", action: str = "discrete", masked: bool = False) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[obs], ACTIONS[action]
        self.masked = masked

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), self._info()

    def step(self, action: Any) -> SingleStep:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 6, False, self._info()

    def _info(self) -> dict[str, Any]:
        if not self.masked:
            return {}
        size = int(getattr(self.action_space, "n", np.sum(getattr(self.action_space, "nvec", 0))))
        return {"action_mask": (self.np_random.random(size) < 0.6).astype(np.int8)}


gym.register("Any-v0", entry_point=Any_)


class Cosine(nn.Module):
    """A torso of one's own."""

    out_features = 3

    def __init__(self, observation_space: Any, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return (self.scale * obs).cos()


class Undecided(Cosine):
    """A torso that looks at its numbers before it decides what to compute, which no graph can."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs.cos() if obs.sum() > 0 else obs.sin()


class Tempered(CategoricalHead):
    """A head of one's own."""

    def forward(self, features: torch.Tensor, action_mask: torch.Tensor | None = None) -> Categorical:
        return Categorical(super().forward(features, action_mask).logits / 2)


@pytest.fixture
def exported(quiet_trainer, tmp_path):
    """Trains a policy a little, makes it one with opinions, and exports it; returns it and the file."""

    def make(format: str, env: dict[str, Any], **model: Any) -> tuple[PPO, Path]:
        data = RolloutDataModule("Any-v0", env_kwargs=env, num_envs=4, num_steps=8, total_steps=32, eval_episodes=2)
        spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
        short = {"hidden_sizes": [16], "num_epochs": 1, "num_minibatches": 1, "total_steps": 32}
        module = PPO(**spaces, **{**short, **model})
        trainer = quiet_trainer()
        trainer.fit(module, datamodule=data)
        with torch.no_grad():
            module.network.actor_head.linear.weight *= 30
        checkpoint = tmp_path / "checkpoints/last.ckpt"
        trainer.save_checkpoint(checkpoint)
        fresh = PPO(**spaces, **{"hidden_sizes": [16], **model})
        trainer = PolicyTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.export(fresh, data, str(checkpoint), format)
        return module.eval(), next(path for path in (tmp_path / "export").iterdir() if path.suffix != ".json")

    return make


KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "discrete": ("torch", {}, {"normalize_obs": True}, ["logits"]),
    "masked": ("torch", {"masked": True}, {}, ["logits"]),
    "multi_binary": ("torch", {"action": "multi_binary"}, {"layer_norm": True}, ["logits"]),
    "gaussian": ("torch", {"action": "box"}, {"normalize_obs": True}, ["mean", "log_std"]),
    "unbounded": ("torch", {"action": "unbounded"}, {"state_dependent_std": True}, ["mean", "log_std"]),
    "squashed": ("torch", {"action": "box"}, {"head": "squashed_gaussian"}, ["mean", "log_std"]),
    "beta": ("onnx", {"action": "box64"}, {"head": "beta"}, ["alpha", "beta"]),
    "images": ("torch", {"obs": "image"}, {"torso": "nature_cnn", "shared_torso": True}, ["logits"]),
    "lstm": ("torch", {}, {"memory": "lstm"}, ["logits", "next_state"]),
    "gru": ("onnx", {"action": "multi_discrete", "masked": True}, {"memory": "gru"}, ["logits", "next_state"]),
    "dict": ("torch", {"obs": "dict"}, {}, ["logits"]),
    "own": (
        "torch",
        {},
        {"torso": {"class_path": "test_export.Cosine", "init_args": {"scale": 2.0}}, "head": "test_export.Tempered"},
        ["logits"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_says_what_the_checkpoint_says_in_batches_of_any_size(exported, kind):
    """Through an episode of several steps, with the memory that the file itself gives."""
    format, env_kwargs, model, names = KINDS[kind]
    module, file = exported(format, env_kwargs, **model)
    policy = command.loaded(file.read_bytes(), format)
    vector = gym.make_vec("Any-v0", 7, **env_kwargs)
    head = module.network.actor_head
    for B in (1, 2, 7):
        obs, info = vector.reset(seed=B)
        state = module.network.initial_state(B)
        kept = None if state is None else torch.zeros(B, module.network.actor_memory.state_size)
        for _ in range(4):
            if isinstance(obs, dict):
                obs = _flattened(vector, obs)
            x = torch.as_tensor(obs if obs.dtype == np.uint8 else obs.astype(np.float32))[:B]
            mask = torch.as_tensor(info["action_mask"])[:B] if "action_mask" in info else None
            with torch.no_grad():
                pi, state = module.network.act(x, mask, state)
                mode = head.env_actions(pi.mode)
            given = {"obs": x, "action_mask": mask, "state": kept}
            found = policy({name: value for name, value in given.items() if value is not None})
            assert list(found) == ["action", *names]
            kept = found.get("next_state")
            torch.testing.assert_close(found["action"], mode, atol=1e-5, rtol=1e-5)
            assert all(action in vector.single_action_space for action in found["action"].numpy())
            for name in set(names) - {"next_state"}:
                theirs = _parameter(pi, name)
                torch.testing.assert_close(found[name], theirs.expand_as(found[name]), atol=1e-5, rtol=1e-5)
            obs, _, _, _, info = vector.step(vector.action_space.sample())


@pytest.mark.parametrize(("format", "memory"), [("torch", None), ("onnx", None), ("torch", "lstm")])
def test_the_file_takes_what_the_actor_sees_and_no_privileged_observation(exported, format, memory):
    module, file = exported(format, {"obs": "groups"}, normalize_obs=True, memory=memory)
    card = json.loads(file.with_name(f"{file.name}.json").read_text())
    seen = spaces.Dict({"policy": OBSERVATIONS["groups"]["policy"]})
    assert (card["flattened_from"], card["obs_groups"]) == (str(seen), ["policy"])
    assert card["inputs"]["obs"]["shape"] == ["batch", spaces.flatdim(seen)]
    policy = command.loaded(file.read_bytes(), format)
    space = OBSERVATIONS["groups"]
    space.seed(2)
    given, state = {}, module.network.initial_state(1)
    if memory is not None:
        given["state"] = torch.zeros(1, module.network.actor_memory.state_size)
    for _ in range(6):
        obs = space.sample()
        with torch.no_grad():
            whole = torch.from_numpy(spaces.flatten(space, obs)).float()[None]
            pi, state = module.network.act(whole, None, state)
        x = torch.from_numpy(spaces.flatten(seen, {"policy": obs["policy"]})).float()[None]
        found = policy({"obs": x, **given})
        torch.testing.assert_close(found["logits"], pi.logits, atol=1e-5, rtol=1e-5)
        given = {"state": found["next_state"]} if memory is not None else {}


def _flattened(vector: Any, obs: dict[str, Any]) -> np.ndarray:
    rows = [{name: values[n] for name, values in obs.items()} for n in range(vector.num_envs)]
    return np.stack([spaces.flatten(vector.single_observation_space, row) for row in rows])


def _parameter(pi: Any, name: str) -> torch.Tensor:
    inner = getattr(pi, "choices", getattr(pi, "normal", pi))
    return getattr(inner, name)


@pytest.fixture(scope="module")
def cartpole(run, cli, tmp_path_factory):
    """A folder with a copy of the shared run, of which `export` was asked for; the run's folder, and what was said."""
    folder = tmp_path_factory.mktemp("export")
    copy = folder / "runs/ppo_cartpole/version_0"
    shutil.copytree(run, copy)
    shutil.copy(copy / "checkpoints/last.ckpt", copy / "checkpoints/best.ckpt")
    finished = cli(folder, "export", "--ckpt_path", "runs/ppo_cartpole/version_0/checkpoints/best.ckpt")
    assert finished.returncode == 0, finished.stderr
    return copy, finished.stdout


def _without(modules: str, code: str, folder: Path) -> str:
    """What a Python process prints in which these modules are not to be had."""
    blocked = f"import sys\nfor name in {modules.split()!r}: sys.modules[name] = None\n"
    arguments = [sys.executable, "-c", blocked + code]
    finished = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def _snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), flags=re.DOTALL)


def test_the_page_plays_cartpole_without_torch_as_the_checkpoint_does(cartpole):
    printed = _without("torch lightning pg_lightning", _snippets()[0], cartpole[0].parents[2])
    env = gym.make("CartPole-v1")
    given = {"hidden_sizes": [16], "normalize_obs": True, "scale_rewards": True}
    module = PPO(observation_space=env.observation_space, action_space=env.action_space, **given)
    module.load_state_dict(load(cartpole[0] / "checkpoints/best.ckpt")["state_dict"])
    expected = []
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action = module.network.pi(torch.as_tensor(obs)[None]).mode
            obs, reward, terminated, truncated, _ = env.step(action.item())
            total, ended = total + float(reward), terminated or truncated
        expected.append(total)
    assert printed == f"{expected}\n"
    assert len(set(expected)) > 1


def test_the_card_says_what_the_file_is(cartpole):
    run, said = cartpole
    card = json.loads((run / "export/best.onnx.json").read_text())
    assert card["algorithm"] == "pg_lightning.algorithms.ppo.PPO"
    assert (card["env_id"], card["env_steps"], card["flattened_from"]) == ("CartPole-v1", 704, None)
    assert card["inputs"]["obs"]["shape"] == ["batch", 4]
    assert {name: x["dtype"] for name, x in card["outputs"].items()} == {"action": "int64", "logits": "float32"}
    assert card["return"]["source"] == "played for this export"
    assert card["return"]["episodes"] == 3
    assert card["return"]["ci95"][0] < card["return"]["mean"] < card["return"]["ci95"][1]
    assert card["check"]["observations"] == 1000
    assert 0 < card["check"]["max_abs_difference"] < 1e-5
    assert card["config"]["model"]["init_args"]["hidden_sizes"] == [16]
    assert card["versions"]["torch"] == torch.__version__
    assert "written to runs/ppo_cartpole/version_0/export/best.onnx" in said
    assert sorted(path.name for path in (run / "export").iterdir()) == ["best.onnx", "best.onnx.json"]


def test_a_program_of_torch_is_loaded_without_this_package(exported):
    module, file = exported("torch", {"action": "box"}, head="squashed_gaussian")
    shutil.copytree(file.parent, file.parent / "runs/ppo_pendulum/version_0/export")
    (file.parent / "runs/ppo_pendulum/version_0/export/last.pt2").rename(
        file.parent / "runs/ppo_pendulum/version_0/export/best.pt2"
    )
    printed = _without("lightning pg_lightning gymnasium", _snippets()[1], file.parent)
    with torch.no_grad():
        action = module.network.actor_head.env_actions(module.network.pi(torch.zeros(1, 3)).mode)
    assert printed == f"{action}\n"


@pytest.mark.parametrize(
    ("name", "change"), [("logits", 3e-5), ("logits", torch.nan), ("action", 1)], ids=["off", "nan", "action"]
)
def test_what_differs_from_the_checkpoint_is_not_written(exported, tmp_path, monkeypatch, name, change):
    def corrupt(content: bytes, format: Any) -> Any:
        def policy(inputs: Any) -> Any:
            found = dict(module(inputs))
            found[name] = found[name].clone()
            found[name][0] += change
            return found

        module = loaded(content, format)
        return policy

    loaded = command.loaded
    monkeypatch.setattr(command, "loaded", corrupt)
    with pytest.raises(UserError, match=rf"model: {name} of the export differs .* in 1 of 1000 .* nothing is written"):
        exported("torch", {})
    assert not (tmp_path / "export").exists()


def test_what_no_graph_can_express_is_one_clear_line(exported, tmp_path):
    torso = {"class_path": "test_export.Undecided", "init_args": {"scale": 1.0}}
    with pytest.raises(UserError, match=r"model: torch.export cannot export this policy; change its torso or head: \S"):
        exported("torch", {}, torso=torso)
    assert not (tmp_path / "export").exists()


def test_a_missing_package_is_one_clear_line(run, cli, tmp_path, monkeypatch):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name, *x: None if name == "onnxruntime" else find(name, *x)
    )
    finished = cli(tmp_path, "export", "--ckpt_path", run / "checkpoints/last.ckpt")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        'error: format: onnx needs onnxruntime; pip install "pg_lightning[export]"'
    )


def test_the_return_is_that_of_a_report_only_if_it_is_of_this_checkpoint(tmp_path):
    data = RolloutDataModule("CartPole-v1")
    report = {"env_id": "CartPole-v1", "env_steps": 704, "episodes": 9, "deterministic": True, "seed": 1}
    known = {"return_mean": 20.0, "return_ci95": [19.0, 21.0]}
    (tmp_path / "validate.json").write_text(json.dumps({**report, **known}))
    (tmp_path / "test.json").write_text(json.dumps({**report, **known, "env_steps": 700}))
    found = command.known_return(tmp_path, data, 704)
    assert found is not None
    assert (found["mean"], found["ci95"], found["episodes"], found["source"]) == (
        20.0,
        [19.0, 21.0],
        9,
        "validate.json",
    )
    assert command.known_return(tmp_path, data, 700)["source"] == "test.json"  # type: ignore[index]
    assert command.known_return(tmp_path, data, 100) is None


def test_the_card_names_the_commit_that_training_was_started_from(tmp_path):
    (tmp_path / "config.yaml").write_text("# pg_lightning 0.1.0, commit 1a2b3c+\nseed_everything: 1\n")
    assert trained_from(tmp_path) == "1a2b3c+"
    (tmp_path / "config.yaml").write_text("# pg_lightning 0.1.0, commit unknown\nseed_everything: 1\n")
    assert trained_from(tmp_path) is None
