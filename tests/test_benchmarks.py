"""The script for machines with a GPU runs to its end on one without."""

import json
from pathlib import Path

import warm

ROOT = Path(__file__).parents[1]


def test_the_gpu_check_runs_on_a_cpu_and_every_row_passes(tmp_path):
    script = [ROOT / "benchmarks/gpu.py", "--device", "cpu", "--small"]
    files = ["--json", tmp_path / "gpu.json", "--markdown", tmp_path / "gpu.md"]
    done = warm.run([*script, "--only", "equal", "sync", "precision", "speed", *files], tmp_path, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["check"] for row in rows} == {"equal", "sync", "precision", "speed"}
    assert all(row["passed"] for row in rows)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(rows) + 4


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = warm.run([ROOT / "benchmarks/gpu.py"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --device: there is no GPU here; give --device cpu\n")
