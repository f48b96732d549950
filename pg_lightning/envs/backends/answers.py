"""What one environment answers, taken or refused alike by every back-end.

A back-end compares class, dtype and shape of an observation itself, without a call, and asks here only if one differs.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import NoneType

import numpy as np
from gymnasium import Space

from pg_lightning.envs.contract import Info
from pg_lightning.envs.failures import Place, raise_as_line, when, who
from pg_lightning.errors import UserError, one_line

OLD_INTERFACE = "the environment has Gym's old interface"
CONTRACT = "Gymnasium's interface wants it"
SIGNS_OF_OLD_INTERFACE = (
    "to unpack (expected 5",
    "to unpack (expected 2",
    "cannot unpack non-iterable",
    "unexpected keyword argument",
)
CURE = "adapt it to Gymnasium's (reset returns obs, info; step returns obs, reward, terminated, truncated, info)"


class Unfit(ValueError):
    """A part of a result does not fit into its space; it is not known of which environment and step.

    Args:
        what: was returned.
        why: it does not fit.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why


def fitted(obs: object, space: Space, name: str = "an observation") -> np.ndarray:
    """An observation as an array of the space's dtype and shape.

    Numbers of another dtype are converted if that loses nothing but the precision of floating point. Bounds of a `Box`
    are not checked, because nothing uses them.

    Raises:
        Unfit: if its shape differs, or its numbers do not fit into the dtype.
    """
    if obs.__class__ is np.ndarray and obs.dtype == space.dtype and obs.shape == space.shape:
        return obs
    try:
        given = np.asarray(obs)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on another device
        given = np.asarray(None)
    dtype = np.dtype(space.dtype)
    what = f"dtype {given.dtype} and shape {list(given.shape)}"
    if given.dtype == object:
        what = f"type {type(obs).__name__}"
    elif given.shape == space.shape:
        if {given.dtype.kind, dtype.kind} <= set("iub"):
            converted = given.astype(dtype)
            if np.array_equal(converted, given):
                return converted
            what = f"numbers from {given.min()} to {given.max()}"
        elif np.can_cast(given.dtype, dtype, "same_kind"):
            return given.astype(dtype)
    raise Unfit(f"{name} of {what}", f"its observation_space is {one_line(space)}")


def observation(obs: object, space: Space, place: Place) -> np.ndarray:
    """An observation as an array of the space's dtype and shape: see `fitted`.

    Raises:
        UserError: if it does not fit, naming the environment and the step.
    """
    try:
        return fitted(obs, space)
    except Unfit as unfit:
        raise _refused(unfit.what, place, unfit.why) from unfit


def number(reward: object, place: Place) -> float:
    """A reward as a number: also from an array of any shape with one element.

    Raises:
        UserError: if it is none.
    """
    given = _array(reward, np.float64)
    if given.size != 1 or reward is None:
        raise _refused(f"a reward that is not one number ({named(reward)})", place, CONTRACT)
    return float(given.item())


def flag(value: object, name: str, place: Place) -> bool:
    """`terminated` or `truncated` as a bool: also from an array of any shape with one element.

    Raises:
        UserError: if it is none.
    """
    given = _array(value, np.bool_)
    if given.size != 1:
        raise _refused(f"{name} that is not one truth value ({named(value)})", place, CONTRACT)
    return bool(given.item())


def outcome(reward: object, terminated: object, truncated: object, place: Place) -> tuple[float, bool, bool]:
    """The reward and the two ends of a step: see `number` and `flag`.

    Raises:
        UserError: as these.
    """
    return (
        number(reward, place),
        flag(terminated, "terminated", place),
        flag(truncated, "truncated", place),
    )


def column(values: object, name: str, place: Place, num_envs: int, dtype: type[np.generic]) -> np.ndarray:
    """`[N]` rewards or ends of vectorised code, also from `[N, 1]` and from other array-likes.

    Raises:
        UserError: if they are not one for each environment.
    """
    given = _array(values, dtype)
    if given.size != num_envs:
        what = f"{name} that are not one for each of {num_envs} environments ({named(values)})"
        raise _refused(what, place, CONTRACT)
    return given.reshape(num_envs)


def _array(x: object, dtype: type[np.generic]) -> np.ndarray:
    """An array-like as an array; an empty one for anything else."""
    try:
        return np.asarray(x, dtype)
    except (TypeError, ValueError, RuntimeError):
        return np.empty(0, dtype)


def first(answer: object, place: Place) -> tuple[object, Info | None]:
    """The observation and the infos that `reset` returned.

    Raises:
        UserError: if it returned anything else.
    """
    if isinstance(answer, tuple) and len(answer) == 2 and (answer[1] is None or isinstance(answer[1], Mapping)):
        return answer
    raise _refused("no pair of observation and infos from reset", place, OLD_INTERFACE, CURE)


def without_final_obs(place: Place, num_envs: int) -> UserError:
    """The error for vectorised code that resets within the step, and does not give the last observations."""
    what = f"no infos['final_obs'] of {num_envs} entries with the ends of episodes"
    return _refused(what, place, "its autoreset_mode is SAME_STEP")


def mask_of(info: Info | None, place: Place) -> Info:
    """The infos that are read, which is the action mask. Others may be named like those that a back-end adds.

    Raises:
        UserError: if it is no dictionary.
    """
    if info.__class__ is not dict and not isinstance(info, (Mapping, NoneType)):
        raise _refused(f"infos that are no dictionary ({named(info)})", place, CONTRACT)
    return {"action_mask": info["action_mask"]} if info and "action_mask" in info else {}


def refuse_misfit(error: BaseException, place: Place) -> None:
    """Raises a `UserError` with the reason if an exception means that the environment breaks the interface.

    It has the old interface if the exception comes from a wrapper of Gymnasium or from a back-end, not from its code.
    """
    if isinstance(error, Unfit):
        raise _refused(error.what, place, error.why) from error
    if not isinstance(error, (TypeError, ValueError)):
        return
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_ours = frame.f_globals.get("__name__", "").startswith(("gymnasium.", "pg_lightning."))
    if is_ours and any(sign in str(error) for sign in SIGNS_OF_OLD_INTERFACE):
        raise _refused(f"what Gymnasium cannot read ({one_line(error)})", place, OLD_INTERFACE, CURE) from error


def refuse(error: BaseException, place: Place) -> None:
    """Raises an exception of an environment as one line; returns if it is not of the environment's code.

    Raises:
        UserError: if the environment breaks the interface.
        EnvironmentFailed: if its code raised anything else, `SystemExit` too.
    """
    refuse_misfit(error, place)
    raise_as_line(error, place)


def _refused(what: str, place: Place, why: str, cure: str = "correct the environment, or wrap it") -> UserError:
    return UserError(f"data.env_id: {who(place)} returned in {when(place)} {what}: {why}; {cure}")


def named(x: object) -> str:
    """A value that was returned, or its type and shape if it is an array."""
    shape = getattr(x, "shape", None)
    return one_line(x)[:40] if shape is None or not len(shape) else f"{type(x).__name__} of shape {list(shape)}"
