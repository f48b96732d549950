"""Lightning's Trainer, with a method for everything else that people do with a policy: each is a sub-command."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from pg_lightning.commands.diagnose import diagnose
from pg_lightning.commands.export import export
from pg_lightning.commands.policy_graph import PolicyFormat
from pg_lightning.commands.record import VideoFormat, record
from pg_lightning.data import RolloutDataModule
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.run.folder import run_folder


class PolicyTrainer(Trainer):
    """A Trainer that also films and exports a policy, and diagnoses its gradient."""

    def record(
        self,
        model: PolicyGradientModule,
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
        model: PolicyGradientModule,
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
        """Compares estimators of the policy gradient, all on the same episodes: their noise, and their bias.

        Args:
            model: the policy.
            datamodule: the environment.
            ckpt_path: the weights; without them the policy is as it is initialised.
            batches: how many; from the differences between them noise is told.
            episodes: of one batch; each estimator makes one gradient of it.
            gae_lambdas: λ of GAE to compare, beside 0, the TD error, and 1, the learned baseline.
            fit_critic: fit a critic to episodes of the policy, even though the checkpoint has one. Where there is no
                checkpoint, or no critic in it, one is fitted in any case.
            output: folder of `diagnose.csv`, `.json`, `.png` and `.svg`; by default that of the run, without a
                checkpoint `diagnose`.
        """
        folder = output or (Path("diagnose") if ckpt_path is None else run_folder(Path(ckpt_path)))
        diagnose(self, model, datamodule, ckpt_path, batches, episodes, gae_lambdas, fit_critic, folder)
