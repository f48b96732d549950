"""The shipped configs reach their targets, on every seed, as `benchmarks/learning.py` measures it."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning.py"
TARGETS = {config: target for config, target in runpy.run_path(str(SCRIPT))["TARGETS"].items() if target is not None}
EXTRAS = {
    "lunarlander": "Box2D",
    "halfcheetah": "mujoco",
    "hopper": "mujoco",
    "walker2d": "mujoco",
    "minigrid": "minigrid",
}


@pytest.mark.learning
@pytest.mark.parametrize("config", TARGETS)
def test_every_seed_reaches_the_target(config):
    extra = next((module for name, module in EXTRAS.items() if name in config), "gymnasium")
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"needs {extra}")
    seeds = ["1"] if extra == "mujoco" else ["1", "2", "3"]
    subprocess.run([sys.executable, SCRIPT, config, "--seeds", *seeds], check=True)


@pytest.mark.learning
@pytest.mark.parametrize("config", ["ppo_cartpole", "ppo_acrobot", "a2c_cartpole"])
def test_two_ranks_learn_what_one_does(config):
    subprocess.run([sys.executable, SCRIPT, config, "--ranks", "2", "--workers", "1"], check=True)
