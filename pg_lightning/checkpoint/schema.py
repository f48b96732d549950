"""The structure of a checkpoint: which parts it must have for what, and of what kind they are.

Nothing is compared with a model here; see `learning/restoring.py` for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from pg_lightning.checkpoint.callbacks import check_callback
from pg_lightning.checkpoint.episodes import compare_ranks
from pg_lightning.checkpoint.generators import check_bit_generator
from pg_lightning.checkpoint.values import (
    Damage,
    Unchecked,
    is_number,
    kind_of,
    require_count,
    require_finite,
    require_list,
    require_mapping,
    require_text,
    require_vector,
)

# To continue training; to evaluate with a Trainer; to act without one.
Use = Literal["fit", "evaluate", "act"]
OLDEST_LIGHTNING = 2  # older versions have other parts, and no checkpoint of this package
TRAINING_PARTS = ("callbacks", "optimizer_states", "lr_schedulers")  # not in one of `save_weights_only`
TASKS = {"RolloutDataModule": "an environment", "TextDataModule": "prompts"}  # by the part of the datamodule
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.manual_optimization.optim_step_progress")


def check(checkpoint: object, use: Use) -> None:
    """Refuses a checkpoint in which a part is missing or of the wrong kind.

    Args:
        checkpoint: the content of the file; its tensors need no values.
        use: what it is needed for.

    Raises:
        Damage: naming the field and what is wrong with it.
    """
    require_mapping("the file", checkpoint)
    assert isinstance(checkpoint, Mapping)
    if "pg_lightning" not in checkpoint:
        raise Damage("pg_lightning", "is missing: it is from another program")
    if use == "fit" and all(part not in checkpoint for part in TRAINING_PARTS):
        raise Damage("optimizer_states", "is missing, for it holds only weights; training continues from a last.ckpt")
    needed: dict[str, Callable[[str, Unchecked], None]] = {"pg_lightning": _check_own, "state_dict": _check_weights}
    if use != "act":
        needed |= {"pytorch-lightning_version": _check_version}
    optional: dict[str, Callable[[str, Unchecked], None]] = {
        "hyper_parameters": require_mapping,
        "RolloutDataModule": _check_data,
        "TextDataModule": _check_prompts,
        "MixedPrecision": _check_scaler,
        "callbacks": _check_callbacks,
    }
    if use == "fit":
        needed |= {
            "epoch": require_count,
            "global_step": require_count,
            "loops": _check_loops,
            "callbacks": _check_callbacks,
            "optimizer_states": _check_optimizers,
            "lr_schedulers": _check_schedulers,
        }
    for name, check_part in needed.items():
        if name not in checkpoint:
            raise Damage(name, "is missing")
        check_part(name, checkpoint[name])
    if use == "act":
        return
    for name, check_part in optional.items():
        if name in checkpoint and name not in needed:
            check_part(name, checkpoint[name])
    if use == "fit":
        _compare_counters(checkpoint)
        data = next((name for name in TASKS if name in checkpoint), "RolloutDataModule")
        compare_ranks(checkpoint["pg_lightning"], data, checkpoint.get(data, {}))


def check_values(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuses weights and statistics that are not finite, and variances and counts that are negative.

    Args:
        weights: the module's part of a checkpoint.
        own: of the module. A tensor whose own new value is not finite, such as a mask, may be the same.

    Raises:
        Damage: naming the tensor.
    """
    for name, tensor in weights.items():
        known = own.get(name)
        if known is not None and known.is_floating_point() != tensor.is_floating_point():
            raise Damage(f"state_dict.{name}", f"is {kind_of(tensor)}, not {kind_of(known)}")
        is_finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        if not is_finite and (known is None or not _are_equal(known.cpu(), tensor.cpu())):
            raise Damage(f"state_dict.{name}", "has numbers that are NaN or infinite")
        if name.endswith(("statistics.var", "statistics.count", "running_var")):
            require_finite(f"state_dict.{name}", tensor, not_negative=True)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_weights(field: str, weights: Unchecked) -> None:
    require_mapping(field, weights)
    if not weights:
        raise Damage(field, "is empty")
    for name, tensor in weights.items():
        require_text(f"the name of {field}", name)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex():
            raise Damage(f"{field}.{name}", f"is {kind_of(tensor)}, not a tensor of real numbers")


