"""The spaces of an environment, read from a temporary instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import Space

from pg_lightning.class_path import ClassPath
from pg_lightning.envs import failures
from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.envs.make import Backend, make_env
from pg_lightning.errors import UserError, one_line

Spaces = tuple[Space[Any], Space[Any]]


def spaces_of(
    env_id: str,
    env_kwargs: EnvKwargs | None,
    wrappers: Sequence[ClassPath],
    backend: Backend,
    limit_s: float = 60.0,
) -> Spaces:
    """The observation space and the action space of one environment, which may take `limit_s` seconds to close.

    See `make_env` for the other arguments and errors.
    """
    env = make_env(env_id, env_kwargs, wrappers, backend)
    spaces = env.observation_space, env.action_space
    failures.close(env, limit_s=limit_s)
    return spaces


def require_same_spaces(
    name: str,
    expected: Spaces,
    env_id: str,
    env_kwargs: EnvKwargs | None,
    wrappers: Sequence[ClassPath],
    backend: Backend,
) -> None:
    """Refuses a training environment whose spaces differ from those of evaluation.

    Args:
        name: of the setting that changes the training environment.
        expected: the spaces in evaluation.
        env_id: see `make_env`, also for the others.
        env_kwargs: in training.
        wrappers: in training.
        backend: in training.

    Raises:
        UserError: naming the setting.
    """
    try:
        spaces = spaces_of(env_id, env_kwargs, wrappers, backend)
    except UserError as error:  # the evaluation environment was created already, so the training setting is at fault
        raise UserError(str(error).replace("data.", "data.train_", 1)) from error
    if spaces != expected:
        raise UserError(
            f"data.{name}: training has other spaces than evaluation, {one_line(spaces)}; "
            "what changes them belongs into data.wrappers or data.env_kwargs"
        )
