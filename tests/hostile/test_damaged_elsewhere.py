"""Damaged checkpoints where several processes resume: one line, no process waits for another, nothing is written."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as damage
import pytest
import torch
import warm
from checkpoints import Case, at

CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 2}
model:
  class_path: pg_lightning.algorithms.PPO
  init_args: {hidden_sizes: [8], normalize_obs: true, scale_rewards: true, optimizer: adam}
data: {env_id: CartPole-v1, num_envs: 2, num_steps: 8, total_steps: 64, eval_every_steps: 64, eval_episodes: 2}
"""
SETTINGS: dict[str, tuple[str, ...]] = {
    "overlap": ("--data.overlap", "true"),
    "device": ("--data.backend", "device"),
    "hogwild": ("--trainer.strategy", "hogwild", "--trainer.devices", "2"),
    "ddp": ("--trainer.strategy", "ddp", "--trainer.devices", "2"),
}
MODEL = "state_dict/network"
MOMENTS = "optimizer_states/0/state/0"
EPISODES = "RolloutDataModule/ranks/0"
AHEAD = f"{EPISODES}/ahead"
CASES = [
    at(f"{MOMENTS}/exp_avg", torch.zeros(3)),
    at(f"{MOMENTS}/exp_avg_sq", damage.nan),
    at(MOMENTS, ...),
    at("optimizer_states", []),
    at("optimizer_states/0/param_groups/0/lr", math.nan),
    at(f"{MODEL}.actor_head.linear.weight", damage.nan),
    at(f"{MODEL}.actor_head.linear.weight", damage.longer),
    at(f"{MODEL}.normalizer.statistics.var", damage.negative),
    at("callbacks", {}),
    at("callbacks/RandomStates/ranks/0/torch", damage.longer),
    at("pg_lightning/env_steps", -1),
    at("pg_lightning/ranks", []),
    at("RolloutDataModule", ...),
    at("RolloutDataModule/env_id", "Pendulum-v1"),
    at("global_step", 7777),
    at("loops/fit_loop", {}),
    *list(damage.files())[::8],
]
OF_COLLECTOR = [("obs", damage.longer), ("obs", ...), ("lengths", damage.negative), ("envs", "x"), ("generator", "x")]
# Of the state of environments, which their own process reads: then the run has begun, and its config is written.
ONLY_RANK_1 = at("RolloutDataModule/ranks/1/envs/beginnings/0", 3)
OWN = {
    "overlap": [
        *(at(f"{EPISODES}/collector/{name}", value) for name, value in OF_COLLECTOR),
        at(f"{EPISODES}/collector", ...),
        at(AHEAD, ...),
        at(AHEAD, 3),
        at(f"{AHEAD}/obs", damage.nan),
        at(f"{AHEAD}/obs", damage.longer),
        at(f"{AHEAD}/actions", damage.negative),
        at(f"{AHEAD}/actions", lambda x: x + 2),
        at(f"{AHEAD}/actions", lambda x: x.float()),
        at(f"{AHEAD}/rewards", lambda x: x[:-1]),
        at(f"{AHEAD}/valid", lambda x: x.float()),
        at(f"{AHEAD}/valid", None),
        at(f"{AHEAD}/log_probs", None),
        at(f"{AHEAD}/log_probs", ...),
        at(f"{AHEAD}/more", 1),
        at(f"{AHEAD}/final_rows", torch.tensor([10**6])),
        at(f"{AHEAD}/final_rows", torch.tensor([0])),
        at(f"{AHEAD}/episode_lengths", damage.longer),
        at(f"{AHEAD}/policy_version", 10**6),
        at(f"{AHEAD}/env_steps", 1),
        at(f"{AHEAD}/state", torch.zeros(2, 3)),
        at(f"{AHEAD}/action_mask", torch.zeros(8, 2, 2)),
        at(f"{AHEAD}/env_restarts", "x"),
        at(f"{AHEAD}/bootstrap_is_approximate", 3),
    ],
    "device": [at(f"{EPISODES}/{name}", value) for name, value in OF_COLLECTOR],
    "hogwild": [],
    "ddp": [
        ONLY_RANK_1,
        at("callbacks/RandomStates/ranks/1", None),
        at("callbacks/RandomStates/ranks/1/torch", damage.longer),
        at("pg_lightning/ranks/1/discounted_returns", damage.EMPTY),
        at("pg_lightning/ranks", lambda ranks: ranks[:1]),
        *(at(f"RolloutDataModule/ranks/1/{name}", value) for name, value in OF_COLLECTOR),
    ],
}
# Of those for several ranks, the ones that always run, because two processes take 6 s to start.
RANKS = {CASES[0].name, CASES[3].name, ONLY_RANK_1.name, OWN["ddp"][5].name}
ALL = os.environ.get("ALL_CASES") == "1"
MOST_SECONDS = 50.0  # 60 to 300 pass before a rank or a process that is waited for is given up


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fit(cli: Any) -> Any:
    """Runs `fit` with a setting in a folder; in a process of its own if that starts another command line."""

    def run(folder: Path, setting: str, *arguments: str) -> Any:
        given = ("fit", *arguments, *SETTINGS[setting])
        return warm.run(["-m", "impatient", *given], folder) if setting == "ddp" else cli(folder, *given)

    return run


