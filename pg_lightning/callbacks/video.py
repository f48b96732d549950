"""What the policy does, to look at: an episode of every evaluation as a video."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.data.datamodule import VALIDATE
from pg_lightning.envs import env_seed, make_env, make_vector_env
from pg_lightning.errors import UserError, require


class EvaluationVideo(Callback):
    """Plays the first episode of every evaluation once more and keeps it as a video.

    The files are `videos/env_steps_…-episode-0.mp4` in the run's folder; W&B gets them as `val/video`. Environment and
    random numbers are the video's own, so training is what it would be without.

    Args:
        max_frames: where a long episode is cut.

    Raises:
        UserError: when training begins, if moviepy is not installed or the environment gives no pictures.
    """

    def __init__(self, max_frames: int = 500) -> None:
        require("trainer.callbacks: EvaluationVideo.max_frames", max_frames, 1)
        self.max_frames = max_frames
        self._is_working = True

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Finds out before training begins whether there will be pictures."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        require_pictures(trainer.datamodule, "trainer.callbacks: EvaluationVideo")  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Records, on rank 0. A failure ends the videos, with a warning, and not the training."""
        folder = trainer.log_dir  # asks rank 0, so every rank must
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero or not self._is_working:
            return
        try:
            video = self._record(trainer, pl_module, Path(folder or ".") / "videos")
        except StopIteration:  # a signal has cut the episode, and ends the run
            return
        except Exception as error:
            self._is_working = False
            rank_zero_warn(f"no more videos in this run: {error}")
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_video("val/video", [str(video)])

    def _record(self, trainer: Trainer, pl_module: Any, folder: Path) -> Path:
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = f"env_steps_{pl_module.env_steps:010d}"
        env = self._make_env(data, folder, name)
        try:
            seed = data.seed
            episode = EvaluationDataset(
                env,
                pl_module,
                [env_seed(seed, VALIDATE, 0)],
                env_seed(seed, VALIDATE, 0, 0),
                data.eval_deterministic,
                self.max_frames,
            )
            next(iter(episode))
        finally:
            env.close()
        return folder / f"{name}-episode-0.mp4"

    def _make_env(self, data: RolloutDataModule, folder: Path, name: str) -> VectorEnv:
        wrappers = [
            *data.wrappers,
            {"class_path": "gymnasium.wrappers.TimeLimit", "init_args": {"max_episode_steps": self.max_frames}},
            camera(folder, name),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the folder has other videos in it
            return make_vector_env(data.env_id, 1, rendering(data), wrappers, "sync", "disabled")


def require_pictures(data: RolloutDataModule, who: str) -> None:
    """Finds out whether there will be pictures.

    Raises:
        UserError: in the name of `who`, if moviepy is not installed or the environment gives none.
    """
    if importlib.util.find_spec("moviepy") is None:
        raise UserError(f'{who} needs moviepy; pip install "pg_lightning[video]"')
    if data.backend == "envpool":
        raise UserError(f"{who} cannot render with EnvPool; set data.backend to sync, and data.env_id to Gymnasium's")
    try:
        env = make_env(data.env_id, rendering(data), data.wrappers)
        env.reset(seed=0)
        picture = env.render()
        env.close()
    except Exception as error:
        raise UserError(f"{who} cannot render {data.env_id!r}: {error}") from error
    if getattr(picture, "ndim", 0) != 3:
        raise UserError(f"{who}: {data.env_id!r} has no render mode 'rgb_array'")


def camera(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """The wrapper that films every episode, as `<name>-episode-K.mp4` in the folder."""
    arguments = {"video_folder": str(folder), "name_prefix": name, "episode_trigger": lambda episode: True}
    return {"class_path": "gymnasium.wrappers.RecordVideo", "init_args": {**arguments, **options}}


def rendering(data: RolloutDataModule) -> dict[str, Any]:
    """Arguments of an environment that draws."""
    return {**(data.env_kwargs or {}), "render_mode": "rgb_array"}
