"""Restores the state of environments in another process.

The state of an environment follows from the state of its random generator before the last reset and the actions since
then. Both are small and plain data, and replaying them also restores what `get_state` functions miss: time limits,
stacked frames, the contacts of a physics engine. The resulting observation and return are compared to verify it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from pg_lightning.envs.contract import EnvState, Info, SingleReset, SingleStep, capabilities_of
from pg_lightning.envs.failures import is_of_code
from pg_lightning.processes import WorkerError

MAX_REPLAY = 50_000  # steps of an episode; longer episodes are not replayed, to limit memory and time

_NUMBERS = (bool, int, float, str, type(None), np.ndarray, np.generic)


class Replayable(gym.Wrapper[Any, Any, Any, Any]):
    """Records how its episode started, and can restart it; the outermost wrapper. It adds no cost per step."""

    record: EnvState | None = None

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.step = env.step  # type: ignore[method-assign]
        self._seed: int | None = None
        self._before: Any = None

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Resets the environment, and records the random state from which the first observation is drawn."""
        self.step = self.env.step  # type: ignore[method-assign]
        self._seed, self._before = seed, None
        if seed is None:
            try:
                self._before = self.env.np_random.bit_generator.state
            except AttributeError:  # its generator is not Gymnasium's
                self._before = None
        return self.env.reset(seed=seed, options=options)

    def beginning(self) -> EnvState:
        """The record for `replay` except the actions: `seed` or `before` of this episode, and `now`."""
        return {"seed": self._seed, "before": self._before, "now": _generator_state(self.env)}

    def replay(self) -> tuple[Any, float] | str:
        """Replays `record`: the saved `beginning`, the `actions` `[k, *action]` since then, and whether the episode had
        `ended`, so that the next step starts another.

        Returns:
            The last observation and the sum of the rewards, or the reason for failure.
        """
        assert self.record is not None
        record, self.record = self.record, None
        total = 0.0
        try:
            if record["ended"]:
                self.np_random.bit_generator.state = record["now"]
                self.step = self._begin  # type: ignore[method-assign]
                return None, total
            if record["seed"] is None:
                self.np_random.bit_generator.state = record["before"]
            obs, _ = self.reset(seed=record["seed"])
            discrete = isinstance(self.action_space, spaces.Discrete)
            over = False
            for action in record["actions"].tolist() if discrete else record["actions"]:
                if over:
                    return "an episode ends earlier in the replay"
                obs, reward, terminated, truncated, _ = self.step(action)
                total += float(np.float32(reward))  # in the precision of the collector
                over = terminated or truncated
            return "an episode ends earlier in the replay" if over else (obs, total)
        except BaseException as error:  # an environment may raise anything: then it cannot be restored
            if not isinstance(error, Exception) and not is_of_code(error):
                raise
            return f"{type(error).__name__}: {error}"

    def _begin(self, action: Any) -> SingleStep:
        """The step after the end of an episode, in next-step autoreset."""
        obs, info = self.reset()
        return obs, 0.0, False, False, info


def save(env: Any, played: Sequence[np.ndarray], lengths: np.ndarray, ended: np.ndarray) -> EnvState | None:
    """The state of a vector environment, in plain types and tensors; None if it cannot be saved.

    Args:
        env: from `make_vector_env`.
        played: the last actions `[N, *action]`, at least as many as the longest current episode has steps.
        lengths: `[N]` steps of the current episodes.
        ended: `[N]` bool; the episode is over, and the next step starts another.
    """
    how = capabilities_of(env).can_save_state
    if how != "by_replay":
        return _save_vectorised(env) if how == "by_copy" else None
    longest = int(lengths.max())
    if longest > min(MAX_REPLAY, len(played)):
        return None
    actions = torch.from_numpy(np.stack(played[len(played) - longest :])) if longest else None
    try:
        beginnings = list(env.call("beginning"))
    except WorkerError:  # the next step replaces the environment that did not answer
        return None
    return _plain({"beginnings": beginnings, "actions": actions, "ended": ended})


def load(env: Any, state: EnvState | None, obs: np.ndarray, returns: np.ndarray, lengths: np.ndarray) -> str:
    """Restores the state of a vector environment that was made in the same way.

    Args:
        env: from `make_vector_env`, and reset.
        state: the result of `save`.
        obs: `[N, *obs]` last observations at that time.
        returns: `[N]` of the current episodes.
        lengths: `[N]` their steps.

    Returns:
        An empty string, or the reason for failure; then the environment must be reset.
    """
    how = capabilities_of(env).can_save_state
    if state is None or how == "no" or (how == "by_replay") != ("beginnings" in state):
        return "this back-end cannot save its state"
    state = _arrays(state)
    if how == "by_copy":
        return _load_vectorised(env, state)
    records = []
    for n, (beginning, ended) in enumerate(zip(state["beginnings"], state["ended"], strict=True)):
        actions = state["actions"][len(state["actions"]) - lengths[n] :, n] if lengths[n] else np.empty(0)
        records.append({**beginning, "actions": actions, "ended": bool(ended)})
    try:
        env.set_attr("record", records)
        answers = env.call("replay")
    except WorkerError as error:
        return str(error)
    for n, replayed in enumerate(answers):
        if isinstance(replayed, str):
            return replayed
        last, total = replayed
        if last is not None and not (np.array_equal(np.asarray(last, obs.dtype), obs[n]) and total == returns[n]):
            return "the same actions lead to another state"
    return ""


def history(state: EnvState | None) -> list[np.ndarray]:
    """The actions `[N, *action]` in a saved state, needed for the next save."""
    actions = None if state is None or "beginnings" not in state else state["actions"]
    return [] if actions is None else list(actions.numpy())


def _save_vectorised(env: Any) -> EnvState | None:
    """The state of vectorised code. It draws all its copies from one generator, so no single episode can be replayed.
    Its numbers and arrays are saved instead, and the result of the next step of a copy, for verification."""
    numbers = {name: value for name, value in vars(env.unwrapped).items() if isinstance(value, _NUMBERS)}
    state = {"numbers": numbers, "generator": _generator_state(env.unwrapped)}
    try:
        space = copy.deepcopy(env.action_space)
        space.seed(0)
        actions = space.sample()
        return _plain({**state, "actions": actions, "next": _next(env, actions)})
    except Exception:  # copying its objects may raise anything
        return None


def _load_vectorised(env: Any, state: EnvState) -> str:
    try:
        for name, value in state["numbers"].items():
            setattr(env.unwrapped, name, value)
        if state["generator"] is not None:
            env.unwrapped.np_random.bit_generator.state = state["generator"]
        came = _next(env, state["actions"])
        same = all(np.array_equal(*pair) for pair in zip(came, state["next"], strict=True))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if same else "the same actions lead to another state"


def _next(env: Any, actions: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(x) for x in copy.deepcopy(env).step(actions)[:4]]


def _generator_state(env: Any) -> EnvState | None:
    return getattr(getattr(env.np_random, "bit_generator", None), "state", None)


def _plain(x: Any) -> Any:
    """Arrays as tensors, NumPy scalars as Python numbers: types that `torch.load` reads with `weights_only`."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x.copy())
    return x.item() if isinstance(x, np.generic) else x


def _arrays(x: Any) -> Any:
    """The inverse of `_plain`; copied, because environments write in place."""
    if isinstance(x, dict):
        return {key: _arrays(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_arrays(value) for value in x]
    return x.numpy().copy() if isinstance(x, torch.Tensor) else x
