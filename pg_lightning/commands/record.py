"""`python -m pg_lightning record --ckpt_path P`: videos of episodes of a policy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from pg_lightning.commands.record_games import record_games, write_report
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs import BACKENDS
from pg_lightning.envs.filming import camera, rendering, require_pictures
from pg_lightning.errors import UserError, require
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.rollout import Episode

VideoFormat = Literal["mp4", "gif"]


def record(
    trainer: Trainer,
    model: PolicyGradientModule,
    data: RolloutDataModule,
    ckpt_path: str,
    episodes: int,
    format: VideoFormat,
    folder: Path,
) -> list[Path]:
    """Plays episodes and writes each as a video, and `record.json` with their returns and lengths.

    Games of self-play are written as text: see `record_games`.

    Its keys: `env_id, seed, env_steps` (of training), `deterministic`, and `episodes`, each with `file, return,
    length`.

    Returns:
        The videos or texts.

    Raises:
        UserError: if the environment cannot be rendered, or the folder cannot be written.
    """
    require("episodes", episodes, 1)
    if data.self_play is not None:
        return record_games(trainer, model, data, ckpt_path, episodes, folder)
    require_pictures("record", data.env_id, data.env_kwargs, data.wrappers, data.backend)
    filmed = data.with_settings(
        env_kwargs=rendering(data.env_kwargs),
        wrappers=[*data.wrappers, camera(folder, "new", disable_logger=True)],
        num_envs=1,
        backend=BACKENDS[data.backend].alone,
        eval_episodes=episodes,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("new-episode-*"):  # of a killed process, or a link to another file
            left.unlink()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Overwriting existing videos")
            played: Any = trainer.predict(model, datamodule=filmed, ckpt_path=ckpt_path, return_predictions=True)
        files = [_finished(folder, i, format) for i in range(episodes)]
        lines = [_line(file, episode) for file, episode in zip(files, played, strict=True)]
        write_report(folder, model, data, lines)
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error}; give another folder") from error
    for line in lines:
        print(f"return {line['return']:.1f} in {line['length']} steps: {folder / line['file']}")
    return files


def _finished(folder: Path, index: int, format: VideoFormat) -> Path:
    """Renames the video of an episode, and converts it to the requested format."""
    made, file = folder / f"new-episode-{index}.mp4", folder / f"episode_{index:04d}.{format}"
    if format == "mp4":
        return made.replace(file)
    from moviepy import VideoFileClip

    file.unlink(missing_ok=True)  # it may be a link to another file
    with VideoFileClip(str(made)) as clip:
        clip.write_gif(str(file), logger=None)
    made.unlink()
    return file


def _line(file: Path, episode: Episode) -> dict[str, Any]:
    return {"file": file.name, "return": episode.episode_return.item(), "length": int(episode.episode_length)}
