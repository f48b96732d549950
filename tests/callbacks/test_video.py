"""Videos of evaluations: there where they are asked for, and training does not notice."""

import importlib.util
import shutil
import signal
from functools import partial

import pytest
from interruptions import sends
from run_files import assert_same_weights, load, read_metrics

from pg_lightning.callbacks import video
from pg_lightning.envs import make_vector_env

VIDEO = ("--trainer.callbacks", "EvaluationVideo")


def test_without_moviepy_it_is_one_clear_line(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finished = cli(tmp_path, "fit", "--config", tiny, *VIDEO)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        'error: trainer.callbacks: EvaluationVideo needs moviepy; pip install "pg_lightning[video]"'
    )


def test_an_environment_without_pictures_is_one_clear_line(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    finished = cli(tmp_path, "fit", "--config", tiny, *VIDEO, "--data.env_id", "odd_envs:Flat-v0")
    assert finished.returncode == 2
    assert "error: trainer.callbacks: EvaluationVideo cannot render 'odd_envs:Flat-v0'" in finished.stderr


def test_every_evaluation_has_a_video_of_its_first_episode(run, train, tmp_path):
    moviepy = pytest.importorskip("moviepy")
    ours = train(tmp_path, *VIDEO)
    steps = [int(row["step"]) for row in read_metrics(run) if "val/return_mean" in row]
    files = sorted((ours / "videos").iterdir())
    assert [file.name for file in files] == [f"env_steps_{step:010d}-episode-0.mp4" for step in steps]
    assert moviepy.VideoFileClip(str(files[-1])).size == [600, 400]
    assert_same_weights(ours / "checkpoints/last.ckpt", run / "checkpoints/last.ckpt")


def test_a_video_is_not_written_through_a_link(run, cli, tiny, tmp_path):
    """In a received folder in which a run goes on."""
    pytest.importorskip("moviepy")
    victim, videos = tmp_path / "victim", shutil.copytree(run, tmp_path / "runs/tiny/version_0") / "videos"
    victim.write_text("content")
    videos.mkdir()
    for step in range(704, 1000, 64):
        (videos / f"env_steps_{step:010d}-episode-0.mp4").symlink_to(victim)
    finished = cli(tmp_path, "fit", "--config", tiny, *VIDEO, "--ckpt_path", "last", "--data.total_steps", 800)
    assert finished.returncode == 0, finished.stderr
    assert victim.read_text() == "content"
    (written,) = [path for path in videos.iterdir() if not path.is_symlink()]
    assert written.stat().st_size > 1000


def test_a_video_that_fails_ends_the_videos_and_not_the_run(run, train, tmp_path, monkeypatch):
    def fail(*_):
        attempts.append(1)
        raise OSError(28, "No space left on device")

    attempts: list[int] = []
    monkeypatch.setattr(video.EvaluationVideo, "setup", lambda *_, **__: None)
    monkeypatch.setattr(video.EvaluationVideo, "record", fail)
    with pytest.warns(UserWarning, match="no more videos in this run: .*No space left on device"):
        ours = train(tmp_path, *VIDEO)
    assert len(attempts) == 1
    assert_same_weights(ours / "checkpoints/last.ckpt", run / "checkpoints/last.ckpt")


def test_a_video_that_a_signal_cuts_is_none_that_failed(cli, tiny, tmp_path, monkeypatch, recwarn):
    """In the second evaluation: the run ends with its checkpoint, and nothing is said of videos."""

    reset = sends(signal.SIGTERM, lambda env, **arguments: type(env).reset(env, **arguments), at=2, sleep=60)

    def make_env(_, data, *__):
        env = make_vector_env(data.env_id, 1, autoreset_mode="disabled")
        env.reset = partial(reset, env)
        return env

    monkeypatch.setattr(video.EvaluationVideo, "setup", lambda *_, **__: None)
    monkeypatch.setattr(video.EvaluationVideo, "make_env", make_env)
    assert cli(tmp_path, "fit", "--config", tiny, *VIDEO).returncode == 143
    assert load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["pg_lightning"]["env_steps"] == 448
    assert [str(x.message) for x in recwarn if "videos" in str(x.message)] == []
