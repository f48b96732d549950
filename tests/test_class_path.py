"""Classes and environments by name: those that have moved are refused with their new name."""

import importlib
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
import pytest

from pg_lightning.class_path import MOVED, new_name, resolve, with_functions
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs import make_env
from pg_lightning.errors import UserError


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_what_has_moved_is_where_the_line_says(old, new):
    try:
        importlib.import_module(new)
    except ModuleNotFoundError:
        module, _, name = new.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    with pytest.raises(ImportError):
        importlib.import_module(old)
    assert new_name(f"{old}.Thing") == f"{new}.Thing"
    assert new_name("pg_lightning.envs.toys.Thing") == new_name("my_package.Thing") == ""


def test_an_old_class_path_is_refused_with_its_new_name():
    with pytest.raises(UserError) as caught:
        resolve("model.torso", "pg_lightning.networks.torsos.MLP")
    assert str(caught.value) == (
        "model.torso: 'pg_lightning.networks.torsos.MLP' is now 'pg_lightning.policies.torsos.MLP'"
    )


def test_the_old_id_of_an_environment_is_refused_with_its_new_one():
    with pytest.raises(UserError) as caught:
        make_env("pg_lightning.envs.toy:pg_lightning/Recall-v0")
    assert str(caught.value) == (
        "data.env_id: 'pg_lightning.envs.toy:pg_lightning/Recall-v0' is now "
        "'pg_lightning.envs.tasks.toy:pg_lightning/Recall-v0'"
    )


def test_a_checkpoint_of_an_environment_that_has_moved_is_that_environments():
    data = RolloutDataModule("pg_lightning.envs.tasks.toy:pg_lightning/Recall-v0")
    data.load_state_dict({"env_id": "pg_lightning.envs.toy:pg_lightning/Recall-v0"})
    with pytest.raises(UserError, match=r"trained on .*Endless-v0.*, not on"):
        data.load_state_dict({"env_id": "pg_lightning.envs.toy:pg_lightning/Endless-v0"})


def wraps(
    env: Any,
    plain: Callable,
    exact: Callable[[int], int],
    optional: Callable[[int], int] | None,
    older: Optional[Callable[[int], int]],  # noqa: UP045
    text: str,
    either: Callable | str,
    *,
    without_hint=None,
) -> None:
    """A wrapper as a function; a path is a function's where nothing else can be meant."""


class Wraps:
    """The same as a class."""

    __init__ = wraps


@pytest.mark.parametrize("wrap", [wraps, Wraps])
def test_a_path_is_a_functions_where_only_a_function_is_taken(wrap):
    functions, others = ("plain", "exact", "optional", "older"), ("text", "either", "without_hint", "unknown")
    found = with_functions("data.wrappers", wrap, dict.fromkeys((*functions, *others), "numpy.sign"))
    assert found == dict.fromkeys(functions, np.sign) | dict.fromkeys(others, "numpy.sign")
    assert with_functions("data.wrappers", wrap, {"plain": np.sign, "exact": 3}) == {"plain": np.sign, "exact": 3}
