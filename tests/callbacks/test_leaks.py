"""What an environment takes and does not give back is named once, and nothing else is."""

import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import pytest
from odd_envs import Bandit

from pg_lightning.callbacks import EvaluateEverySteps, LeakWatch
from pg_lightning.callbacks.leaks import LEAST, TIMES, counts_of, grown

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
EVALUATIONS = TIMES + 3


class Leaks(Bandit):
    """Takes something in every 8th reset, at most `most` times. `taken` has what gives it back."""

    taken: ClassVar[list[Callable[[], object]]] = []
    resets = 0

    def __init__(self, what: str, most: int = 10**6) -> None:
        self.what, self.most = what, most

    def reset(self, **kwargs: Any) -> Any:
        Leaks.resets += 1
        if Leaks.resets % 8 == 0 and len(self.taken) < self.most:
            self.taken.append(TAKES[self.what]())
        return super().reset(**kwargs)


def _thread() -> Callable[[], object]:
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    return done.set


def _process() -> Callable[[], object]:
    process = subprocess.Popen(["sleep", "60"])
    return lambda: (process.kill(), process.wait())


TAKES: dict[str, Callable[[], Callable[[], object]]] = {
    "threads": _thread,
    "open files": lambda: open(__file__).close,  # noqa: SIM115
    "processes": _process,
    "MiB of memory": lambda: bytearray(b"1" * 2**21).clear,
    "nothing": lambda: dict,
}
gym.register("Leaks-v0", entry_point=Leaks)


@pytest.fixture
def said(fit, monkeypatch):
    """The warnings of a training on an environment that takes something."""
    monkeypatch.setitem(LEAST, "MiB of memory", 50)

    def run(what, most=10**6, **data):
        Leaks.resets = 0
        shape = {"env_kwargs": {"what": what, "most": most}, "num_envs": 4, "num_steps": 32, "eval_episodes": 4}
        budget = {"eval_every_steps": 128, "total_steps": 128 * EVALUATIONS}
        callbacks = {"callbacks": [EvaluateEverySteps(), LeakWatch()]}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            fit("Leaks-v0", {**shape, **budget, **data}, trainer=callbacks, hidden_sizes=[4])
        return [str(each.message) for each in found if "seems to leak" in str(each.message)]

    yield run
    while Leaks.taken:
        Leaks.taken.pop()()


@pytest.mark.parametrize(
    ("what", "data"),
    [
        *((what, {}) for what in LEAST),
        ("open files", {"overlap": True}),
        ("threads", {"backend": "async"}),
    ],
)
def test_what_an_environment_takes_is_named_once(what, data, said):
    """Also in processes of its own. A process has threads, files and memory too."""
    (line,) = said(what, **data)
    found = re.fullmatch(
        r"data.env_id: 'Leaks-v0' seems to leak: (.*) grew at each of the last 5 evaluations; .*", line
    )
    named = dict(part[:-1].split(" (") for part in found[1].split(" and "))
    assert what in named if what == "processes" else named.keys() == {what}
    first, last = named[what].replace(",", "").split(" now ")
    assert int(last) - int(first) >= LEAST[what]


def test_the_command_line_watches(cli, tiny, tmp_path, said):
    """`said` gives the files back."""
    steps = ("--data.total_steps", 64 * EVALUATIONS, "--data.eval_every_steps", 64, "--data.num_steps", 16)
    kwargs = ("--data.env_kwargs", "{what: open files}", "--trainer.enable_progress_bar", "false")
    with pytest.warns(UserWarning, match=r"^data.env_id: 'Leaks-v0' seems to leak: open files \(") as found:
        finished = cli(tmp_path, "fit", "--config", tiny, "--data.env_id", "Leaks-v0", *steps, *kwargs)
    assert finished.returncode == 0, finished.stderr
    assert len([each for each in found if "seems to leak" in str(each.message)]) == 1


@pytest.mark.parametrize("data", [{}, {"overlap": True}, {"backend": "async"}])
def test_what_does_not_leak_is_not_named(data, said):
    assert said("nothing", **data) == []


@pytest.mark.parametrize("most", [1, 30])
def test_what_ends_soon_is_no_leak(most, said):
    """Caches and pools fill up and then stay."""
    assert said("open files", most) == []


def test_growth_must_be_at_every_count_and_large_enough():
    def counts(*files):
        return [dict.fromkeys(LEAST, 1) | {"open files": n} for n in files]

    steps = list(range(10, 10 + 2 * (TIMES + 1), 2))
    assert grown(counts(*steps)) == ["open files"]
    assert grown(counts(*steps[:-1])) == []
    assert grown(counts(*steps[:-1], steps[-2])) == []
    assert grown(counts(*(n // 2 for n in steps))) == []  # one each time: less than any reset that leaks
    assert grown([{}] * (TIMES + 1)) == []


def test_counts_are_those_of_all_processes_below():
    before = counts_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        after = counts_of(os.getpid())
        child.communicate(b"\n")
    assert after["processes"] == before["processes"] + 1
    assert after["threads"] >= before["threads"] + 1
    assert counts_of(2**30) == {}
