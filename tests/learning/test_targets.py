"""The shipped configs reach their targets, on every seed, as `benchmarks/learning.py` measures it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning.py"


@pytest.mark.learning
@pytest.mark.parametrize(
    ("config", "seeds"), [("ppo_cartpole", "1 2 3 4 5"), ("ppo_acrobot", "1 2 3"), ("ppo_pendulum", "1 2 3")]
)
def test_every_seed_reaches_the_target(config, seeds):
    subprocess.run([sys.executable, SCRIPT, config, "--seeds", *seeds.split()], check=True)
