"""A rank that dies or hangs ends the run on all ranks, by name, and leaves the last checkpoint and no process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
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


def fit_two_ranks(config: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `fit` in a folder, whose name is in the command lines of both ranks."""
    command = ["-m", "impatient", "fit", "--config", config, "--data.total_steps", 1_000_000]
    root = ("--trainer.default_root_dir", folder / "runs")
    return warm.run([*command, *root, "--trainer.devices", 2, *arguments], folder)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("deed", "timeout", "said"),
    [
        ("SIGKILL", 600, "rank 1 was killed by SIGKILL"),
        ("SIGSTOP", 5, "rank 1 does not answer: it hangs, was killed, or has lost its host"),
        ("OSError", 600, "rank 1 ended with EnvironmentFailed: data.env_id: env "),
    ],
)
def test_the_others_end_and_name_it(tiny, tmp_path, deed, timeout, said):
    given = ["--trainer.strategy", DDP, "--trainer.strategy.timeout", "0:10:00"]
    shorten = f"[{{class_path: interruptions.ShortenTimeout, init_args: {{before: 600, seconds: {timeout}}}}}]"
    saboteur = ["--data.env_id", "odd_envs:Saboteur-v0", "--data.env_kwargs", f"{{deed: {deed}}}"]
    finished = fit_two_ranks(tiny, tmp_path, *given, *saboteur, "--trainer.callbacks", shorten)
    assert finished.returncode not in (0, 1), finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith(f"error: trainer.strategy: {said}")]
    assert len(lines) == 1, finished.stderr
    assert ("has lost its world" in lines[0] and "odd_envs.py:" in lines[0]) == (deed == "OSError")
    deadline = time.monotonic() + 10  # the kernel ends what rank 0 has started after it
    while processes_with(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_with(str(tmp_path)) == []
    assert load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"] >= 256


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
    refuse = f"[{{class_path: interruptions.RefuseOn, init_args: {{ranks: {ranks}}}}}]"
    finished = fit_two_ranks(tiny, tmp_path, "--trainer.strategy", "ddp", "--trainer.callbacks", refuse)
    assert finished.returncode == 2, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert sorted(errors) == sorted(said), finished.stderr
