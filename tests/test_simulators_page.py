"""The page on simulators: its config and its functions, with stand-ins for the simulators, and its commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import simulators
from run_files import read_metrics

PAGE = (Path(__file__).parents[1] / "docs/simulators.md").read_text()
FILES = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^python -m pg_lightning (.+)$", PAGE, re.MULTILINE)
SMALL = ("--data.num_envs", 8, "--data.total_steps", 400, "--data.eval_episodes", 2, "--trainer.accelerator", "cpu")


def isaac_cfg(task: str, device: str, num_envs: int) -> SimpleNamespace:
    return SimpleNamespace(num_envs=num_envs, compute_final_obs=False)


def isaac(cfg: SimpleNamespace) -> Any:
    assert cfg.compute_final_obs
    return simulators.IsaacLab(cfg.num_envs, gives_final_obs=True)


def maniskill(env: str, num_envs: int, obs_mode: str, control_mode: str) -> Any:
    return simulators.ManiSkill(env, num_envs)


def mjlab_cfg(task: str) -> SimpleNamespace:
    return SimpleNamespace(scene=SimpleNamespace(num_envs=1))


def mjlab(cfg: SimpleNamespace, device: str) -> Any:
    return simulators.Mjlab(cfg.scene.num_envs)


def go2(num_envs: int, env_cfg: Any, obs_cfg: Any, reward_cfg: Any, command_cfg: Any) -> Any:
    return simulators.Genesis(num_envs)


def playground(
    env: Any,
    num_actors: int,
    seed: int,
    episode_length: int,
    action_repeat: int,
    randomization_fn: Any,
    device_rank: int,
) -> Any:
    return simulators.Playground(num_actors, seed, episode_length)


def my_robot(num_envs: int, task: str) -> Any:
    return simulators.RslRl(num_envs)


MODULES: dict[str, dict[str, Any]] = {
    "isaaclab.app": {"AppLauncher": lambda headless: None},
    "isaaclab_tasks.utils": {"parse_env_cfg": isaac_cfg},
    "mani_skill.vector.wrappers.gymnasium": {"ManiSkillVectorEnv": maniskill},
    "mjlab.tasks.registry": {"load_env_cfg": mjlab_cfg},
    "mjlab.envs": {"ManagerBasedRlEnv": mjlab},
    "genesis": {"init": lambda seed: None},
    "go2_env": {"Go2Env": go2},
    "go2_train": {"get_cfgs": lambda: ({}, {}, {}, {})},
    "mujoco_playground.registry": {
        "get_default_config": lambda task: SimpleNamespace(episode_length=12),
        "load": lambda task, config: task,
        "get_domain_randomizer": lambda task: None,
    },
    "mujoco_playground.wrapper_torch": {"RSLRLBraxWrapper": playground},
    "my_robots": {"make": my_robot},
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, where the simulators can be imported."""
    for path, names in MODULES.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            module = sys.modules.get(name) if name in sys.modules and depth < len(parts) else ModuleType(name)
            module.__path__ = []  # type: ignore[union-attr]
            monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
        vars(sys.modules[path]).update(names)
    spec = gym.envs.registration.EnvSpec("Isaac-Velocity-Flat-Anymal-C-v0", entry_point=isaac, disable_env_checker=True)
    monkeypatch.setitem(gym.registry, spec.id, spec)
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name, _ in FILES:
        sys.modules.pop(Path(name).stem, None)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"env_id (\S+)", command)[0])
def test_a_command_of_the_page_trains(cli: Any, work: Path, command: str) -> None:
    made = simulators.Pole.made
    finished = cli(work, *shlex.split(command), *SMALL)
    assert finished.returncode == 0, finished.stderr
    rows = read_metrics(work / "runs/robot/version_0")
    assert rows[-1]["step"] >= 400
    assert "val/return_mean" in rows[-1]
    assert simulators.Pole.made - made == ("my_envs" not in command)


def test_ppo_learns_in_the_environment_of_the_page(cli: Any, work: Path) -> None:
    small = ("--data.num_envs", 64, "--data.total_steps", 24_000, "--data.eval_episodes", 64)
    fast = ("--model.hidden_sizes", "[32]", "--model.target_kl", "null", "--model.lr", 3e-3)
    command = shlex.split(next(command for command in COMMANDS if "my_envs" in command))
    finished = cli(work, *command, *small, *fast, "--trainer.accelerator", "cpu")
    assert finished.returncode == 0, finished.stderr
    rows = read_metrics(work / "runs/robot/version_0")
    assert rows[0]["rollout/return_mean"] < -8
    assert rows[-1]["val/return_mean"] > -3.5


def test_every_simulator_of_the_table_has_its_section_and_its_command() -> None:
    anchors = [*re.findall(r"^\| (?:any )?\[.*?\]\(#([\w-]+)\)", PAGE, re.MULTILINE), "an-rsl_rl-vecenv"]
    headings = {re.sub(r"[`]", "", line).lower().replace(" ", "-") for line in re.findall(r"^## (.+)$", PAGE, re.M)}
    assert set(anchors) <= headings
    assert len(COMMANDS) == 7
