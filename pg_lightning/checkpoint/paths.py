"""The paths in the state of a `ModelCheckpoint`. They decide which files it removes, so only names are restored."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pg_lightning.checkpoint.values import Unchecked

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
SUFFIX = ".ckpt"


def without_paths(state: Mapping[str, Unchecked]) -> dict[str, Unchecked]:
    """The state of a `ModelCheckpoint` for a run in another folder: no file, and no score of a file."""
    of_files = ("best_k_models", "best_model_score", "kth_value", "current_score", *PATHS)
    others = {name: value for name, value in state.items() if name not in of_files}
    return {**others, "dirpath": None, "best_model_path": ""}


def with_own_paths(state: Mapping[str, Unchecked], folder: str, suffix: str = SUFFIX) -> dict[str, Unchecked]:
    """The state of a `ModelCheckpoint` in which every path is a file in its own folder, or is left out.

    Args:
        state: from a checkpoint; the paths in it may be anything.
        folder: in which the callback saves.
        suffix: of checkpoints.
    """

    def own(path: object) -> str:
        name = os.path.basename(path) if isinstance(path, str) else ""
        file = os.path.join(folder, name)
        # A link to a folder is a folder: whoever removes files recursively would remove what is in it.
        is_other = os.path.exists(file) and not os.path.isfile(file)
        return "" if not name.endswith(suffix) or is_other else file

    models = state.get("best_k_models")
    scores = {own(path): score for path, score in models.items()} if isinstance(models, Mapping) else {}
    scores.pop("", None)
    paths = {name: own(state[name]) for name in PATHS if name in state}
    return {**state, **paths, "best_k_models": scores, "dirpath": folder}
