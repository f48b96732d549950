"""Numbers that the machine cannot hold are one line with an estimate, before anything is reserved."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from odd_envs import Bandit
from run_files import complaint

from pg_lightning.data import RolloutDataModule
from pg_lightning.data.size import require_space
from pg_lightning.envs import room
from pg_lightning.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data.num_steps 1000000000", "data.num_steps: a rollout of 1000000000 steps in 4 environments "),
        ("--data.num_envs 1000000 --data.num_steps 1000000", "data.num_steps: a rollout of 1000000 steps in 1000000 "),
        ("--data.num_envs 1000000 --data.backend async", "data.num_envs: backend async starts 1000000 processes, "),
        ("--data.eval_episodes 1000000000", "data.eval_episodes: must be between 1 and 1e+07, got 1e+09"),
        ("--data.total_steps 10000000000000000000", "data.total_steps: must be between 1 and 4.61169e+18, got 1e+19"),
        ("--data.num_steps 1000000000000000000000", "data.num_steps: must be between 1 and 4.61169e+18, got 1e+21"),
        ("--model.hidden_sizes [1000000,1000000]", "out of memory: you tried to allocate 4000000000000 bytes"),
        ("--seed_everything 99999999999", "seed_everything: 99999999999 is not in bounds"),
        ("--seed_everything -3", "seed_everything: -3 is not in bounds"),
    ],
)
def test_absurd_numbers_are_one_line_at_once(arguments: str, said: str, cli: Any, tiny: Any, tmp_path: Any) -> None:
    begin = time.monotonic()
    assert complaint(cli(tmp_path, "fit", "--config", tiny, *arguments.split())).startswith(said)
    assert time.monotonic() - begin < 5


def test_an_estimate_is_that_of_the_arrays(monkeypatch: Any) -> None:
    """CartPole: 4 float32, a reward, an action and a timestep of 8 bytes, three flags, for each of 11 x 100 rows."""
    data = RolloutDataModule("CartPole-v1", num_envs=100, num_steps=10)
    for memory, is_enough in ((1100 * 39, True), (1100 * 39 - 1, False)):
        monkeypatch.setattr("pg_lightning.data.size.memory_of_machine", lambda memory=memory: memory)
        if is_enough:
            require_space(data)
        else:
            with pytest.raises(UserError, match="a rollout of 10 steps in 100 environments"):
                require_space(data)


@pytest.mark.parametrize(("limit", "is_less"), [("1000000\n", True), ("max\n", False), (None, False)])
def test_the_memory_of_a_container_is_its_limit(
    limit: str | None, is_less: bool, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "CGROUP_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert room.memory_of_machine() == (1e6 if is_less else physical)


class Heavy(Bandit):
    """Takes 2 MB."""

    closed = 0

    def __init__(self) -> None:
        self.memory = bytearray(b"1" * 2_000_000)

    def close(self) -> None:
        Heavy.closed += 1


gym.register("Heavy-v0", entry_point=Heavy)


def test_environments_that_are_too_many_for_memory_are_refused_with_an_estimate(monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "memory_of_machine", lambda: 1e9)
    with pytest.raises(
        UserError, match=r"^data.num_envs: 5000 environments take about \d+\.\d GB, and this machine has 1\.0"
    ):
        room.require_room(Heavy, 5000)
    room.require_room(Heavy, 999)  # few are not measured
    assert Heavy.closed >= room.SAMPLE
    with pytest.raises(UserError, match=r"^data.num_envs: 5000 environments take about "):
        require_space(RolloutDataModule("Heavy-v0", num_envs=5000, num_steps=1))


def test_environments_that_take_long_are_announced(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(room, "LONG_S", 0.0)
    monkeypatch.setattr(room, "memory_of_machine", lambda: 1e18)
    with caplog.at_level("INFO"):
        room.require_room(Heavy, 5000)
    (line,) = [record.getMessage() for record in caplog.records if "data.num_envs" in record.getMessage()]
    assert line.startswith("data.num_envs: it takes about ")


def test_too_few_open_files_are_named_with_what_is_possible() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (264, hard))
    try:
        room.require_processes(100)
        with pytest.raises(
            UserError, match=r"data.num_envs: .* 2 files for each of 101 .* 264 \(ulimit -n\); set at most 100"
        ):
            room.require_processes(101)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
