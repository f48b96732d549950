"""Lightning's Trainer with a method for every other command on a policy; each is a sub-command."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from pg_lightning.commands.diagnose import diagnose
from pg_lightning.commands.export import export
from pg_lightning.commands.export_text import export_text
from pg_lightning.commands.play import Seat, play
from pg_lightning.commands.policy_graph import PolicyFormat
from pg_lightning.commands.record import VideoFormat, record
from pg_lightning.data import RolloutDataModule
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.run.folder import run_folder
from pg_lightning.text import TextDataModule


class PolicyTrainer(Trainer):
    """A Trainer that can also record videos of a policy, play against it, export it, and diagnose its gradient."""

    def record(
        self,
        model: PolicyGradientModule,
        datamodule: RolloutDataModule,
        ckpt_path: str | None = None,
        episodes: int = 3,
        format: VideoFormat = "mp4",
        output: Path | None = None,
    ) -> None:
        """Plays episodes and writes each as a video, or games of self-play as text.

        Args:
            model: the policy.
            datamodule: the environment; `data.eval_deterministic` selects the mode of the policy, or samples.
            ckpt_path: the weights.
            episodes: number of episodes.
            format: mp4 or gif.
            output: folder of the files; by default `record` in the run folder.
        """
        assert ckpt_path is not None
        record(self, model, datamodule, ckpt_path, episodes, format, output or run_folder(Path(ckpt_path)) / "record")

    def play(
        self,
        model: PolicyGradientModule,
        datamodule: RolloutDataModule,
        ckpt_path: str | None = None,
        seat: Seat = "first",
        games: int = 1,
    ) -> None:
        """A person plays a game against the policy in the terminal.

        Args:
            model: the policy.
            datamodule: the game; `data.eval_deterministic` selects the mode of the policy, or samples.
            ckpt_path: the weights.
            seat: of the person; the first makes the first move.
            games: number of games.
        """
        assert ckpt_path is not None
        play(self, model, datamodule, ckpt_path, seat, games)

    def export(
        self,
        model: PolicyGradientModule,
        datamodule: RolloutDataModule | TextDataModule,
        ckpt_path: str | None = None,
        format: PolicyFormat = "onnx",
        output: Path | None = None,
    ) -> None:
        """Writes the policy as one file that runs without this package, and a card in JSON.

        A language model becomes a folder that `transformers` reads.

        Args:
            model: the policy.
            datamodule: its environment.
            ckpt_path: the weights.
            format: onnx, or torch for a `.pt2` that `torch.export.load` reads; not of a language model.
            output: folder of the file and its card; by default `export` in the run folder.
        """
        assert ckpt_path is not None
        folder = output or run_folder(Path(ckpt_path)) / "export"
        if isinstance(datamodule, TextDataModule):
            export_text(self, model, datamodule, ckpt_path, folder)
        else:
            export(self, model, datamodule, ckpt_path, format, folder)

    def diagnose(
        self,
        model: PolicyGradientModule,
        datamodule: RolloutDataModule,
        ckpt_path: str | None = None,
        batches: int = 64,
        episodes: int = 16,
        gae_lambdas: list[float] = [0.5, 0.9, 0.95, 0.99],  # noqa: B006 - read by the command line, never written
        fit_critic: bool = False,
        output: Path | None = None,
    ) -> None:
        """Compares estimators of the policy gradient on the same episodes: their noise, and their bias.

        Args:
            model: the policy.
            datamodule: the environment.
            ckpt_path: the weights; without them the policy has its initial weights.
            batches: number of batches; the noise is estimated from the differences between them.
            episodes: episodes per batch; each estimator computes one gradient per batch.
            gae_lambdas: λ of GAE to compare, in addition to 0, the TD error, and 1, the learned baseline.
            fit_critic: fit a critic to episodes of the policy, even if the checkpoint has one. Without a
                checkpoint, or without a critic in it, one is always fitted.
            output: folder of `diagnose.csv`, `.json`, `.png` and `.svg`; by default the run folder, without a
                checkpoint `diagnose`.
        """
        folder = output or (Path("diagnose") if ckpt_path is None else run_folder(Path(ckpt_path)))
        diagnose(self, model, datamodule, ckpt_path, batches, episodes, gae_lambdas, fit_critic, folder)
