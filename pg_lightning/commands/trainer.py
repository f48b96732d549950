"""Lightning's Trainer, with a method for everything else that people do with a policy: each is a sub-command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pg_lightning.callbacks import run_folder
from pg_lightning.commands.export import PolicyFormat, export
from pg_lightning.commands.record import VideoFormat, record
from pg_lightning.data import RolloutDataModule


class PolicyTrainer(Trainer):
    """A Trainer that also films and exports a policy."""

    def record(
        self,
        model: Any,
        datamodule: RolloutDataModule,
        ckpt_path: str | None = None,
        episodes: int = 3,
        format: VideoFormat = "mp4",
        output: Path | None = None,
    ) -> None:
        """Plays episodes and writes each as a video.

        Args:
            model: the policy.
            datamodule: the environment; `data.eval_deterministic` says whether the mode is played, or samples.
            ckpt_path: the weights.
            episodes: how many.
            format: mp4 or gif.
            output: folder of the videos; by default `record` in the run's.
        """
        assert ckpt_path is not None
        record(self, model, datamodule, ckpt_path, episodes, format, output or run_folder(Path(ckpt_path)) / "record")

    def export(
        self,
        model: Any,
        datamodule: RolloutDataModule,
        ckpt_path: str | None = None,
        format: PolicyFormat = "onnx",
        output: Path | None = None,
    ) -> None:
        """Writes the policy as one file that can be run without this package, and a card in JSON beside it.

        Args:
            model: the policy.
            datamodule: its environment.
            ckpt_path: the weights.
            format: onnx, or torch for a `.pt2` that `torch.export.load` reads.
            output: folder of the file and its card; by default `export` in the run's.
        """
        assert ckpt_path is not None
        export(self, model, datamodule, ckpt_path, format, output or run_folder(Path(ckpt_path)) / "export")