def _check_own(field: str, own: Unchecked) -> None:
    require_mapping(field, own)
    for name in ("env_steps", "policy_version"):
        require_count(f"{field}.{name}", own.get(name))
    for name in ("env_restarts", "previous_version"):
        require_count(f"{field}.{name}", own.get(name, 0))
    if own["policy_version"] > own["env_steps"]:
        raise Damage(f"{field}.policy_version", "is larger than env_steps")
    if own.get("previous_version", 0) > own["policy_version"]:
        raise Damage(f"{field}.previous_version", "is larger than policy_version")
    for name in ("optimizer", "observation_space", "action_space"):
        require_text(f"{field}.{name}", own.get(name))
    require_text(f"{field}.lr_schedule", own.get("lr_schedule", ""))
    _check_policy(f"{field}.policy", own.get("policy", {"refused": ""}))
    for i, rank in enumerate(require_list(f"{field}.ranks", own.get("ranks", []))):
        _check_episodes(f"{field}.ranks[{i}]", rank)


def _check_policy(field: str, policy: Unchecked) -> None:
    require_mapping(field, policy)
    if "refused" in policy:
        require_text(f"{field}.refused", policy["refused"])
        return
    require_text(f"{field}.class_path", policy.get("class_path"))
    require_mapping(f"{field}.init_args", policy.get("init_args"))
    for name in ("observation_space", "action_space"):
        if name in policy["init_args"]:
            require_mapping(f"{field}.init_args.{name}", policy["init_args"][name])


def _check_episodes(field: str, rank: Unchecked) -> None:
    require_mapping(field, rank)
    for name in ("episode_returns", "episode_lengths"):
        require_vector(f"{field}.{name}", rank.get(name))
    if len(rank["episode_returns"]) != len(rank["episode_lengths"]):
        raise Damage(f"{field}.episode_lengths", "are not as many as episode_returns")
    if "discounted_returns" not in rank:
        raise Damage(f"{field}.discounted_returns", "is missing")
    if rank["discounted_returns"] is not None:
        require_vector(f"{field}.discounted_returns", rank["discounted_returns"])


def _check_version(field: str, version: Unchecked) -> None:
    require_text(field, version)
    number = re.match(r"(\d{1,4})\.\d{1,4}(\.|$)", version)
    if number is None or int(number[1]) < OLDEST_LIGHTNING:
        raise Damage(field, f"is {version[:20]!r}, not a version of Lightning that has been supported")


def check_task(data: str, checkpoint: Mapping[str, Unchecked]) -> None:
    """Refuses the checkpoint of an environment for prompts, and the reverse.

    Args:
        data: name of the class of the datamodule.
        checkpoint: the content of the file.

    Raises:
        Damage: naming both.
    """
    other = next((task for name, task in TASKS.items() if name in checkpoint and name != data), None)
    if data in TASKS and data not in checkpoint and other is not None:
        raise Damage(data, f"is missing: it was trained on {other}, not on {TASKS[data]}")


def _check_settings(field: str, data: Unchecked) -> None:
    require_mapping(field, data)
    require_mapping(f"{field}.settings", data.get("settings", {}))
    for name, value in data.get("settings", {}).items():
        require_text(f"{field}.settings.{name}", value)


def _check_prompts(field: str, data: Unchecked) -> None:
    _check_settings(field, data)
    ranks = require_list(f"{field}.ranks", data.get("ranks", []))
    for i, rank in enumerate(ranks):
        require_mapping(f"{field}.ranks[{i}]", rank)
        require_count(f"{field}.ranks[{i}].rollouts", rank.get("rollouts"))
        if rank["rollouts"] != ranks[0]["rollouts"]:
            raise Damage(f"{field}.ranks[{i}].rollouts", f"is {rank['rollouts']}, of rank 0 {ranks[0]['rollouts']}")


