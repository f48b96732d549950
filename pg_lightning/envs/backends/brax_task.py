"""The tasks of Brax, from the environments themselves: its wrappers restart episodes from a few stored states, and lose
the last observation of an episode.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs
from gymnasium import spaces

from pg_lightning.envs.backends.jax_programs import Moved, State
from pg_lightning.envs.contract import EnvKwargs
from pg_lightning.errors import UserError, cause_of, one_line, require

EPISODE_LENGTH = 1000  # as in `brax.envs.create`


class Task:
    """A task of Brax; see `JaxTask`. Its state is Brax's, and the number of steps of the episode.

    Args:
        env_id: a name that is registered in Brax.
        env_kwargs: arguments of the environment, such as `backend`, and `episode_length`: the number of steps after
            which an episode is truncated, or None.

    Raises:
        UserError: if Brax has no such environment or argument, or its observation is not a vector.
    """

    def __init__(self, env_id: str, env_kwargs: EnvKwargs) -> None:
        arguments = dict(env_kwargs)
        self._limit = arguments.pop("episode_length", EPISODE_LENGTH)
        if self._limit is not None:
            if not isinstance(self._limit, int):
                raise UserError(f"data.env_kwargs.episode_length: must be a whole number or null, got {self._limit!r}")
            require("data.env_kwargs.episode_length", self._limit, 1)
        try:
            env = envs.get_environment(env_id, **arguments)
        except KeyError as error:
            raise UserError(f"data.env_id: Brax has no {env_id!r}; it has ant, hopper, humanoid and others") from error
        except (TypeError, ValueError, AssertionError, OSError) as error:
            raise UserError(
                f"data.env_kwargs: Brax cannot make {env_id!r} with {one_line(env_kwargs)}: {cause_of(error)}"
            ) from error
        self._env = env
        obs = jax.eval_shape(env.reset, jax.random.PRNGKey(0)).obs
        if not isinstance(obs, jax.ShapeDtypeStruct):
            raise UserError(f"data.env_id: {env_id!r} observes {', '.join(obs)}; supported is a single array")
        self.observation_space = spaces.Box(-np.inf, np.inf, obs.shape, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)

    def first(self, key: jax.Array) -> tuple[jax.Array, State]:
        """See `JaxTask`."""
        state = self._env.reset(key)
        return state.obs.astype(jnp.float32), (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: State, action: jax.Array) -> Moved:
        """See `JaxTask`."""
        moved, steps = self._env.step(state[0], action), state[1] + 1
        truncated = jnp.zeros((), bool) if self._limit is None else steps >= self._limit
        reward, terminated = jnp.asarray(moved.reward), jnp.asarray(moved.done).astype(bool)
        return Moved(moved.obs.astype(jnp.float32), (moved, steps), reward, terminated, truncated)
