"""A video of one episode per evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.data.datamodule import VALIDATE
from pg_lightning.envs import env_seed, make_vector_env
from pg_lightning.envs.filming import camera, rendering, require_pictures
from pg_lightning.errors import require


class EvaluationVideo(Callback):
    """Plays the first episode of every evaluation again and saves it as a video.

    The files are `videos/env_steps_…-episode-0.mp4` in the run's folder; W&B gets them as `val/video`. The environment
    and the random numbers are separate, so training is not affected.

    Args:
        max_frames: limit after which a long episode is stopped.

    Raises:
        UserError: when training begins, if moviepy is not installed or the environment cannot render.
    """

    def __init__(self, max_frames: int = 500) -> None:
        require("trainer.callbacks: EvaluationVideo.max_frames", max_frames, 1)
        self.max_frames = max_frames
        self._is_working = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks before training starts that videos can be recorded."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        who = "trainer.callbacks: EvaluationVideo"
        require_pictures(who, data.env_id, data.env_kwargs, data.wrappers, data.backend)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records, on rank 0. A failure ends the videos, with a warning, but not training."""
        folder = trainer.log_dir  # a collective: all ranks must read it
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero or not self._is_working:
            return
        try:
            video = self.record(trainer, pl_module, Path(folder or ".") / "videos")
        except StopIteration:  # a signal has aborted the episode, and ends the run
            return
        except Exception as error:
            self._is_working = False
            rank_zero_warn(f"no more videos in this run: {error}")
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_video("val/video", [str(video)])

    def record(self, trainer: Trainer, pl_module: Any, folder: Path) -> Path:
        """Plays the episode and writes its video into a folder.

        Returns:
            The file.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = f"env_steps_{pl_module.env_steps:010d}"
        video = folder / f"{name}-episode-0.mp4"
        video.unlink(missing_ok=True)  # it may be a link to another file
        env = self.make_env(data, folder, name)
        try:
            seed = data.seed
            episode = EvaluationDataset(
                env,
                pl_module.actor,
                [env_seed(seed, VALIDATE, 0)],
                env_seed(seed, VALIDATE, 0, 0),
                data.eval_deterministic,
                self.max_frames,
            )
            next(iter(episode))
        finally:
            env.close()
        return video

    def make_env(self, data: RolloutDataModule, folder: Path, name: str) -> VectorEnv:
        """The environment of the evaluations, with a recorder that writes into a folder."""
        wrappers = [
            *data.wrappers,
            {"class_path": "gymnasium.wrappers.TimeLimit", "init_args": {"max_episode_steps": self.max_frames}},
            camera(folder, name),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other videos in the folder
            return make_vector_env(data.env_id, 1, rendering(data.env_kwargs), wrappers, autoreset_mode="disabled")