def _check_data(field: str, data: Unchecked) -> None:
    _check_settings(field, data)
    require_text(f"{field}.env_id", data.get("env_id"))
    for i, rank in enumerate(require_list(f"{field}.ranks", data.get("ranks", []))):
        if rank is not None:
            require_mapping(f"{field}.ranks[{i}]", rank)
            _check_bit_generators(f"{field}.ranks[{i}]", rank)


def _check_bit_generators(field: str, x: Unchecked) -> None:
    """Of environments, anywhere in their state."""
    if isinstance(x, Mapping):
        if "bit_generator" in x:
            check_bit_generator(field, x)
        for name, part in x.items():
            _check_bit_generators(f"{field}.{name}", part)
    elif isinstance(x, (list, tuple)):
        for i, part in enumerate(x):
            _check_bit_generators(f"{field}[{i}]", part)


def _check_scaler(field: str, scaler: Unchecked) -> None:
    require_mapping(field, scaler)
    for name, value in scaler.items():
        if not is_number(value) or not 0 <= value < float("inf"):
            raise Damage(f"{field}.{name}", "is not a positive number")


def _check_loops(field: str, loops: Unchecked) -> None:
    require_mapping(field, loops)
    require_mapping(f"{field}.fit_loop", loops.get("fit_loop"))
    fit_loop = loops["fit_loop"]
    for name in PROGRESS:
        if name not in fit_loop:
            raise Damage(f"{field}.fit_loop.{name}", "is missing")
    for name, value in fit_loop.items():
        require_mapping(f"{field}.fit_loop.{name}", value)
        if str(name).endswith("progress"):
            _check_progress(f"{field}.fit_loop.{name}", value)


def _check_progress(field: str, progress: Unchecked) -> None:
    require_mapping(field, progress)
    if progress.keys() & {"total", "current"}:
        for name in ("total", "current"):
            counters = f"{field}.{name}"
            require_mapping(counters, progress.get(name))
            found = [progress[name].get(key) for key in ("completed", "processed", "started", "ready")]
            for key, value in progress[name].items():
                require_count(f"{counters}.{key}", value)
            known = [value for value in found if value is not None]
            if len(known) < 2 or known != sorted(known):
                raise Damage(counters, "has completed more than was ready")
        if not isinstance(progress.get("is_last_batch", False), bool):
            raise Damage(f"{field}.is_last_batch", "is not a bool")
        return
    for name, part in progress.items():
        _check_progress(f"{field}.{name}", part)


def _check_callbacks(field: str, callbacks: Unchecked) -> None:
    require_mapping(field, callbacks)
    for name, state in callbacks.items():
        check_callback(f"{field}[{str(name)[:40]!r}]", str(name), state)


def _check_optimizers(field: str, states: Unchecked) -> None:
    if not require_list(field, states):
        raise Damage(field, "is empty")
    for i, state in enumerate(states):
        require_mapping(f"{field}[{i}]", state)
        require_mapping(f"{field}[{i}].state", state.get("state"))
        for k, group in enumerate(require_list(f"{field}[{i}].param_groups", state.get("param_groups"))):
            require_mapping(f"{field}[{i}].param_groups[{k}]", group)


def _check_schedulers(field: str, states: Unchecked) -> None:
    for i, state in enumerate(require_list(field, states)):
        require_mapping(f"{field}[{i}]", state)


def _compare_counters(checkpoint: Mapping[str, Unchecked]) -> None:
    """Lightning stores two counters twice, and restores only those of the loops."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    steps = fit_loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
    automatic = fit_loop.get("epoch_loop.automatic_optimization.optim_progress", {})
    with_hooks = automatic.get("optimizer", {}).get("step", {}).get("total", {}).get("completed", 0)
    if checkpoint["global_step"] not in (steps, with_hooks):
        raise Damage("global_step", f"is {checkpoint['global_step']}, the loops have counted {max(steps, with_hooks)}")
    if checkpoint["epoch"] != (epoch := fit_loop["epoch_progress"]["current"]["completed"]):
        raise Damage("epoch", f"is {checkpoint['epoch']}, the loops have counted {epoch}")
