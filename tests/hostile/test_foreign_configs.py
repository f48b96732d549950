"""A config that was found beside a checkpoint runs nothing that is not installed; a broken one costs a line."""

import os
import sys
import time
from pathlib import Path

import pytest
from run_files import complaint

from configs import BROKEN, CODE, HARMLESS, ODD, SECRET
from pg_lightning.errors import UserError
from pg_lightning.run.found_config import options_to_trust, require_harmless

SECONDS = 1.0  # that a refusal may take
FOREIGN = {"stranger", "this", "on_the_path", "fake_distribution"}


@pytest.fixture
def received(tmp_path, monkeypatch):
    """A run folder in a working folder with code of a stranger, which leaves a file when it runs."""
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'CODE_RAN')!r}).touch()\n"
    for name in ("stranger.py", "this.py", "some_folder/module.py", "on/on_the_path.py", "fake_distribution.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(evil)
    metadata = tmp_path / "fake_distribution-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake_distribution\nVersion: 1.0\n")
    (metadata / "top_level.txt").write_text("fake_distribution\n")
    (metadata / "direct_url.json").write_text(f'{{"url": "file://{tmp_path}", "dir_info": {{"editable": true}}}}')
    (tmp_path / "other.yaml").write_text("class_path: stranger.Evil\n")
    os.mkfifo(tmp_path / "fifo")
    run = tmp_path / "got"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.ckpt").touch()
    (run / "beside.yaml").write_text("class_path: stranger.Evil\n")
    (tmp_path / "ant.xml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "on"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {*sys.modules}
    yield run
    assert not (tmp_path / "CODE_RAN").exists()
    assert FOREIGN & ({*sys.modules} - before) == set()


def refusal(cli, *arguments: object) -> str:
    begin = time.perf_counter()
    said = complaint(cli(Path.cwd(), *arguments))
    assert time.perf_counter() - begin < SECONDS
    assert len(said) < 1000
    assert SECRET not in said
    return said


@pytest.mark.parametrize("name", CODE)
def test_a_found_config_that_names_foreign_code_is_refused_before_it_runs(cli, received, name):
    (received / "config.yaml").write_text(CODE[name])
    said = refusal(cli, "test", "--ckpt_path", "got/checkpoints/best.ckpt")
    assert said.startswith("config: 'got/config.yaml'")
    if not name.startswith("python"):
        assert said.endswith("if you trust that file: --config got/config.yaml")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_one_line_found_or_given(cli, received, name):
    content = BROKEN[name]
    (received / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    refusal(cli, "test", "--ckpt_path", "got/checkpoints/best.ckpt")
    if name != "bomb_as_text":
        assert refusal(cli, "fit", "--config", "got/config.yaml").startswith("config: 'got/config.yaml'")


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_one_line_found_or_given(cli, received, name):
    ODD[name](received / "config.yaml")
    refusal(cli, "test", "--ckpt_path", "got/checkpoints/best.ckpt")
    refusal(cli, "fit", "--config", "got/config.yaml")
    refusal(cli, "study", "got/config.yaml")
    refusal(cli, "compare", "got/config.yaml")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_found_config_that_names_what_is_installed_is_accepted(received, name):
    config = received / "config.yaml"
    config.write_text(HARMLESS[name])
    require_harmless(config)
    assert options_to_trust(config) == ""


@pytest.mark.parametrize("config", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_accepted(config):
    require_harmless(config)


def test_a_config_given_by_hand_is_trusted(cli, received):
    """It is imported; that there is no such class is found later."""
    (received / "config.yaml").write_text(CODE["model"])
    assert options_to_trust(received / "config.yaml") == f" --config {received / 'config.yaml'}"
    said = complaint(
        cli(received.parent, "test", "--ckpt_path", "got/checkpoints/best.ckpt", "--config", "got/config.yaml")
    )
    assert said == "model: module 'stranger' has no attribute 'Evil'"
    del sys.modules["stranger"]
    (received.parent / "CODE_RAN").unlink()


def test_the_message_names_file_and_line_and_not_its_content(received):
    (received / "config.yaml").write_text(f"data:\n  a: 1\n  password: '{SECRET}\n")
    with pytest.raises(UserError, match=r"got/config.yaml' is not YAML: line 4: found unexpected end of stream"):
        require_harmless(received / "config.yaml")
