"""A policy from a checkpoint, for your own loop: NumPy in, NumPy out, without a Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import Space, spaces

from pg_lightning.checkpoint import archive, schema
from pg_lightning.checkpoint.schema import check_values
from pg_lightning.checkpoint.values import Damage
from pg_lightning.errors import UserError, cause_of, one_line
from pg_lightning.policies.actor_critic import ActorCritic
from pg_lightning.policies.contract import Policy
from pg_lightning.policies.description import Plain, made_policy, made_space, require_fitting
from pg_lightning.policies.heads.base import space_name
from pg_lightning.policies.obs_groups import ObsGroups, columns_of, seen_space
from pg_lightning.spaces import FlattenedBox

Observation: TypeAlias = Any  # an array or a number, or a dict or tuple of these, according to the environment's space
CHECKPOINTS = ("best.ckpt", "last.ckpt")  # of a run, in this order
PREFIX = "network."  # of the policy's weights among the algorithm's weights


def load(path: str | Path, seed: int = 0) -> TrainedPolicy:
    """The policy of a checkpoint, on the CPU, ready to act.

    Args:
        path: a checkpoint, or the folder of a run: then its `best.ckpt`, else its `last.ckpt`.
        seed: seed of sampled actions.

    Raises:
        UserError: if there is no checkpoint, or it cannot be read, or its policy cannot be created.
    """
    file = _checkpoint(Path(path))
    try:
        checkpoint = archive.read(file)
    except Exception as error:
        raise UserError(f"path: cannot read {str(file)!r}: {cause_of(error).split('. ')[0]}") from error
    state = checkpoint.get("pg_lightning") if isinstance(checkpoint, dict) else None
    if state is None:
        raise UserError(f"path: {str(file)!r} is not a checkpoint of pg_lightning")
    if isinstance(state, dict) and "policy" not in state:
        raise UserError(
            f"path: {str(file)!r} is from before checkpoints described their policy; resume its training (fit "
            "--ckpt_path, with a larger data.total_steps) and load the checkpoint that is written then"
        )
    try:
        schema.check(checkpoint, "act")
        policy = _with_weights(state["policy"], checkpoint["state_dict"])
    except Damage as damage:
        raise damage.in_file(file, "path") from None
    arguments = state["policy"]["init_args"]
    observation_space, action_space = (made_space(arguments[f"{name}_space"]) for name in ("observation", "action"))
    groups = policy.groups if isinstance(policy, ActorCritic) else None
    return TrainedPolicy(policy.eval(), observation_space, action_space, state["env_steps"], seed, groups)


def _with_weights(description: Plain, state_dict: Mapping[str, torch.Tensor]) -> ActorCritic:
    """The policy of a checkpoint with its weights.

    Raises:
        Damage: if the weights are not those of the description, or not finite.
        UserError: if the policy cannot be created.
    """
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
    require_fitting(description, weights)
    policy = made_policy(description)
    check_values(_named_as_saved(weights), _named_as_saved(policy.state_dict()))
    trained = [weights[name] for name, _ in policy.named_parameters() if name in weights]
    if any(tensor.dtype == torch.float64 for tensor in trained):
        policy.double()
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise Damage("state_dict", f"has not the weights of its policy: {one_line(error)}") from error
    return policy


def _named_as_saved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}


class TrainedPolicy:
    """A policy that acts on observations of an environment, one or a batch.

    Args:
        policy: on the CPU.
        observation_space: of the policy's constructor.
        action_space: of the environment.
        env_steps: of its training.
        seed: seed of sampled actions.
        obs_groups: names of the entries of a `Dict` observation that its actor sees; None for all.

    Attributes:
        policy: the torch module; see `Policy`.
        observation_space: of the input of `predict`: that of the environment, after its wrappers, and before
            observations were flattened. A `Dict` contains the groups that the actor sees.
        action_space: of the output of `predict`.
        env_steps: of its training.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: Space[Any],
        action_space: Space[Any],
        env_steps: int = 0,
        seed: int = 0,
        obs_groups: ObsGroups | None = None,
    ) -> None:
        self.policy = policy
        self.observation_space = seen_space(observation_space, obs_groups, "actor")
        self.action_space = action_space
        self.env_steps = env_steps
        self._given_space = observation_space
        self._columns = columns_of(observation_space, obs_groups, "actor")
        self._generator = torch.Generator().manual_seed(seed)

    def initial_state(self, num_envs: int | None = None) -> np.ndarray | None:
        """The initial state of an episode, `[S]`, or `[N, S]` for N environments; None unless recurrent.

        It is zero: when one of N episodes has ended, `state[n] = 0` starts the next.
        """
        state = self.policy.initial_state(1 if num_envs is None else num_envs)
        if state is None:
            return None
        return state.numpy()[0] if num_envs is None else state.numpy()

    def predict(
        self,
        obs: Observation,
        state: np.ndarray | None = None,
        action_mask: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, np.ndarray | None]:
        """The action for an observation, or the actions for a batch of them.

        Args:
            obs: an observation of `observation_space`, or N of them: every array with an additional first dimension.
                Other entries of a `Dict`, such as a critic's group, are ignored.
            state: for a recurrent policy, `[S]` or `[N, S]`: `initial_state` at the start of an episode, then the
                state returned by the previous step.
            action_mask: `[A]` or `[N, A]`, non-zero where a choice is allowed.
            deterministic: the mode of π; else a sample.

        Returns:
            The action for the environment, in the shape and dtype of `action_space` and within its bounds, or
            N of them, and the next state, None unless recurrent.

        Raises:
            UserError: if shape or dtype of an argument is wrong, or the state is missing.
        """
        count = _count(self.observation_space, obs)
        batched = count is not None
        rows = self._vectors(obs, batched)
        with torch.inference_mode():
            before = self._state(state, count)
            seen = torch.from_numpy(rows)
            mask = None if action_mask is None else torch.from_numpy(_with_batch(action_mask, batched))
            if deterministic:
                actions, after = self.policy.mode(seen, mask, before)
            else:
                actions, after = self.policy.sample(seen, self._generator, mask, before)
            chosen = self.policy.env_actions(actions).numpy().astype(self.action_space.dtype, copy=False)
        following = None if after is None else after.numpy()
        if batched:
            return chosen, following
        return chosen[0], None if following is None else following[0]

    def _vectors(self, obs: Observation, batched: bool) -> np.ndarray:
        """Observations in the policy's input format; entries that its actor does not see are zero."""
        if not isinstance(self._given_space, FlattenedBox):
            return _array("obs", self.observation_space, obs, batched)
        rows = _rows(self.observation_space, obs, batched)
        if self._columns is None:
            return rows
        whole = np.zeros((len(rows), *self._given_space.shape), rows.dtype)
        whole[:, np.r_[self._columns]] = rows
        return whole

    def _state(self, state: np.ndarray | None, count: int | None) -> torch.Tensor | None:
        empty = self.policy.initial_state(1 if count is None else count)
        if empty is None:
            if state is not None:
                raise UserError("state: this policy is not recurrent; pass None")
            return None
        shape = [*empty.shape] if count is not None else [*empty.shape[1:]]
        if state is None:
            raise UserError(
                "state: this policy is recurrent; pass initial_state() where an episode begins, and after that the "
                "state that predict returned"
            )
        given = np.asarray(state)
        if [*given.shape] != shape:
            raise UserError(f"state: expected shape {shape}, got {[*given.shape]}")
        return torch.from_numpy(_with_batch(given, count is not None)).to(empty.dtype)


