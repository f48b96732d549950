"""The state of optimizers and schedulers in a checkpoint, compared with what those of this model would have.

Optimizers trust their state: moments of another shape are read and written past their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor, optim
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pg_lightning.checkpoint.values import Damage, Unchecked, is_number, require_like, require_mapping
from pg_lightning.learning.optimizers import LearningRates, make_moments

T = TypeVar("T")
# Entries that cannot be negative: counters, and means or sums of squares.
NOT_NEGATIVE = ("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "mu_product")
# Options that a scheduler changes; all others are those of the config.
SCHEDULED = ("lr", "initial_lr", "betas", "momentum")
# Entries of torch's schedulers that change during training.
COUNTED = (
    *("last_epoch", "_step_count", "_last_lr", "base_lrs", "best", "num_bad_epochs", "cooldown_counter"),
    *("T_cur", "T_i", "_schedulers", "_get_lr_called_within_step", "_is_initial"),
)


@dataclass(frozen=True)
class Restored:
    """What a resumed run needs to check its optimizers.

    Attributes:
        file: the checkpoint.
        updates: of the policy in it.
        optimizers: their states.
        schedulers: their states.
    """

    file: str
    updates: int
    optimizers: Sequence[Unchecked]
    schedulers: Sequence[Unchecked]


def guard(rates: LearningRates, restored: Restored | None) -> None:
    """Makes the optimizers refuse the state of others, and refuses the state of other schedulers.

    Raises:
        UserError: naming the file, the field and what is wrong with it.
    """
    file, updates = ("", 0) if restored is None else (restored.file, restored.updates)
    for i, optimizer in enumerate(rates.optimizers):
        optimizer.register_load_state_dict_pre_hook(partial(_checked, file, f"optimizer_states[{i}]", updates))
    if restored is None:
        return
    try:
        # Also here: before anything else of the checkpoint is restored.
        for i, (optimizer, state) in enumerate(_pairs("optimizer_states", rates.optimizers, restored.optimizers)):
            checked_state(f"optimizer_states[{i}]", optimizer, state, updates)
        for i, (scheduler, state) in enumerate(_pairs("lr_schedulers", rates.schedulers, restored.schedulers)):
            check_scheduler(f"lr_schedulers[{i}]", scheduler, state)
    except Damage as damage:
        raise damage.in_file(file) from None


def _pairs(field: str, ours: Sequence[T], theirs: Sequence[Unchecked]) -> list[tuple[T, Unchecked]]:
    if len(ours) != len(theirs):
        raise Damage(field, f"has {len(theirs)} entries, not {len(ours)}")
    return list(zip(ours, theirs, strict=True))


def _checked(
    file: str, field: str, updates: int, optimizer: optim.Optimizer, state: dict[str, Unchecked]
) -> dict[str, Unchecked]:
    try:
        return checked_state(field, optimizer, state, updates)
    except Damage as damage:
        raise damage.in_file(file) from None


def checked_state(
    field: str, optimizer: optim.Optimizer, state: Mapping[str, Unchecked], updates: int
) -> dict[str, Unchecked]:
    """The state of an optimizer in a checkpoint, with all options but the learning rate from the optimizer itself.

    Args:
        field: names the state in errors.
        optimizer: before its first step.
        state: from the checkpoint.
        updates: before the checkpoint was written; without updates the state may be empty.

    Raises:
        Damage: if shapes, dtypes or names differ from the optimizer's, or a number is not finite.
    """
    twin = deepcopy(optimizer)
    make_moments(twin)
    expected = twin.state_dict()
    groups, found = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or len(groups) != len(expected["param_groups"]):
        raise Damage(f"{field}.param_groups", f"is not a list of {len(expected['param_groups'])} groups")
    options = [
        _options(f"{field}.param_groups[{i}]", *pair)
        for i, pair in enumerate(zip(groups, expected["param_groups"], strict=True))
    ]
    require_mapping(f"{field}.state", found)
    assert isinstance(found, Mapping)
    if not found and expected["state"] and updates:
        raise Damage(f"{field}.state", f"is empty after {updates} updates")
    if found:
        _check_moments(f"{field}.state", found, expected["state"])
    return {**state, "param_groups": options}


def _options(field: str, found: Unchecked, own: Mapping[str, Unchecked]) -> dict[str, Unchecked]:
    require_mapping(field, found)
    for name in ("params", "name"):
        if name in own and found.get(name) != own[name]:
            raise Damage(f"{field}.{name}", f"is not {own[name]!r}, as in the optimizer of this model")
    # Without a scheduler that was given by class path nothing but the learning rate changes.
    changing = [name for name in (SCHEDULED if "initial_lr" in own else ("lr",)) if name in own]
    for name in changing:
        require_like(f"{field}.{name}", found.get(name), own[name], not_negative=True)
    return {**own, **{name: found[name] for name in changing}}


def _check_moments(field: str, found: Mapping[Unchecked, Unchecked], expected: Mapping[Unchecked, Unchecked]) -> None:
    if found.keys() != expected.keys():
        raise Damage(field, f"is about the parameters {sorted(map(str, found))}, not {sorted(map(str, expected))}")
    for index, own in expected.items():
        name = f"{field}[{index}]"
        require_mapping(name, found[index])
        if found[index].keys() != own.keys():
            raise Damage(name, f"has the entries {sorted(map(str, found[index]))}, the optimizer {sorted(own)}")
        for key, value in own.items():
            if value is not None:
                require_like(f"{name}.{key}", found[index][key], value, not_negative=key in NOT_NEGATIVE)


def check_scheduler(field: str, scheduler: LRScheduler | ReduceLROnPlateau, state: Unchecked) -> None:
    """Compares the state of a scheduler in a checkpoint with that of a new one: entries, types, and fixed values.

    Raises:
        Damage: naming the entry.
    """
    require_mapping(field, state)
    own = scheduler.state_dict()
    if state.keys() != own.keys():
        raise Damage(field, f"has the entries {sorted(map(str, state))}, the scheduler {sorted(own)}")
    is_torchs = type(scheduler).__module__.startswith("torch.")
    for key, value in own.items():
        name = f"{field}.{key}"
        if is_torchs and key not in COUNTED and isinstance(value, (bool, int, float, str)):
            if type(state[key]) is not type(value) or state[key] != value:
                raise Damage(name, f"is {state[key]!r}, not {value!r}")
        elif key == "best":  # a number at first, then the tensor of a metric
            best = state[key].item() if isinstance(state[key], Tensor) and state[key].numel() == 1 else state[key]
            if not is_number(best) or best != best:
                raise Damage(name, "is not a number")
        elif value is not None:
            require_like(name, state[key], value)
