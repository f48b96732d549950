"""Weights & Biases as a copy of the run's metrics: if it is slow or fails, training is not affected.

The primary record is on disk, in `metrics.csv` and the checkpoints. All exceptions of W&B are caught here.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from pg_lightning.errors import UserError, cause_of
from pg_lightning.lightning_private import OpenWandbLogger
from pg_lightning.run.files import write_file
from pg_lightning.run.provenance import code_version, commit
from pg_lightning.run.secrets import without_secrets_in

AXIS = "time/env_steps"
PROBE_SECONDS = 5.0
INIT_SECONDS = 20.0
FINISH_SECONDS = 20.0
NEW: dict[str, Any] = {"id": None, "env_steps": -1}


def _tolerant(method: Callable[..., Any]) -> Callable[..., None]:
    """Turns all exceptions of a method into a single warning; after a failure it pauses for 1, 2, 4, … calls."""

    @wraps(method)
    def call(self: FaultTolerantWandbLogger, *args: Any, **kwargs: Any) -> None:
        if self._resting:
            self._resting -= 1
            return
        try:
            method(self, *args, **kwargs)
            self._failures = 0
        except Exception as error:
            self._resting = 2**self._failures
            self._failures += 1
            self._warn(f"{cause_of(error)}; metrics.csv is complete")

    return call


class FaultTolerantWandbLogger(OpenWandbLogger):
    """Lightning's `WandbLogger` for runs that must not stop or wait because of it, with env steps as the x-axis.

    If the server does not answer at the start, rejects the key, or there is no key, the run is recorded offline, for
    `wandb sync` to upload. Later failures cause one warning. At the end it waits for uploads for 20 s, or
    `WANDB_FINISH_TIMEOUT`; unsent data stays on disk.

    Args:
        name: name of the run in the UI.
        save_dir: the folder of `wandb/` with the run's files.
        project: by default `WANDB_PROJECT` or `pg_lightning`.
        continues: folder of an earlier part of this run; its W&B run is continued after its last metrics.
        log_model: upload the best checkpoint when training ends, as the artifact `model-<run id>`.
        kwargs: arguments of `WandbLogger` and `wandb.init`.

    Raises:
        UserError: if wandb is not installed.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        project: str | None = None,
        continues: str | None = None,
        log_model: bool = False,
        **kwargs: Any,
    ) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(f"trainer.logger: wandb cannot be imported ({error}); pip install wandb") from error
        is_named = kwargs.get("id") is not None or "WANDB_RUN_ID" in os.environ  # set, for example, by a sweep agent
        self._state_file = Path(save_dir) / "wandb" / "run.json"
        state = NEW if continues is None or is_named else _read_state(Path(continues))
        project = project or os.environ.get("WANDB_PROJECT", "pg_lightning")
        super().__init__(name=name, save_dir=save_dir, project=project, **kwargs)
        own = {"id": kwargs.get("id") or state["id"], "resume": kwargs.get("resume") or "allow"}
        self.init_arguments.update(own)
        for key in [key for key, value in self.init_arguments.items() if value is None]:
            del self.init_arguments[key]
        self._logs_best = log_model
        self._best: ModelCheckpoint | None = None
        self._mirrored_before = state["env_steps"]
        self._failures = 0
        self._resting = 0
        self._has_warned = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run: online, else offline, else an object that does nothing.

        Raises:
            UserError: if a setting of wandb, as in `WANDB_MODE`, is not valid.
        """
        if self.run is None:
            self.run = self._start()
        return self.run

    def _start(self) -> Any:
        import wandb

        try:
            settings = wandb.setup().settings
        except Exception as error:
            raise UserError(f"trainer.logger: wandb's settings: {cause_of(error)}") from error
        own = wandb.Settings(
            init_timeout=min(settings.init_timeout, INIT_SECONDS),
            finish_timeout=settings.finish_timeout or FINISH_SECONDS,
            disable_git=True,  # with WANDB_SAVE_CODE it calls git diff, which runs programs that the repository names
            git_commit=(commit() or "").rstrip("+") or None,
        )
        self.init_arguments.setdefault("settings", own)
        online = (
            settings.mode == "online" and not self.is_offline and self.init_arguments.get("mode") in (None, "online")
        )
        troubles: list[str] = []
        for mode in ("online", "offline") if online else (self.init_arguments.get("mode"),):
            try:
                if mode == "online":
                    _probe(settings.base_url)
                run = self.begin(mode)
            except Exception as error:
                troubles.append(cause_of(error))
                with suppress(Exception, SystemExit):  # otherwise the failed run would keep the id
                    wandb.finish(exit_code=1)
                    wandb.teardown()
            else:
                if troubles:
                    upload = f"wandb sync {self._state_file.parent}"
                    self._warn(f"{troubles[0]}; the run is recorded offline, to be uploaded by `{upload}`")
                return run
        self._warn(f"{troubles[0]}; nothing is recorded there; metrics.csv is complete")
        return wandb.init(mode="disabled")

    def begin(self, mode: str | None) -> Any:
        """Starts the W&B run in a mode; raises wandb's exceptions."""
        self.init_arguments["mode"] = mode
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        self.run = None
        run = super().experiment
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS, step_sync=True)
        run.config.update({"pg_lightning": code_version()}, allow_val_change=True)
        self._remember(run, self._mirrored_before)
        return run

    @rank_zero_only
    @_tolerant
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Adds a line of history. Steps that an earlier part of the run has logged are skipped."""
        env_steps = metrics.get(AXIS)
        if env_steps is not None and env_steps < self._mirrored_before:
            return
        super().log_metrics(metrics)
        if env_steps is not None:
            self._remember(self.experiment, env_steps)

    log_hyperparams = _tolerant(WandbLogger.log_hyperparams)
    log_table = _tolerant(WandbLogger.log_table)
    log_image = _tolerant(WandbLogger.log_image)
    log_audio = _tolerant(WandbLogger.log_audio)
    log_video = _tolerant(WandbLogger.log_video)
    watch = _tolerant(WandbLogger.watch)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Stores the callback that has the best checkpoint."""
        if self._logs_best and checkpoint_callback.monitor:
            self._best = checkpoint_callback

    @rank_zero_only
    @_tolerant
    def finalize(self, status: str) -> None:
        """Uploads the best checkpoint, also of an interrupted run."""
        if self.run is None:
            return
        if self._best is not None:
            self._upload(self._best)
            self._best = None
        if multiprocessing.parent_process() is not None:  # a worker of hogwild, which exits without wandb's exit hooks
            self.run.finish()

    def _upload(self, best: ModelCheckpoint) -> None:
        import wandb

        score = best.best_model_score
        metadata = {} if score is None else {str(best.monitor): float(score)}
        artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata=metadata)
        artifact.add_file(best.best_model_path)
        self.experiment.log_artifact(artifact, aliases=["best"])

    def _remember(self, run: Any, env_steps: float) -> None:
        """Writes the id of the W&B run and its last env step to a file, for a later part of the run."""
        write_file(self._state_file, json.dumps({"id": run.id, "env_steps": env_steps}), durable=False)

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(f"Weights & Biases: {without_secrets_in(message)}")


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "wandb" / "run.json").read_text()))
    except (OSError, ValueError):  # missing or truncated: the run gets a new id
        return NEW


def _probe(url: str) -> None:
    """Requests the version of a W&B server; `wandb.init` would take a minute and a half to detect a dead server.

    Raises:
        ConnectionError: if it does not answer, or reports an error.
    """
    query = json.dumps({"query": "{ serverInfo { cliVersionInfo } }"}).encode()
    request = urllib.request.Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise ConnectionError(f"{url} answers {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # W&B may trust a certificate that Python does not trust
            raise ConnectionError(f"{url} does not answer ({reason})") from error
