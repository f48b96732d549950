"""The state of callbacks in a checkpoint: random generators, schedules of evaluations and saves, best checkpoints.

States of other callbacks are their own; they hold tensors and plain types like everything in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pg_lightning.checkpoint.generators import check_generators
from pg_lightning.checkpoint.paths import PATHS
from pg_lightning.checkpoint.values import (
    Damage,
    Unchecked,
    is_number,
    kind_of,
    require_count,
    require_list,
    require_mapping,
    require_text,
)


def check_callback(field: str, name: str, state: Unchecked) -> None:
    """Refuses a state that a callback could not restore.

    Args:
        field: for errors.
        name: the key of the callback: its class, for some with arguments.
        state: from the checkpoint.

    Raises:
        Damage: naming the field.
    """
    check = CHECKS.get(name.partition("{")[0])
    if check is not None:
        require_mapping(field, state)
        check(field, state)


def _check_random_states(field: str, state: Mapping[str, Unchecked]) -> None:
    ranks = require_list(f"{field}.ranks", state.get("ranks"))
    if not ranks:
        raise Damage(f"{field}.ranks", "is empty")
    for i, rank in enumerate(ranks):
        check_generators(f"{field}.ranks[{i}]", rank)


def _check_evaluations(field: str, state: Mapping[str, Unchecked]) -> None:
    if not isinstance(state.get("due"), bool):
        raise Damage(f"{field}.due", f"is {kind_of(state.get('due'))}, not a bool")


def _check_metrics(field: str, state: Mapping[str, Unchecked]) -> None:
    if not state:  # of a run without a file
        return
    require_count(f"{field}.rows", state.get("rows"))
    for i, row in enumerate(require_list(f"{field}.unwritten", state.get("unwritten", []))):
        require_mapping(f"{field}.unwritten[{i}]", row)
        for name, value in row.items():
            require_text(f"{field}.unwritten[{i}]", name)
            require_text(f"{field}.unwritten[{i}].{name}", value)


def _check_best(field: str, state: Mapping[str, Unchecked]) -> None:
    """A `ModelCheckpoint`, whose best scores are stored twice."""
    require_text(f"{field}.dirpath", state.get("dirpath") or "")
    for name in PATHS:
        require_text(f"{field}.{name}", state.get(name, ""))
    for name in ("best_model_score", "current_score", "kth_value"):
        _require_score(f"{field}.{name}", state.get(name))
    if "best_model_path" not in state or "best_model_score" not in state:
        raise Damage(f"{field}.best_model_path", "is missing")
    models = state.get("best_k_models", {})
    require_mapping(f"{field}.best_k_models", models)
    for path, score in models.items():
        require_text(f"{field}.best_k_models", path)
        if score is None:
            raise Damage(f"{field}.best_k_models", "has no score")
        _require_score(f"{field}.best_k_models", score)
    if not isinstance(state.get("failed", False), bool):
        raise Damage(f"{field}.failed", "is not a bool")
    _compare_scores(field, state, models)


def _compare_scores(field: str, state: Mapping[str, Unchecked], models: Mapping[str, Unchecked]) -> None:
    best = state["best_model_score"]
    if _is_meta(best, *models.values()):
        return
    if best is not None and (not models or models.get(state["best_model_path"]) != best):
        raise Damage(f"{field}.best_model_score", "is not that of best_model_path in best_k_models")
    if models and best is None:
        raise Damage(f"{field}.best_model_score", "is missing")
    kth = state.get("kth_best_model_path")
    if models and kth and models.get(kth) != state.get("kth_value"):
        raise Damage(f"{field}.kth_value", "is not that of kth_best_model_path in best_k_models")


def _require_score(field: str, score: Unchecked) -> None:
    if score is None:
        return
    is_one = isinstance(score, Tensor) and score.numel() == 1 and not score.is_complex()
    if not is_one and not is_number(score):
        raise Damage(field, f"is {kind_of(score)}, not a number")
    if not _is_meta(score) and bool(score != score):
        raise Damage(field, "is NaN")


def _is_meta(*values: Unchecked) -> bool:
    return any(isinstance(x, Tensor) and x.is_meta for x in values)


def _check_early_stopping(field: str, state: Mapping[str, Unchecked]) -> None:
    for name in ("wait_count", "stopped_epoch", "patience"):
        require_count(f"{field}.{name}", state.get(name))
    if state.get("best_score") is None:
        raise Damage(f"{field}.best_score", "is missing")
    _require_score(f"{field}.best_score", state["best_score"])


CHECKS: dict[str, Callable[[str, Mapping[str, Unchecked]], None]] = {
    "RandomStates": _check_random_states,
    "EvaluateEverySteps": _check_evaluations,
    "ContinuedMetrics": _check_metrics,
    "RunCheckpoint": _check_best,
    "ModelCheckpoint": _check_best,
    "EarlyStopping": _check_early_stopping,
}
