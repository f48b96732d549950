"""The one way in which files are written; what a failing disk does to it is in `test_checkpoints.py`."""

import csv
import errno
import json
import os
import subprocess
import sys

import pytest

from pg_lightning.run.files import remove_partial, write_csv, write_file, write_json


@pytest.fixture(params=[True, False], ids=["durable", "not durable"])
def durable(request):
    return request.param


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, durable):
    file = tmp_path / "a.json"
    for content in ("old", "new ä\r\n"):
        write_file(file, content, durable=durable)
        assert file.read_bytes() == content.encode()
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_old_file_is_kept_under_another_name(tmp_path):
    file, previous = tmp_path / "a.bin", tmp_path / "b.bin"
    for content in (b"1", b"2", b"3"):
        write_file(file, content, previous)
    assert (file.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin"]


def test_where_the_rename_fails_the_old_file_is_untouched(tmp_path, monkeypatch, durable):
    file = tmp_path / "a.txt"
    write_file(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EACCES, "no")))
        with pytest.raises(OSError, match="no"):
            write_file(file, "new", durable=durable)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


KILLED = """
import os, sys
from pathlib import Path
from pg_lightning.run.files import write_file
os.replace = lambda *_: os.kill(os.getpid(), 9)
write_file(Path(sys.argv[1]), "new")
"""


def test_a_kill_before_the_rename_leaves_the_old_file_and_one_that_is_removed_later(tmp_path):
    file = tmp_path / "a.ckpt"
    write_file(file, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], timeout=100)
    assert killed.returncode == -9
    assert file.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    assert list(tmp_path.glob("*.ckpt*")) == [file], "what is left has no checkpoint's name"
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_tables_and_plain_types_read_back_as_they_were(tmp_path):
    rows = [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    write_csv(tmp_path / "a.csv", [], ["a", "b"])
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\r\n"
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert (tmp_path / "a.json").read_text().endswith("}\n")
