"""Every private name of Lightning that the package uses, each behind a public function or class with the reason.

No other module may use them; those of torch are in `torch_private`. One test for each name in
`tests/test_lightning_private.py` fails when Lightning moves it, and pyproject bounds Lightning's version from above.
"""

from __future__ import annotations

from copy import copy
from datetime import timedelta
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer.call import _call_and_handle_interrupt
from torch import Tensor

# The interface through which a Trainer starts its entry points; a strategy that forks workers must implement it.
Launcher = _Launcher

# The launcher that starts the ranks of DDP on one host; its `procs` are the only way to find out how a rank died.
SubprocessLauncher = _SubprocessScriptLauncher


def dismiss_observer(launcher: SubprocessLauncher) -> None:
    """Ends Lightning's watch over the ranks that it has started on this host.

    It checks the ranks every five seconds, and if one has died it kills this process by SIGKILL, so that the dead rank
    could not be named. It uses the launcher's list of processes, and ends when that is empty.
    """
    observed, launcher.procs = launcher.procs, list(launcher.procs)
    observed.clear()


# Runs one of the Trainer's entry points with its exception handling, which every forked worker needs too.
call_and_handle_interrupt = _call_and_handle_interrupt


# Modules and optimizers.


def trainer_of(module: LightningModule) -> Trainer | None:
    """The Trainer that a module is attached to, or None; the public property raises instead."""
    return module._trainer


def step_without_hooks(optimizer: Any) -> None:
    """One step of a `LightningOptimizer` under manual optimisation, without hooks that nothing implements.

    The two calls around the step count `trainer.global_step`. Skipping the strategy's and the precision plugin's part
    of `LightningOptimizer.step` saves 3 % of an update of A2C.
    """
    optimizer._on_before_step()
    optimizer.optimizer.step()
    optimizer._on_after_step()


def count_step(optimizer: Any) -> None:
    """Counts a step in `trainer.global_step` that was taken without the optimizer."""
    optimizer._on_before_step()
    optimizer._on_after_step()


# Strategies.


def process_group_timeout(strategy: Strategy) -> timedelta:
    """How long a collective waits for a rank before it fails; `DDPStrategy` has no public attribute for it."""
    return cast(Any, strategy)._timeout


def set_process_group_timeout(strategy: DDPStrategy, timeout: timedelta) -> None:
    """Sets the timeout before the process group is initialised; a strategy given by name takes no arguments."""
    strategy._timeout = timeout


class LaunchingStrategy(SingleDeviceStrategy):
    """A strategy with its own launcher; Lightning requests the launcher by a private method."""

    def make_launcher(self) -> Launcher:
        """The launcher of the Trainer's entry points. To be overridden."""
        raise NotImplementedError

    def drop_launcher(self) -> None:
        """Makes entry points run in this process, as in a worker that is already launched."""
        self._launcher = None

    def _configure_launcher(self) -> None:
        self._launcher = self.make_launcher()


# Signals.


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keeps Lightning from handling SIGTERM and SIGUSR1 in a fit.

    Its handlers would save during an update and exit with status 0, and its all-reduce after every batch would
    only agree on SIGTERM.
    """
    cast(Any, trainer)._signal_connector.register_signal_handlers = lambda: None
    cast(Any, trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor = lambda: None


# Checkpoints.


class FallibleModelCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose saves may fail: a failed save counts neither as the last nor as the best.

    Lightning assumes that every save succeeds. It keeps the last and the best save in private attributes, which
    private methods change.
    """

    _has_failed = False

    def save_succeeded(self, trainer: Trainer) -> bool:
        """Whether the latest save succeeded; the same on all ranks. To be overridden."""
        return True

    @property
    def last_saved_path(self) -> str:
        """The file of the latest attempted save; empty before the first."""
        return self._last_checkpoint_saved

    def save_now(self, trainer: Trainer) -> None:
        """Saves as after an evaluation, unless this step was already saved or the Trainer does not save."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = self._last_global_step_saved
        super()._save_checkpoint(trainer, filepath)
        self._has_failed = not self.save_succeeded(trainer)
        if self._has_failed:
            self._last_global_step_saved = before

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        names = ("best_k_models", "kth_best_model_path", "kth_value", "best_model_path", "best_model_score")
        before = {name: copy(getattr(self, name)) for name in names if hasattr(self, name)}
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if self._has_failed:
            vars(self).update(before)


def count_whole_batches(checkpoint: dict[str, Any]) -> None:
    """Makes Lightning's counters of training batches in a checkpoint independent of the hook that saved it.

    Saved at the end of a batch they are one lower than after the validation that follows it, and a resumed run would
    keep that difference. Here a batch counts as soon as it is processed.
    """
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = progress["total"]["processed"]


def datamodule_state(checkpoint: dict[str, Any], datamodule: object) -> dict[str, Any]:
    """The state of a datamodule in a checkpoint; Lightning stores it under the name of its class.

    Raises:
        KeyError: if there is none.
    """
    return checkpoint[type(datamodule).__qualname__]


# Weights & Biases.


class OpenWandbLogger(WandbLogger):
    """A `WandbLogger` whose start can be configured, and repeated after a failure."""

    @property
    def init_arguments(self) -> dict[str, Any]:
        """The arguments of `wandb.init`, to be changed in place before the run starts."""
        return self._wandb_init

    @property
    def is_offline(self) -> bool:
        """Whether the user asked for a run that uploads nothing."""
        return self._offline

    @property
    def run(self) -> Any:
        """The W&B run, or None before it starts; unlike `experiment`, it does not start one."""
        return self._experiment

    @run.setter
    def run(self, run: Any) -> None:
        self._experiment = run


# The command line.


def train_steps_between_saves(checkpoint: ModelCheckpoint) -> int:
    """`every_n_train_steps`: optimizer steps; 0 if it saves by other rules."""
    steps: int = checkpoint._every_n_train_steps
    return steps


class OpenCLI(LightningCLI):
    """A `LightningCLI` with public names for the methods that a subclass needs."""

    def resolve_checkpoint(self) -> None:
        """Handles `ckpt_path` after all arguments are parsed, before anything is instantiated. To be overridden.

        Lightning would load the whole checkpoint here to read hyper-parameters, which our checkpoints do not contain.
        """

    def parser_of(self, subcommand: str) -> LightningArgumentParser:
        """The parser of a sub-command, which can save its config."""
        return self._parser(subcommand)

    @property
    def trainer_config(self) -> Any:
        """The Trainer's arguments of the sub-command, with classes instantiated; changes take effect."""
        return self._get(self.config_init, "trainer")

    def seed_all(self) -> None:
        """Seeds the generators of the run with `seed_everything`. To be extended."""
        super()._set_seed()

    def _set_seed(self) -> None:
        self.seed_all()

    def _parse_ckpt_path(self) -> None:
        self.resolve_checkpoint()
