"""`record`: the episodes that it says it has filmed are in the files."""

import importlib.util
import json
import shutil

import numpy as np
import pytest


@pytest.fixture
def record(run, cli, tmp_path):
    """Films a copy of the shared run in a folder of this test."""

    def call(*arguments):
        shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
        return cli(tmp_path, "record", "--ckpt_path", "run/checkpoints/last.ckpt", *arguments)

    return call


def test_every_episode_is_a_video_of_its_steps_with_its_return(record, cli, tmp_path):
    moviepy = pytest.importorskip("moviepy")
    finished = record("--episodes", 2)
    assert finished.returncode == 0, finished.stderr
    folder = tmp_path / "run/record"
    report = json.loads((folder / "record.json").read_text())
    assert {key: report[key] for key in ("env_id", "seed", "env_steps", "deterministic")} == {
        "env_id": "CartPole-v1",
        "seed": 1,
        "env_steps": 704,
        "deterministic": True,
    }
    assert [episode["file"] for episode in report["episodes"]] == ["episode_0000.mp4", "episode_0001.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == ["episode_0000.mp4", "episode_0001.mp4", "record.json"]
    for episode in report["episodes"]:
        with moviepy.VideoFileClip(str(folder / episode["file"])) as clip:
            assert clip.size == [600, 400]
            assert round(clip.duration * clip.fps) == episode["length"] + 1
        assert episode["return"] == episode["length"]
        assert f"return {episode['return']:.1f} in {episode['length']} steps: run/record/{episode['file']}" in (
            finished.stdout
        )
    predicted = cli(
        tmp_path,
        *("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--data.eval_episodes", 2, "--data.num_envs", 1),
    )
    assert predicted.returncode == 0
    lengths = [len(np.load(tmp_path / f"run/predict/episode_{i:04d}.npz")["rewards"]) for i in range(2)]
    assert lengths == [episode["length"] for episode in report["episodes"]]


def test_a_gif_of_a_policy_that_draws_its_actions(record, tmp_path):
    pytest.importorskip("moviepy")
    options = ("--episodes", 1, "--format", "gif", "--data.eval_deterministic", "false", "--output", "film")
    finished = record(*options)
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == ["episode_0000.gif", "record.json"]
    assert (tmp_path / "film/episode_0000.gif").read_bytes().startswith(b"GIF89a")
    assert json.loads((tmp_path / "film/record.json").read_text())["deterministic"] is False


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--episodes", 0], "episodes: must be at least 1, got 0"),
        (["--format", "avi"], "format: expected one of 'mp4', 'gif', got 'avi'"),
        (["--output", "run/config.yaml/x"], "output: cannot write 'run/config.yaml/x'"),
    ],
)
def test_bad_input_is_one_line(record, options, line):
    finished = record(*options)
    assert finished.returncode == 2
    assert f"error: {line}" in finished.stderr


def test_without_moviepy_the_line_to_run_is_given(record, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finished = record()
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == 'error: record needs moviepy; pip install "pg_lightning[video]"'


def test_a_checkpoint_must_be_given(cli, tmp_path):
    finished = cli(tmp_path, "record")
    assert finished.returncode == 2
    assert "error: ckpt_path: record needs a checkpoint" in finished.stderr


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_a_video_is_not_written_through_a_link(record, tmp_path, format):
    pytest.importorskip("moviepy")
    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / "film").mkdir()
    for name in ("new-episode-0.mp4", f"episode_0000.{format}", "record.json"):
        (tmp_path / "film" / name).symlink_to(victim)
    assert record("--episodes", 1, "--output", "film", "--format", format).returncode == 0
    assert victim.read_text() == "content"
    assert not any(path.is_symlink() for path in (tmp_path / "film").iterdir())
