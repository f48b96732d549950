"""Runs that are killed at random moments end as the one that was left alone, as `benchmarks/kill.py` compares them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"
PLAIN = ["--model.normalize_obs", "false", "--model.scale_rewards", "false"]


@pytest.mark.learning
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_moment_makes_a_difference(ranks):
    options = PLAIN if ranks > 1 else []
    subprocess.run([sys.executable, SCRIPT, "--moments", "5", "--ranks", str(ranks), *options], check=True)
