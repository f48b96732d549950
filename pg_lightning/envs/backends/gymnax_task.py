"""The tasks of gymnax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import Space, spaces
from gymnax.environments import spaces as gymnax_spaces

from pg_lightning.envs.backends.jax_programs import Moved, State
from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.errors import UserError, cause_of, one_line
from pg_lightning.spaces import FlattenedBox


class Task:
    """A task of gymnax; see `JaxTask`. Its own time limit truncates.

    Args:
        env_id: a name that is registered in gymnax.
        env_kwargs: parameters of the task, such as `max_steps_in_episode`, and arguments of its constructor.

    Raises:
        UserError: if gymnax has no such task or argument, or the observation cannot be a vector.
    """

    def __init__(self, env_id: str, env_kwargs: EnvKwargs) -> None:
        if env_id not in gymnax.registered_envs:
            raise UserError(f"data.env_id: gymnax has {', '.join(gymnax.registered_envs)}, not {env_id!r}")
        limit = env_kwargs.get("max_steps_in_episode", 1)
        if not isinstance(limit, int) or limit < 1:
            raise UserError(
                f"data.env_kwargs.max_steps_in_episode: must be a whole number of at least 1, got {limit!r}"
            )
        names: list[str] = []
        try:
            names = [field.name for field in dataclasses.fields(gymnax.make(env_id)[1])]
            made, params = gymnax.make(env_id, **{name: env_kwargs[name] for name in env_kwargs if name not in names})
            params = params.replace(**{name: env_kwargs[name] for name in env_kwargs if name in names})
            if not hasattr(made, "is_truncated"):
                raise UserError("data.backend: gymnax is too old; pip install 'gymnax>=1.0'")
            self._env, self._params = made, params
            key = jax.random.PRNGKey(0)
            state = jax.eval_shape(lambda: made.reset_env(key, params)[1])
            self.observation_space, self._encode = _observations(env_id, made.observation_space(params))
            self.action_space = _space(made.action_space(params))
            jax.eval_shape(self.step, key, state, self.action_space.sample())
        except (TypeError, ValueError, AssertionError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"data.env_kwargs: gymnax cannot make {env_id!r} with {one_line(env_kwargs)}: {cause_of(error)}; "
                f"its parameters are {', '.join(names)}"
            ) from error

    def first(self, key: jax.Array) -> tuple[jax.Array, State]:
        """See `JaxTask`."""
        obs, state = self._env.reset_env(key, self._params)
        return self._encode(obs), state

    def step(self, key: jax.Array, state: State, action: jax.Array) -> Moved:
        """See `JaxTask`."""
        obs, state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        truncated = self._env.is_truncated(state, self._params)
        return Moved(self._encode(obs), state, jnp.asarray(reward), jnp.asarray(terminated), jnp.asarray(truncated))


def _observations(env_id: str, space: gymnax_spaces.Space) -> tuple[spaces.Box, Callable[[jax.Array], jax.Array]]:
    """The space of observations as vectors or images, and the function that makes them."""
    if isinstance(space, gymnax_spaces.Discrete):
        return FlattenedBox(_space(space)), lambda obs: jax.nn.one_hot(obs, space.n)
    if not isinstance(space, gymnax_spaces.Box):
        raise UserError(f"data.env_id: observation space {one_line(space)} of {env_id!r} is not supported; use Box")
    dtype = np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32)
    shape = tuple(space.shape) or (1,)
    return _box(space, shape, dtype), lambda obs: jnp.asarray(obs, dtype).reshape(shape)


def _space(space: gymnax_spaces.Space) -> Space:
    if isinstance(space, gymnax_spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if not isinstance(space, gymnax_spaces.Box):
        raise UserError(f"data.env_id: action space {one_line(space)} is not supported; use Discrete or Box")
    return _box(space, tuple(space.shape), np.dtype(np.float32))


def _box(space: gymnax_spaces.Box, shape: tuple[int, ...], dtype: np.dtype) -> spaces.Box:
    low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (space.low, space.high))
    return spaces.Box(low, high, shape, dtype.type)