@pytest.fixture(scope="module")
def runs(fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder in which a run with a setting was started and ended; made when it is first needed."""
    made: dict[str, Path] = {}

    def of(setting: str) -> Path:
        if setting not in made:
            folder = made[setting] = tmp_path_factory.mktemp(setting)
            algorithm = "A3C" if setting == "hogwild" else "PPO"
            (folder / "c.yaml").write_text(CONFIG.replace("PPO", algorithm))
            finished = fit(folder, setting, "--config", "c.yaml")
            assert finished.returncode == 0, finished.stderr
        return made[setting]

    return of


def end_of(setting: str, case: Case | None, fit: Any, runs: Callable[[str], Path], folder: Path) -> Any:
    """What `fit` says when it goes on from a damaged checkpoint, having touched nothing."""
    shutil.copytree(runs(setting), folder, dirs_exist_ok=True)
    (folder / "victim").mkdir()
    (folder / "victim/thesis.txt").write_text("years of work")
    checkpoint = folder / "runs/c/version_0/checkpoints/last.ckpt"
    if case is not None:
        checkpoint.write_bytes(case.make(checkpoint.read_bytes(), folder / "victim"))
    before, begin = content_of(folder), time.monotonic()
    more = ("--config", "c.yaml", "--ckpt_path", "last", "--data.total_steps", "128")
    finished = fit(folder, setting, *more)
    assert time.monotonic() - begin < MOST_SECONDS
    assert "Traceback" not in finished.stderr, finished.stderr
    if case is not None:
        changed = {path.name for path, content in content_of(folder).items() if before.pop(path, None) != content}
        assert (changed, before) == ({"config.yaml"} if case is ONLY_RANK_1 else set(), {})
    return finished


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_whole_checkpoint_is_accepted(setting: str, fit: Any, runs: Callable[[str], Path], tmp_path: Path) -> None:
    if setting == "ddp" and not ALL:
        pytest.skip("two ranks go on from a checkpoint in another test")
    finished = end_of(setting, None, fit, runs, tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("setting", "case"),
    [
        pytest.param(setting, case, id=f"{setting}-{case.name}")
        for setting in SETTINGS
        for case in [*OWN[setting], *CASES]
        if ALL or setting != "ddp" or case.name in RANKS
    ],
)
def test_a_damaged_one_is_one_line(
    setting: str, case: Case, fit: Any, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = end_of(setting, case, fit, runs, tmp_path)
    assert finished.returncode == 2, finished.stderr
    said = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert said, finished.stderr
    assert said[0].startswith(("error: ckpt_path: ", "error: data.env_id: ")), said
    if len(said) > 1:  # what only one rank can find out, and what the other says of that
        assert case is ONLY_RANK_1, said
        assert said[1].startswith("error: trainer.strategy: rank 1 ended with UserError: ckpt_path: "), said
