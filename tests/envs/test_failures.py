"""Whatever the code of an environment does, a run ends with one line that says where, or with its result."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from run_files import load

from pg_lightning.envs.failures import closes_within
from pg_lightning.errors import EnvironmentFailed

DEEDS = {
    "raises": "raised RuntimeError: the motor is gone",
    "leaves": "called sys.exit(0)",
    "interrupts": "raised KeyboardInterrupt",
}
IN_PROCESS = {
    "sync": ("--data.backend", "sync", "--data.env_id", "failing_envs:Fails-v0"),
    "vector": ("--data.backend", "vector", "--data.env_id", "failing_envs:Fails-v0"),
    "simulator": ("--data.backend", "simulator", "--data.env_id", "failing_envs:FailsAsSimulator-v0"),
    "overlap": ("--data.overlap", "true", "--data.env_id", "failing_envs:Fails-v0"),
}
PLACE = r"\(/\S*failing_envs\.py:\d+\)"
SHORT = ("--data.total_steps", 128, "--trainer.enable_progress_bar", "false")


@pytest.fixture
def failing(cli: Any, tiny: Path, tmp_path: Path) -> Any:
    """Runs `fit` on an environment that fails."""
    import failing_envs

    failing_envs.Fails.made = 0

    def run(backend: str, deed: str, where: str, *more: Any, **kwargs: Any) -> Any:
        settings = ", ".join(f"{key}: {value}" for key, value in {"deed": deed, "where": where, **kwargs}.items())
        given = IN_PROCESS.get(backend, ("--data.backend", backend, "--data.env_id", "failing_envs:Fails-v0"))
        arguments = ("--data.env_kwargs", f"{{{settings}}}", *SHORT, *more)
        return cli(tmp_path, "fit", "--config", tiny, *given, *arguments)

    return run


def line_of(finished: Any, status: int = 1) -> str:
    """The one line, after the warnings of back-ends that replace environments."""
    assert finished.returncode == status, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "run:  " not in finished.stdout
    assert finished.stderr.count("error: ") == 1, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize("backend", IN_PROCESS)
def test_code_that_fails_is_one_line_with_environment_step_and_place(
    backend: str, where: str, deed: str, failing: Any
) -> None:
    """A simulator is reset when it is made, before there is a step to name."""
    line = line_of(failing(backend, deed, where))
    who = "env 0" if backend in ("sync", "overlap") else "the vector environment"
    when = "step 3" if where == "step" else "reset"
    begin = f"data.env_id: {who} failed in {when}: it "
    if backend == "simulator" and where == "reset":
        begin = "data.env_id: 'failing_envs:FailsAsSimulator-v0' cannot be made: its code "
    assert re.fullmatch(
        re.escape(begin + DEEDS[deed]) + " " + PLACE + "; PG_LIGHTNING_TRACEBACK=1 shows the traceback", line
    ), line


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize(
    ("backend", "spared"), [("sync", 0), ("sync", 3), ("vector", 1), ("simulator", 0), ("async", 0)]
)
def test_an_environment_that_cannot_be_made_is_one_line(backend: str, spared: int, deed: str, failing: Any) -> None:
    """Also if only a later one cannot."""
    line = line_of(failing(backend, deed, "init", spared=spared))
    assert re.match(rf"data.env_id: '\S+' cannot be made: its code {re.escape(DEEDS[deed])} {PLACE}; PG", line), line


@pytest.mark.parametrize("deed", DEEDS)
def test_with_processes_the_last_failure_is_the_line(deed: str, failing: Any) -> None:
    line = line_of(failing("async", deed, "step", "--data.max_env_restarts", 0), status=2)
    assert re.search(rf"env 0 \(process \d+\) {re.escape(DEEDS[deed])} {PLACE}$", line), line


@pytest.mark.parametrize("deed", DEEDS)
def test_a_wrapper_that_fails_is_one_line(deed: str, cli: Any, tiny: Path, tmp_path: Path) -> None:
    wrapper = f"[{{class_path: failing_envs.WrapsBadly, init_args: {{deed: {deed}}}}}]"
    line = line_of(cli(tmp_path, "fit", "--config", tiny, "--data.wrappers", wrapper))
    assert line.startswith(f"data.wrappers: 'failing_envs.WrapsBadly' cannot be made: its code {DEEDS[deed]} (")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys\nsys.exit(0)", "called sys.exit(0)"),
        ("raise RuntimeError('no licence')", "raised RuntimeError: no licence"),
        ("x = 1\nif x\n", "raised SyntaxError: expected ':'"),
        ("import gymnasium\n1 / 0", "raised ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("backend", ["sync", "async", "simulator"])
def test_a_module_that_cannot_be_imported_is_one_line(
    backend: str, code: str, said: str, cli: Any, tiny: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    given = ("--data.env_id", "broken_module:Some-v0", "--data.backend", backend)
    line = line_of(cli(tmp_path, "fit", "--config", tiny, *given))
    at = 1 + code.rstrip().count("\n")
    place = f"({tmp_path}/broken_module.py:{at})"
    assert line.startswith(f"data.env_id: 'broken_module:Some-v0' cannot be made: its code {said} {place}; "), line


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("backend", ["sync", "vector", "async", "overlap"])
def test_a_close_that_fails_is_a_line_and_the_result_stands(
    backend: str, deed: str, failing: Any, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    finished = failing(backend, deed, "close")
    assert finished.returncode == 0, finished.stderr
    assert "run:  " in finished.stdout
    said = [record.getMessage() for record in caplog.records if "could not be closed" in record.getMessage()]
    assert said, finished.stderr
    assert all(re.fullmatch(rf"data.env_id: .* could not be closed: it .* {PLACE}", line) for line in said)
    assert "Traceback" not in finished.stderr + capfd.readouterr().err
    assert load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 128


@pytest.mark.parametrize("backend", ["sync", "overlap", "async"])
def test_the_traceback_is_shown_on_request(backend: str, tiny: Path, tmp_path: Path) -> None:
    """Also that of a forked process, which writes to the terminal itself."""
    kwargs = ("--data.env_kwargs", "{deed: raises, where: step}", "--data.max_env_restarts", 0)
    given = IN_PROCESS.get(backend, ("--data.backend", "async", "--data.env_id", "failing_envs:Fails-v0"))
    arguments = ["-m", "pg_lightning", "fit", "--config", tiny, *given, *kwargs]
    finished = warm.run(arguments, tmp_path, {"PG_LIGHTNING_TRACEBACK": "1"})
    assert "Traceback (most recent call last)" in finished.stderr
    assert 'raise RuntimeError("the motor\\nis gone")' in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("error: data.")


def test_a_process_that_leaves_without_a_word_is_not_a_success(failing: Any) -> None:
    line = line_of(failing("overlap", "exits", "step"), status=2)
    assert line == "data.overlap: the process that plays the rollouts exited with code 0 before training ended"


def test_a_stopped_process_is_named_within_the_limit(failing: Any) -> None:
    begin = time.monotonic()
    line = line_of(failing("overlap", "stops", "step", "--data.env_timeout", 1.5), status=2)
    assert line == (
        "data.overlap: the process that plays the rollouts was stopped by a signal and did not continue within "
        "data.env_timeout, 1.5 s"
    )
    assert time.monotonic() - begin < 10


def test_a_process_that_is_stopped_for_a_moment_plays_on(fit: Any, tmp_path: Path) -> None:
    """Four stops of 0.6 s each are not one of 2.4 s."""
    module = fit("failing_envs:Naps-v0", {"overlap": True, "num_envs": 1, "env_timeout": 1.2, "total_steps": 64})
    assert module.env_steps == 64


@pytest.mark.parametrize("backend", ["sync", "vector", "overlap", "async"])
def test_a_close_that_hangs_is_left_within_the_limit_and_the_result_stands(
    backend: str, failing: Any, tmp_path: Path, caplog: Any
) -> None:
    begin = time.monotonic()
    finished = failing(backend, "hangs", "close", "--data.env_timeout", 0.8)
    assert finished.returncode == 0, finished.stderr
    assert "run:  " in finished.stdout
    said = [record.getMessage() for record in caplog.records if "data.env_timeout" in record.getMessage()]
    assert said
    line = rf"data.env_timeout: the environments have not closed within 0.8 s and are left {PLACE}"
    assert all(re.fullmatch(line, text) for text in said)
    assert time.monotonic() - begin < 20
    assert load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 128


def test_the_limit_leaves_the_alarms_of_others_alone() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with closes_within(60.0):
            pass
        assert not rang
        time.sleep(0.4)
        assert rang == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_failures_of_an_environment_are_user_errors_that_travel_between_processes() -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(EnvironmentFailed("data.env_id: no")))
    assert (type(copy), str(copy), copy.status) == (EnvironmentFailed, "data.env_id: no", 1)
