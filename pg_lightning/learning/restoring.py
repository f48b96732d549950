"""What a Trainer restores from a checkpoint besides the module: checked and confined before anything is restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from pg_lightning.checkpoint import schema
from pg_lightning.checkpoint.paths import with_own_paths, without_paths
from pg_lightning.checkpoint.values import Damage, Unchecked
from pg_lightning.class_path import require_imported
from pg_lightning.errors import UserError, named_cause_of
from pg_lightning.learning.optimizer_state import Restored
from pg_lightning.lightning_private import FallibleModelCheckpoint
from pg_lightning.policies.description import require_fitting, require_small
from pg_lightning.policies.trained import PREFIX
from pg_lightning.run.checkpoints import CheckedCheckpointIO, read_own_checkpoint

# Callbacks without whose state a run cannot continue as if it had not been interrupted.
NEEDED = ("RandomStates", "EvaluateEverySteps")
# Parts that an evaluation does not need.
OF_TRAINING = ("loops", "optimizer_states", "lr_schedulers", "native_amp_scaling_state")
# Arguments of an algorithm that name classes; others may as `{class_path, init_args}`.
CLASSES = ("policy", "torso", "head", "optimizer", "critic_optimizer", "lr_schedule")


def check_reading(trainer: Trainer, stage: str) -> None:
    """Makes a Trainer check the file of a checkpoint before it is loaded, unless a plugin of the user loads it."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckedCheckpointIO()
    if isinstance(strategy.checkpoint_io, CheckedCheckpointIO):
        strategy.checkpoint_io.use = "fit" if stage == "fit" else "evaluate"


def prepare(module: LightningModule, trainer: Trainer | None, checkpoint: dict[str, Unchecked]) -> None:
    """Checks a checkpoint before anything is restored from it; removes what an evaluation does not need.

    Args:
        module: whose weights are about to be restored.
        trainer: that restores the rest, or None.
        checkpoint: Lightning's; it is changed.

    Raises:
        UserError: naming the file, the field and what is wrong with it.
    """
    fits = trainer is not None and trainer.state.fn == "fit"
    file = "" if trainer is None else trainer.ckpt_path
    try:
        schema.check(checkpoint, "fit" if fits else "evaluate")
        schema.check_values(checkpoint["state_dict"], module.state_dict())
        if trainer is not None:
            schema.check_task(type(getattr(trainer, "datamodule", None)).__qualname__, checkpoint)
        if trainer is not None and fits:
            _check_parts(trainer, checkpoint)
    except Damage as damage:
        raise damage.in_file(file) from None
    if trainer is None:
        return
    if not fits:
        for name in (*OF_TRAINING, type(trainer.precision_plugin).__qualname__):
            checkpoint.pop(name, None)
    confine_paths(trainer, checkpoint)


class LoadsChecked:
    """A LightningModule whose checkpoints are checked before it is created from one."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Unchecked, **kwargs: Unchecked) -> Unchecked:
        """The module of a checkpoint; see Lightning's method for the arguments.

        Raises:
            UserError: if the checkpoint is damaged, names a class that is not imported, or does not describe a module.
        """
        with safe_arguments(cls.__name__, checkpoint_path, kwargs):
            arguments = {**kwargs, "weights_only": True}
            return super().load_from_checkpoint(checkpoint_path, *args, **arguments)  # type: ignore[misc]


@contextmanager
def safe_arguments(name: str, path: object, given: Mapping[str, Unchecked]) -> Iterator[None]:
    """Checks the `hyper_parameters` of a checkpoint before a module is created from them, and names what fails then.

    Args:
        name: of the module's class.
        path: of the checkpoint, on the disk.
        given: arguments that replace those of the checkpoint.

    Raises:
        UserError: if the checkpoint is damaged, or names a class that is not imported.
    """
    if not isinstance(path, (str, Path)) or "://" in str(path):
        raise UserError("checkpoint_path: give the path of a file on this machine")
    checkpoint = read_own_checkpoint(path)
    stored = {key: x for key, x in checkpoint.get("hyper_parameters", {}).items() if key not in given}
    described = checkpoint["pg_lightning"].get("policy", {"refused": ""})
    weights = {key.removeprefix(PREFIX): x for key, x in checkpoint["state_dict"].items() if key.startswith(PREFIX)}
    try:
        for key, value in stored.items():
            if key in CLASSES or isinstance(value, dict):
                require_imported(f"model.{key}", value)
        for key in ("observation_space", "action_space"):
            require_small(stored.get(key, {}))
        for key, value in described.get("init_args", {}).items():
            if key in stored and not key.endswith("_space") and stored[key] != value:
                raise Damage(f"hyper_parameters.{key}", "is not that of pg_lightning.policy")
        require_fitting(described, weights)
        yield
    except UserError:
        raise
    except Damage as damage:
        raise damage.in_file(path, "checkpoint_path") from None
    except Exception as error:  # the arguments may be of any type
        raise UserError(f"checkpoint_path: cannot make {name} from {str(path)!r}: {named_cause_of(error)}") from error


def _check_parts(trainer: Trainer, checkpoint: Mapping[str, Unchecked]) -> None:
    """Refuses a checkpoint without a state that Lightning would silently leave as it is."""
    found = checkpoint["callbacks"]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # A run that continues in its own folder has its best checkpoint there.
        is_best = isinstance(callback, FallibleModelCheckpoint) and lies_in(trainer.ckpt_path, str(callback.dirpath))
        if (callback.state_key in NEEDED or is_best) and not found.get(callback.state_key):
            raise Damage(f"callbacks[{callback.state_key[:40]!r}]", "is missing")
    datamodule = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "episodes_go_on") and type(datamodule).__qualname__ not in checkpoint:
        raise Damage(type(datamodule).__qualname__, "is missing")


def confine_paths(trainer: Trainer, checkpoint: dict[str, Unchecked]) -> None:
    """Replaces the state of every `ModelCheckpoint` by one that names only files in the callback's own folder.

    Lightning removes the files that a restored state names. A state is that of this folder if the checkpoint lies in
    it, or was written by a callback with the same folder; otherwise nothing of it is restored.
    """
    states = checkpoint.get("callbacks")
    if not isinstance(states, dict):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not isinstance(state, dict):
            continue
        folder = str(callback.dirpath)
        is_own = state.get("dirpath") == folder or lies_in(trainer.ckpt_path, folder)
        states[callback.state_key] = (
            with_own_paths(state, folder, callback.FILE_EXTENSION) if is_own else without_paths(state)
        )


def lies_in(checkpoint: object, folder: str) -> bool:
    """Whether a checkpoint lies in a folder, however both are written."""
    return Path(str(checkpoint)).resolve().parent == Path(folder).resolve()


def restored(trainer: Trainer | None, checkpoint: Mapping[str, Unchecked]) -> Restored:
    """What the optimizers of a resumed run are checked with."""
    file = "" if trainer is None else str(trainer.ckpt_path)
    optimizers = checkpoint["optimizer_states"]
    return Restored(file, checkpoint["pg_lightning"]["policy_version"], optimizers, checkpoint["lr_schedulers"])
