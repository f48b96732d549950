"""Refuses wrappers with running statistics, which the policy needs and does not have."""

from __future__ import annotations

from collections.abc import Iterator

from pg_lightning.errors import UserError

CURES = {"NormalizeObservation": "model.normalize_obs: true", "NormalizeReward": "model.scale_rewards: true"}


def refuse_statistics(env: object, field: str) -> None:
    """Checks every wrapper of an environment, vectorised or not, however it was applied.

    Statistics of a wrapper belong to one instance: those of evaluation, of a resumed run and of an exported policy
    would begin with nothing. State that a reset clears, such as stacked frames, is no problem.

    Args:
        env: the environment.
        field: the setting that brought the wrapper.

    Raises:
        UserError: naming the wrapper and the option that replaces it.
    """
    for wrapper in _wrappers(env):
        classes = {kind.__name__ for kind in type(wrapper).__mro__}
        cure = next((CURES[name] for name in CURES if name in classes), "")
        held = [name for name, value in _attributes(wrapper).items() if type(value).__name__.startswith("RunningMean")]
        if cure or held:
            options = cure or " and ".join(CURES.values())
            raise UserError(
                f"{field}: {type(wrapper).__name__} keeps running statistics, with which evaluation, a resumed run and "
                f"an exported policy would begin anew; remove it, and set {options}, whose statistics are in the "
                "checkpoint"
            )


def _wrappers(env: object) -> Iterator[object]:
    """Every wrapper around an environment, from the outside; of several environments, around the first."""
    while (inner := _attributes(env).get("env")) is not None and hasattr(inner, "step"):
        yield env
        env = inner
    envs = _attributes(env).get("envs")
    if isinstance(envs, (list, tuple)) and envs:
        yield from _wrappers(envs[0])


def _attributes(x: object) -> dict[str, object]:
    return getattr(x, "__dict__", {})
