"""N environments of a JAX task: their programs, and their two forms, tensors for training and NumPy for evaluation.

A step is one compiled call: the tasks of all environments, new episodes where one has ended, and the random keys. Each
environment has its own key, made of its own seed, so an episode does not depend on the number of environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from pg_lightning.envs.backends.jax import CAPABILITIES
from pg_lightning.envs.contract import Capabilities, EnvState, Info, VectorStep
from pg_lightning.errors import UserError

# Steps are short, and the next one needs their result: a thread of its own for them only adds its wake-up, which
# doubles the time of a small step. Without effect if JAX has computed before.
jax.config.update("jax_cpu_enable_async_dispatch", False)

State = Any  # of an environment: a tree of arrays, of the library's own types


class Moved(NamedTuple):
    """One step of one environment, before any reset."""

    obs: jax.Array
    state: State
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class JaxTask(Protocol):
    """The rules of one environment as pure functions.

    Attributes:
        observation_space: of arrays; observations are `uint8` if it is, else `float32`.
        action_space: `Discrete`, or a `Box` of `float32`.
    """

    observation_space: spaces.Box
    action_space: Space

    def first(self, key: jax.Array) -> tuple[jax.Array, State]:
        """The observation and the state at the start of an episode."""
        ...

    def step(self, key: jax.Array, state: State, action: jax.Array) -> Moved:
        """The result of an action."""
        ...


class Programs:
    """The compiled functions of N environments of a task, for any N.

    Args:
        task: the rules.

    Attributes:
        keys: the random keys `[N, …]` of seeds `[N]`.
        first: starts N episodes; takes the keys, and returns the next keys, the states and the observations.
        step: see `_step`.
        choose: see `_choose`.
    """

    def __init__(self, task: JaxTask) -> None:
        self.task = task
        self.keys = jax.jit(jax.vmap(jax.random.PRNGKey))
        self.first = jax.jit(self._first)
        self.step = jax.jit(self._step)
        self.choose = jax.jit(_choose)

    def _first(self, keys: jax.Array) -> tuple[jax.Array, State, jax.Array]:
        split = jax.vmap(jax.random.split)(keys)
        obs, state = jax.vmap(self.task.first)(split[:, 1])
        return split[:, 0], _strong(state), obs

    def _step(
        self, keys: jax.Array, state: State, actions: jax.Array
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, jax.Array]:
        """A step, and new episodes where one has ended.

        First states are computed for all environments in every step, as gymnax does. To skip them where no episode
        ends saves no time on a CPU (CartPole, MinAtar and Brax's inverted pendulum, at 8, 64 and 1,024 environments),
        and would make a GPU wait for the host.

        Returns:
            The next keys and states; the observations for the next actions and the last ones before a reset `[2, N,
            *obs]`; the rewards `[N]`; and terminated, truncated and done `[3, N]`. Few arrays, because each costs as
            much as a small step to hand over.
        """
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        moved = jax.vmap(self.task.step)(split[:, 1], state, actions)
        done = moved.terminated | moved.truncated
        first, fresh = jax.vmap(self.task.first)(split[:, 2])
        obs, state = _choose(done, (first, _strong(fresh)), (moved.obs, _strong(moved.state)))
        flags = jnp.stack([moved.terminated, moved.truncated, done])
        return split[:, 0], state, jnp.stack([obs, moved.obs]), moved.reward.astype(jnp.float32), flags


class _Copies:
    """N environments of a task, their keys and states, as JAX's arrays on one device."""

    def __init__(self, programs: Programs, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.programs = num_envs, programs
        self.device, self.where = device, _jax_device(device)
        self._on_host = device.type == "cpu"
        discrete = isinstance(programs.task.action_space, spaces.Discrete)
        self._action_dtype = torch.int32 if discrete else torch.float32
        self.keys = self._keys_of(np.random.SeedSequence().generate_state(num_envs))
        self.state: State = None

    def seeded(self, seeds: Sequence[int | None] | int | None) -> None:
        """Replaces the keys of environments that get a seed; with one seed, environment i uses seed + i."""
        if seeds is None:
            return
        given = range(seeds, seeds + self.num_envs) if isinstance(seeds, int) else seeds
        new = self._keys_of(np.array([(seed or 0) % 2**32 for seed in given]))
        which = np.array([seed is not None for seed in given])
        self.keys = new if which.all() else self.programs.choose(which, new, self.keys)

    def first(self) -> jax.Array:
        """Starts all episodes; their observations."""
        self.keys, self.state, obs = self.programs.first(self.keys)
        return obs

    def taken(self, actions: Tensor) -> jax.Array | np.ndarray:
        """The actions as an array that the programs accept, without a copy through the host."""
        actions = actions.to(self.device, self._action_dtype)
        # On the CPU the array of NumPy is the same memory, and JAX checks DLPack's for as long as a small step takes.
        return actions.numpy() if self._on_host else jax.dlpack.from_dlpack(actions.contiguous())

    def tensor(self, array: jax.Array) -> Tensor:
        """The same memory as a tensor, which nobody may write."""
        # On the CPU there is no stream to wait for, and asking for the device first costs as much again.
        return torch.from_dlpack(array.__dlpack__() if self._on_host else array)

    def _keys_of(self, seeds: np.ndarray) -> jax.Array:
        return jax.device_put(self.programs.keys(seeds.astype(np.uint32)), self.where)


class JaxEnvironments:
    """N environments whose arrays are tensors on `device`, which JAX and torch share by DLPack. See `Environments`.

    Args:
        programs: of the task.
        num_envs: N.
        device: of the tensors, and of JAX.

    Raises:
        UserError: if JAX cannot use the device.
    """

    restarts = 0

    def __init__(self, programs: Programs, num_envs: int, device: torch.device) -> None:
        self.num_envs, task = num_envs, programs.task
        self.single_observation_space: Space = task.observation_space
        self.single_action_space = task.action_space
        self.capabilities = replace(CAPABILITIES, device=device)
        self._envs = _Copies(programs, num_envs, device)

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[Tensor, None]:
        """See `Environments`."""
        self._envs.seeded(seeds)
        return self._envs.tensor(self._envs.first()), None

    def step(self, actions: Tensor) -> VectorStep[Tensor]:
        """See `Environments`."""
        envs = self._envs
        envs.keys, envs.state, *arrays = envs.programs.step(envs.keys, envs.state, envs.taken(actions))
        both, rewards, flags = map(envs.tensor, arrays)
        (obs, final_obs), (terminated, truncated, done) = both.unbind(), flags.unbind()
        return VectorStep(obs, rewards, terminated, truncated, done, done, final_obs)

    def trim(self, lengths: object) -> None:
        """Does nothing: earlier steps are not stored."""

    def state_dict(self, lengths: Tensor) -> EnvState:
        """See `Environments`."""
        leaves = jax.tree.leaves((self._envs.keys, self._envs.state))
        return {"envs": [torch.from_numpy(np.array(leaf)) for leaf in leaves]}

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """See `Environments`."""
        own, form = jax.tree.flatten((self._envs.keys, self._envs.state))
        saved = [leaf.numpy() for leaf in state["envs"]]
        if [(x.shape, x.dtype) for x in saved] != [(x.shape, x.dtype) for x in own]:
            return "its state has other arrays than this version of the environment"
        self._envs.keys, self._envs.state = jax.device_put(jax.tree.unflatten(form, saved), self._envs.where)
        return ""

    def close(self) -> None:
        """Does nothing: there are no resources to release."""


class JaxVectorEnv(VectorEnv):
    """The same environments with NumPy arrays and resets on request, for evaluation: each episode has its own seed.

    Args:
        programs: of the task.
        num_envs: N.
        device: where JAX computes.

    Raises:
        UserError: if JAX cannot use the device.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (as Gymnasium declares it)
    capabilities = Capabilities(autoreset="disabled", seeds="per_env", can_reset_some=True)

    def __init__(self, programs: Programs, num_envs: int, device: torch.device) -> None:
        self.num_envs, task = num_envs, programs.task
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.observation_space = batch_space(task.observation_space, num_envs)
        self.action_space = batch_space(task.action_space, num_envs)
        self._envs = _Copies(programs, num_envs, device)
        self._obs = np.empty((num_envs, *task.observation_space.shape))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Starts new episodes in all environments, or where the option `reset_mask` is True."""
        envs, which = self._envs, (options or {}).get("reset_mask")
        before = envs.keys, envs.state
        envs.seeded(seed)
        obs = envs.first()
        if which is not None:
            kept, new = (*before, self._obs), (envs.keys, envs.state, obs)
            envs.keys, envs.state, obs = envs.programs.choose(which, new, kept)
        self._obs = np.asarray(obs)
        return self._obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """One step; the observation of an episode that has ended is its last one. It must be reset next."""
        envs, taken = self._envs, self._envs.taken(torch.from_numpy(np.asarray(actions)))
        envs.keys, envs.state, *arrays = envs.programs.step(envs.keys, envs.state, taken)
        both, rewards, flags = map(np.asarray, arrays)
        self._obs = both[1]
        return self._obs, rewards, flags[0], flags[1], {}


class JaxEnv(gym.Env):
    """One environment on the CPU.

    Args:
        programs: of the task.
    """

    def __init__(self, programs: Programs) -> None:
        self._env = JaxVectorEnv(programs, 1, torch.device("cpu"))
        self.observation_space, self.action_space = self._env.single_observation_space, self._env.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Starts an episode."""
        return self._env.reset(seed=seed)[0][0], {}

    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, Info]:
        """One step."""
        obs, rewards, terminated, truncated, _ = self._env.step(np.asarray(action)[None])
        return obs[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}


def _jax_device(device: torch.device) -> jax.Device:
    platform = {"cuda": "gpu"}.get(device.type, device.type)
    try:
        return jax.devices(platform)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise UserError(
            f"trainer.accelerator: the policy is on {device}, where JAX cannot compute; "
            "pip install a JAX for it (for example 'jax[cuda12]'), or set it to cpu"
        ) from error


def _choose(which: jax.Array, new: State, old: State) -> State:
    """`new` where `which` `[N]` is True, else `old`: trees of arrays `[N, …]`."""

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)


def _strong(tree: State) -> State:
    """The same arrays, of the types that they have: a type that is only inferred would compile every program twice."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)
