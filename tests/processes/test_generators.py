"""Every process of a run has global random generators of its own, which follow from the seed of the run."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import odd_envs  # noqa: F401 - registers
import pytest
import torch
import warm
from interruptions import Interrupted, interrupt_at

from pg_lightning.envs import make_vector_env
from pg_lightning.processes import ForkedWorker, end_all, name_process

DRAWS = ("--data.env_id", "odd_envs:Draws-v0", "--data.num_envs", 2, "--data.num_steps", 8, "--data.eval_episodes", 2)


def drawn_in(folder: Path) -> list[np.ndarray]:
    """`[draws, 3]` of each process, Python's, NumPy's and torch's numbers."""
    return [np.array([eval(line) for line in file.read_text().splitlines()]) for file in sorted(folder.iterdir())]


def assert_processes_differ(draws: list[np.ndarray]) -> None:
    for column in range(3):
        numbers = [number for process in draws for number in set(process[:, column])]
        assert len(set(numbers)) == len(numbers), ("Python", "NumPy", "torch")[column]


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)


def draw(pipe: Connection, _: ExitStack) -> None:
    pipe.send((random.random(), np.random.rand(), float(torch.rand(())), torch.initial_seed()))  # noqa: NPY002


def forked(number: int) -> list[Any]:
    seed(number)
    name_process(0)
    workers = [ForkedWorker(draw, "the worker", {}) for _ in range(3)]
    try:
        return [worker.receive() for worker in workers]
    finally:
        end_all(workers)


def test_forks_draw_numbers_of_their_own_and_the_same_in_every_run_of_a_seed() -> None:
    one, again, other = forked(1), forked(1), forked(2)
    assert one == again
    for column in range(3):
        numbers = [draws[column] for draws in (*one, *other)]
        assert len(set(numbers)) == 6
    assert [draws[3] for draws in (*one, *other)] == [1, 1, 1, 2, 2, 2]


def test_a_seeded_episode_is_the_same_in_any_process_of_async() -> None:
    """Also what it draws from the global generators; other episodes differ."""
    env = make_vector_env("Draws-v0", 3, None, (), "async")
    first = np.array(env.reset(seed=[11, 12, 13])[0])
    later = np.array(env.step(np.zeros(3, int))[0])
    again = np.array(env.reset(seed=[13, 11, 12])[0])
    assert np.array_equal(first[[2, 0, 1]], again)
    assert len(set(np.concatenate([first, later]).ravel())) == 18
    env.close()


@pytest.mark.parametrize("options", [("--data.backend", "async"), ("--data.overlap", "true")], ids=["async", "overlap"])
def test_no_two_processes_of_a_run_or_of_its_second_part_draw_the_same(
    options: tuple[str, ...], train: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "draws").mkdir()
    folder = ("--data.env_kwargs", f"{{folder: {tmp_path / 'draws'}}}")
    arguments = (*DRAWS, *folder, *options, "--data.total_steps", 64, "--data.eval_every_steps", 64)
    with pytest.raises(Interrupted):
        train(tmp_path, *arguments, *interrupt_at(2, save=True))
    before = len(drawn_in(tmp_path / "draws"))
    train(tmp_path, *arguments, "--ckpt_path", "last")
    draws = drawn_in(tmp_path / "draws")
    assert len(draws) > before
    assert_processes_differ(draws)


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("strategy", ["ddp", "hogwild"])
def test_no_two_ranks_or_workers_draw_the_same(strategy: str, backend: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "draws").mkdir()
    where = ("--data.env_kwargs", f"{{folder: {tmp_path / 'draws'}}}", "--data.backend", backend)
    config = ("--config", "a3c_cartpole") if strategy == "hogwild" else ("--config", tiny)
    ranks = ("--trainer.devices", 2, "--trainer.strategy", strategy, "--data.total_steps", 64)
    command = ["-m", "pg_lightning", "fit", *config, *DRAWS, *where, *ranks, "--data.eval_every_steps", 1000]
    finished = warm.run([str(x) for x in command], tmp_path)
    assert finished.returncode == 0, finished.stderr
    draws = drawn_in(tmp_path / "draws")
    assert len(draws) >= 2
    assert_processes_differ(draws)
