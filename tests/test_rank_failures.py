"""A rank that dies or hangs ends the run on all ranks, by name, and leaves the last checkpoint and no process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import load

DDP = "lightning.pytorch.strategies.DDPStrategy"


def processes_with(word: str) -> list[str]:
    """The command lines of running processes that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found += [line for line in [(path / "cmdline").read_text()] if word in line]
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("deed", "timeout", "said"),
    [
        ("SIGKILL", "0:10:00", "error: trainer.strategy: rank 1 was killed by SIGKILL"),
        (
            "SIGSTOP",
            "0:00:40",
            "error: trainer.strategy: rank 1 does not answer: it hangs, was killed, or has lost its host",
        ),
        (
            "OSError",
            "0:10:00",
            "error: trainer.strategy: rank 1 ended with OSError: the environment has lost its world",
        ),
    ],
)
def test_the_others_end_and_name_it(tiny, tmp_path, deed, timeout, said):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
    }
    arguments = [
        *(
            "fit",
            "--config",
            str(tiny),
            "--data.env_id",
            "odd_envs:Saboteur-v0",
            "--data.env_kwargs",
            f"{{deed: {deed}}}",
        ),
        *("--data.total_steps", "1_000_000", "--trainer.default_root_dir", str(tmp_path)),
        *("--trainer.devices", "2", "--trainer.strategy", DDP, "--trainer.strategy.timeout", timeout),
    ]
    finished = subprocess.run(
        [sys.executable, "-m", "pg_lightning", *arguments], env=environment, capture_output=True, text=True, timeout=200
    )
    assert finished.returncode not in (0, 1), finished.stderr
    assert said in finished.stderr.splitlines(), finished.stderr
    assert processes_with(str(tmp_path)) == []
    assert load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"] >= 256


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([0, 1], {"error: model.lr: not today"}),
        (
            [1],
            {"error: model.lr: not today", "error: trainer.strategy: rank 1 ended with UserError: model.lr: not today"},
        ),
    ],
)
def test_a_mistake_that_all_ranks_find_is_said_once(tiny, tmp_path, ranks, said):
    tests = Path(__file__).parent
    paths = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"}
    refuse = f"[{{class_path: interruptions.RefuseOn, init_args: {{ranks: {ranks}}}}}]"
    command = [sys.executable, "-m", "pg_lightning", "fit", "--config", str(tiny), "--trainer.callbacks", refuse]
    finished = subprocess.run(
        [*command, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        cwd=tmp_path,
        env={**os.environ, **paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert finished.returncode == 2, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert sorted(errors) == sorted(said), finished.stderr
