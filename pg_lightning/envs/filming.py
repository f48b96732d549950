"""Rendering environments, and the wrapper that records videos."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pg_lightning.class_path import ClassPath
from pg_lightning.envs import failures
from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.envs.make import BACKENDS, Backend, make_env
from pg_lightning.errors import UserError


def require_pictures(
    who: str, env_id: str, env_kwargs: EnvKwargs | None, wrappers: Sequence[ClassPath], backend: Backend
) -> None:
    """Checks that videos can be recorded.

    Raises:
        UserError: with the prefix `who`, if moviepy is not installed or the environment cannot render.
    """
    if importlib.util.find_spec("moviepy") is None:
        raise UserError(f'{who} needs moviepy; pip install "pg_lightning[video]"')
    if not BACKENDS[backend].renders:
        raise UserError(
            f"{who} cannot render with data.backend {backend}; it needs backend sync and a Gymnasium id in data.env_id"
        )
    try:
        env = make_env(env_id, rendering(env_kwargs), wrappers)
        env.reset(seed=0)
        picture = env.render()
        failures.close(env)
    except BaseException as error:
        if not isinstance(error, Exception) and not failures.is_of_code(error):
            raise
        cause = error if isinstance(error, UserError) else failures.deed_of(error)
        raise UserError(f"{who} cannot render {env_id!r}: {cause}") from error
    if getattr(picture, "ndim", 0) != 3:
        raise UserError(f"{who}: {env_id!r} has no render mode 'rgb_array'")


def camera(folder: Path, name: str, **options: Any) -> ClassPath:
    """The wrapper that records every episode as `<name>-episode-K.mp4` in the folder."""
    arguments = {"video_folder": str(folder), "name_prefix": name, "episode_trigger": lambda episode: True}
    return {"class_path": "gymnasium.wrappers.RecordVideo", "init_args": {**arguments, **options}}


def rendering(env_kwargs: EnvKwargs | None) -> EnvKwargs:
    """Arguments of an environment, with the render mode added."""
    return {**(env_kwargs or {}), "render_mode": "rgb_array"}