def _checkpoint(path: Path) -> Path:
    """The file itself, or the checkpoint in a run folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"path: no file or folder {str(path)!r}")
    found = [file for name in CHECKPOINTS for file in (path / "checkpoints" / name, path / name) if file.is_file()]
    if not found:
        raise UserError(f"path: no {' or '.join(CHECKPOINTS)} in {str(path / 'checkpoints')!r}; give a checkpoint")
    return found[0]


def _with_batch(array: np.ndarray, batched: bool) -> np.ndarray:
    array = np.asarray(array, order="C")
    return array if batched else array[None]


def _count(space: Space[Any], obs: Observation, name: str = "obs") -> int | None:
    """The number of observations in a batch; None for a single one. All parts of a `Dict` or `Tuple` must agree."""
    parts = _parts(space, obs, name)
    if parts is not None:
        counts = {_count(part, x, f"{name}[{key!r}]") for key, part, x in parts}
        if len(counts) > 1:
            raise UserError(f"{name}: its parts disagree on the number of observations; give one, or N of each")
        return counts.pop() if counts else None
    shape, own = np.shape(obs), space.shape
    assert own is not None
    if shape == own:
        return None
    if shape[1:] == own and len(shape) == len(own) + 1:
        return shape[0]
    many = ", ".join(map(str, ("N", *own)))
    raise UserError(f"{name}: expected shape {[*own]}, or [{many}] of N observations, got {[*shape]}")


def _parts(space: Space[Any], obs: Observation, name: str) -> list[tuple[Any, Space[Any], Observation]] | None:
    """Key, space and observation of each part of a `Dict` or `Tuple`; None for another space."""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or (missing := [key for key in space.spaces if key not in obs]):
            lacking = f"one without {missing[0]!r}" if isinstance(obs, Mapping) else type(obs).__name__
            raise UserError(f"{name}: expected a dict with {', '.join(map(repr, space.spaces))}, got {lacking}")
        return [(key, part, obs[key]) for key, part in space.spaces.items()]
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space.spaces):
            raise UserError(f"{name}: expected a tuple of {len(space.spaces)} parts")
        return [(i, part, x) for i, (part, x) in enumerate(zip(space.spaces, obs, strict=True))]
    return None


def _array(name: str, space: Space[Any], obs: Observation, batched: bool) -> np.ndarray:
    """`[N, *obs]` in the dtype of the space."""
    given = np.asarray(obs)
    assert space.dtype is not None
    if not np.can_cast(given.dtype, space.dtype, "same_kind"):
        raise UserError(f"{name}: expected dtype {space.dtype}, got {given.dtype}")
    array = _with_batch(given.astype(space.dtype, copy=False), batched)
    if not isinstance(space, spaces.Box) and not all(space.contains(row) for row in array):
        raise UserError(f"{name}: expected observations of {space_name(space)}")
    return array


def _rows(space: Space[Any], obs: Observation, batched: bool, name: str = "obs") -> np.ndarray:
    """`[N, D]` observations, flattened as by `gymnasium.spaces.flatten`, categories one-hot."""
    parts = _parts(space, obs, name)
    if parts is not None:
        return np.concatenate([_rows(part, x, batched, f"{name}[{key!r}]") for key, part, x in parts], axis=1)
    array = _array(name, space, obs, batched)
    return np.stack([cast(np.ndarray, spaces.flatten(space, row)) for row in array])
