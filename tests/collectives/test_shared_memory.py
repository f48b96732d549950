"""A board in memory: processes exchange messages by it, in step, and notice one that is gone."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from pg_lightning.collectives import shared_memory as board
from pg_lightning.collectives.shared_memory import Board, RankLost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/shm")

CAPACITY = 5000


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "FOLDER", str(tmp_path))
    return board.create(3, CAPACITY)


def on_each(work, path, timeout=60.0, silent=None):
    """What `work(board, rank)` returns in each of three processes, one of which may be expected to say nothing."""
    fork = multiprocessing.get_context("fork")

    def run(rank, writer):
        torch.set_num_threads(1)
        writer.send(work(Board(path, rank, 3, CAPACITY, timeout), rank))

    readers, processes = [], []
    for rank in range(3):
        reader, writer = fork.Pipe(duplex=False)
        readers.append(reader)
        processes.append(fork.Process(target=run, args=(rank, writer), daemon=True))
    for process in processes:
        process.start()
    told = []
    for rank, reader in enumerate(readers):
        told.append(reader.recv() if rank != silent and reader.poll(30) else None)
    for process in processes:
        process.kill()
    return told


def test_every_rank_reads_what_all_have_written_round_after_round(path):
    def work(board, rank):
        generator = torch.Generator().manual_seed(rank)
        wrong = 0
        for count in range(3000):
            if torch.rand((), generator=generator) < 0.01:  # now this rank is late, now that
                time.sleep(0.001)
            numbers = torch.arange(3) * 10_000 + count
            found = board.gather(numbers[rank].repeat(7))
            wrong += not torch.equal(found, numbers.unsqueeze(1).repeat(1, 7))
        return wrong

    assert on_each(work, path) == [0, 0, 0]


def test_kinds_of_tensors(path):
    tensors = [
        torch.tensor(2.5),
        torch.tensor(True),
        torch.zeros(0, 4),
        torch.arange(12, dtype=torch.bfloat16).view(3, 4),
        torch.arange(6.0, dtype=torch.float64).view(2, 3).t(),
        torch.randn(CAPACITY // 4, generator=torch.Generator().manual_seed(1)),
    ]

    def work(board, rank):
        found = [board.gather(x) for x in tensors]
        return all(
            torch.equal(y, torch.stack([x] * 3)) and y.dtype == x.dtype for x, y in zip(tensors, found, strict=True)
        )

    assert on_each(work, path) == [True, True, True]


def test_what_was_gathered_stays_when_the_next_messages_come(path):
    def work(board, rank):
        first = board.gather(torch.tensor(rank))
        for _ in range(4):
            board.gather(torch.tensor(99))
        return first.tolist()

    assert on_each(work, path) == [[0, 1, 2]] * 3


def test_sums_are_the_same_to_the_last_bit(path):
    def work(board, rank):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(rank)) * 10.0**rank
        board.add_up(x)
        return x.tolist()

    first, *others = on_each(work, path)
    expected = sum(torch.randn(1000, generator=torch.Generator().manual_seed(r)) * 10.0**r for r in range(3))
    torch.testing.assert_close(torch.tensor(first), expected)
    assert others == [first, first]


@pytest.mark.parametrize(
    ("deed", "timeout", "said"),
    [
        (signal.SIGKILL, 60.0, "rank 1 is gone"),
        (signal.SIGSTOP, 1.0, "rank 1 has not answered for 1 s"),
        ("close", 60.0, "rank 1 is gone"),
    ],
)
def test_who_waits_for_one_that_is_gone_is_told(path, deed, timeout, said):
    def work(board, rank):
        board.gather(torch.tensor(rank))
        if rank == 1:
            if deed == "close":
                board.close()
                time.sleep(60)
            os.kill(os.getpid(), deed)
        try:
            board.gather(torch.tensor(rank))
        except RankLost as error:
            return str(error)

    assert on_each(work, path, timeout, silent=1) == [said, None, said]


def test_no_room_is_no_board_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "FOLDER", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert board.create(2, CAPACITY) is None
    assert list(tmp_path.iterdir()) == []


def test_without_shared_memory_there_is_no_board(monkeypatch):
    monkeypatch.setattr(board, "FOLDER", "/nowhere")
    assert board.create(2, CAPACITY) is None


def test_another_host_has_no_such_file():
    with pytest.raises(OSError, match="nowhere"):
        Board("/nowhere/board", 1, 2, CAPACITY, 1.0)
