"""Wrappers with running statistics, which a policy cannot do without, are refused however they were applied."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import untidy_envs
from gymnasium.envs.registration import WrapperSpec
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeObservation as NormalizeObservations
from gymnasium.wrappers.vector import NormalizeReward as NormalizeRewards

from pg_lightning.data import RolloutDataModule
from pg_lightning.envs import make_env, make_vector_env
from pg_lightning.errors import UserError

OBS, REWARDS = "model.normalize_obs: true", "model.scale_rewards: true"


class Own(NormalizeObservation):
    """Another name."""


class OfItsOwn(gym.Wrapper[Any, Any, Any, Any]):
    """Statistics that this module does not know by name."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.seen = RunningMeanStd(shape=(2,))


def inside() -> gym.Env:
    return gym.wrappers.TimeLimit(NormalizeReward(untidy_envs.Tidy()), 10)


def several(num_envs: int) -> Any:
    return gym.vector.SyncVectorEnv([inside] * num_envs)


ADDED = WrapperSpec("NormalizeObservation", "gymnasium.wrappers:NormalizeObservation", {"epsilon": 1e-8})
gym.register("tests/Inside-v0", entry_point=inside, vector_entry_point=several)
gym.register("tests/Added-v0", entry_point=untidy_envs.Tidy, additional_wrappers=(ADDED,))
gym.register(
    "tests/Observations-v0",
    entry_point=untidy_envs.Tidy,
    vector_entry_point=lambda num_envs: NormalizeObservations(untidy_envs.Fleet(num_envs)),
)
gym.register(
    "tests/Rewards-v0",
    entry_point=untidy_envs.Tidy,
    vector_entry_point=lambda num_envs: NormalizeRewards(untidy_envs.Fleet(num_envs)),
)


@pytest.mark.parametrize("backend", ["sync", "async", "auto"])
@pytest.mark.parametrize(
    ("env_id", "wrappers", "name", "cure"),
    [
        ("Tidy-v0", ["gymnasium.wrappers.NormalizeObservation"], "wrappers: NormalizeObservation", OBS),
        ("Tidy-v0", ["gymnasium.wrappers.NormalizeReward"], "wrappers: NormalizeReward", REWARDS),
        (
            "Tidy-v0",
            ["gymnasium.wrappers.NormalizeObservation", "gymnasium.wrappers.FlattenObservation"],
            "wrappers: NormalizeObservation",
            OBS,
        ),
        ("Tidy-v0", [f"{__name__}.Own"], "wrappers: Own", OBS),
        ("Tidy-v0", [f"{__name__}.OfItsOwn"], "wrappers: OfItsOwn", f"{OBS} and {REWARDS}"),
        ("tests/Inside-v0", [], "env_id: NormalizeReward", REWARDS),
        ("tests/Added-v0", [], "env_id: NormalizeObservation", OBS),
    ],
)
def test_statistics_of_a_wrapper_are_refused_with_the_cure(
    env_id: str, wrappers: Any, name: str, cure: str, backend: Any
) -> None:
    with pytest.raises(UserError) as error:
        make_vector_env(env_id, 2, {}, wrappers, backend)
    assert str(error.value).startswith(f"data.{name} keeps running statistics")
    assert f"; remove it, and set {cure}, whose" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "cure"), [("Observations", OBS), ("Rewards", REWARDS), ("Inside", REWARDS)], ids=lambda x: x[:8]
)
@pytest.mark.parametrize("backend", ["vector", "simulator"])
def test_so_are_those_around_vectorised_code(name: str, cure: str, backend: Any) -> None:
    with pytest.raises(UserError, match=rf"^data.env_id: Normalize\w+ keeps running statistics.* set {cure}, "):
        make_vector_env(f"tests/{name}-v0", 2, None, (), backend)


def test_so_are_those_of_training_alone() -> None:
    with pytest.raises(UserError, match=r"^data.train_wrappers: NormalizeReward keeps running statistics"):
        RolloutDataModule("Tidy-v0", train_wrappers=["gymnasium.wrappers.NormalizeReward"])


@pytest.mark.parametrize(
    "wrapper",
    [
        {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 2}},
        {"class_path": "gymnasium.wrappers.DelayObservation", "init_args": {"delay": 1}},
        "gymnasium.wrappers.RecordEpisodeStatistics",
        "gymnasium.wrappers.ClipAction",
    ],
)
def test_state_that_a_reset_clears_is_welcome(wrapper: Any) -> None:
    env = make_env("Tidy-v0", None, [wrapper])
    env.reset(seed=1)
    env.close()
