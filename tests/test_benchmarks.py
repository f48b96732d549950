"""The script for machines with a GPU runs to its end on one without."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_gpu_check_runs_on_a_cpu_and_every_row_passes(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--small"]
    files = ["--json", str(tmp_path / "gpu.json"), "--markdown", str(tmp_path / "gpu.md")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    sections = ["--only", "equal", "precision", "speed"]
    done = subprocess.run([*script, *sections, *files], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["check"] for row in rows} == {"equal", "precision", "speed"}
    assert all(row["passed"] for row in rows)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(rows) + 4


def test_without_a_gpu_it_says_so_in_one_line():
    script = [sys.executable, str(ROOT / "benchmarks/gpu.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (2, "error: --device: there is no GPU here; give --device cpu\n")
