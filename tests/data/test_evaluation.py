"""An evaluation plays exactly the episodes it was asked for, under the policy as it is, and changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import odd_envs  # noqa: F401 - registers
import pytest
import torch
from doubles import ActsBy
from torch import Tensor

from pg_lightning.algorithms import PPO
from pg_lightning.data import EvaluationDataset, RolloutDataModule
from pg_lightning.envs import make_env, make_vector_env
from pg_lightning.rollout import Episode

CONTEXTUAL = "pg_lightning.envs.tasks.toy:pg_lightning/ContextualReward-v0"
CONTINUOUS = "pg_lightning.envs.tasks.toy:pg_lightning/ContinuousContextualReward-v0"
ENDLESS = "pg_lightning.envs.tasks.toy:pg_lightning/Endless-v0"


class Dice(gym.Env):
    """Episodes as long as a die says, 1 to 12 steps, +1 a step; half of them are cut, half of them end.

    Observations say (length, step, last action), always in the same array.
    """

    observation_space = gym.spaces.Box(-1, 12, (3,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self) -> None:
        self.state = np.zeros(3, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state[:] = self.np_random.integers(1, 13), 0, -1
        return self.state, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.state[1:] = self.state[1] + 1, action
        ended = self.state[1] == self.state[0]
        is_cut = self.state[0] % 2 == 0
        return self.state, 1.0, bool(ended and not is_cut), bool(ended and is_cut), {}


gym.register("tests/Dice-v0", Dice)


def number_of_the_step(obs: Tensor) -> Tensor:
    return obs[:, 1].long() % 4


def play(seeds: list[int], num_envs: int, **kwargs: Any) -> list[Episode]:
    env = make_vector_env("tests/Dice-v0", num_envs, autoreset_mode="disabled")
    options = {"action_seed": 0, "deterministic": True, "max_episode_steps": 100, **kwargs}
    return list(EvaluationDataset(env, ActsBy(number_of_the_step), seeds, **options))


def lengths_one_by_one(seeds: list[int]) -> list[int]:
    env = make_env("tests/Dice-v0")
    return [int(env.reset(seed=seed)[0][0]) for seed in seeds]


SEEDS = list(range(100, 113))


@pytest.mark.parametrize("num_envs", [1, 3, 8, 13, 20])
def test_exactly_the_episodes_of_the_seeds_are_played_whatever_the_number_of_envs(num_envs: int) -> None:
    episodes = play(SEEDS, num_envs)
    assert sorted(int(episode.episode_length) for episode in episodes) == sorted(lengths_one_by_one(SEEDS))
    assert all(episode.episode_return == episode.episode_length for episode in episodes)
    assert not any(episode.capped for episode in episodes)


def test_short_episodes_are_not_favoured_by_playing_them_in_parallel() -> None:
    seeds = list(range(60))
    parallel = [int(episode.episode_length) for episode in play(seeds, num_envs=30)]
    assert np.mean(parallel) == np.mean(lengths_one_by_one(seeds))


@pytest.mark.parametrize("num_envs", [1, 4, 13, 20])
def test_episodes_come_in_the_order_of_their_seeds(num_envs: int) -> None:
    assert [int(episode.episode_length) for episode in play(SEEDS, num_envs)] == lengths_one_by_one(SEEDS)


def test_playing_twice_plays_the_same() -> None:
    once, again = ([int(episode.episode_length) for episode in play(SEEDS, 3)] for _ in range(2))
    assert once == again


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_evaluation_that_draws_from_global_generators_repeats_itself_and_leaves_them_alone(backend: Any) -> None:
    """It may stop early, too."""

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    def reseed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    reseed()
    alone = [drawn() for _ in range(3)]
    reseed()
    env = make_vector_env("Draws-v0", 2, None, (), backend, "disabled")
    reseed()
    played = EvaluationDataset(env, ActsBy(number_of_the_step), SEEDS, 0, True, 100, record=True)
    once = [episode.trajectory["obs"] for episode in played]
    between = drawn()
    some = iter(played)
    again = [next(some).trajectory["obs"] for _ in range(5)]
    assert [between, drawn()] == alone[:2]
    del some
    assert drawn() == alone[2]
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=False))
    assert len({float(obs[0, 0]) for obs in once}) == len(SEEDS)
    env.close()


def test_an_endless_episode_is_stopped_counted_once_and_said_so() -> None:
    with pytest.warns(UserWarning, match=r"stopped after data.eval_max_episode_steps = 5\b"):
        episodes = play(SEEDS, 4, max_episode_steps=5)
    expected = [(min(length, 5), length > 5) for length in lengths_one_by_one(SEEDS)]
    assert sorted((int(episode.episode_length), episode.capped) for episode in episodes) == sorted(expected)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_trajectory_is_the_episode_from_reset_to_end(num_envs: int) -> None:
    for episode in play(SEEDS, num_envs, record=True):
        length, track = int(episode.episode_length), episode.trajectory
        steps = torch.arange(length + 1.0)
        assert torch.equal(track["obs"][:, 0], torch.full((length + 1,), float(length), dtype=track["obs"].dtype))
        assert torch.equal(track["obs"][:, 1], steps)
        assert torch.equal(track["actions"], steps[:-1].long() % 4)
        assert torch.equal(track["obs"][1:, 2].long(), track["actions"])
        assert track["rewards"].sum() == episode.episode_return
        ended = (track["terminated"] | track["truncated"]).tolist()
        assert ended == [False] * (length - 1) + [True]
        assert bool(track["truncated"][-1]) == (length % 2 == 0)


def test_trajectories_are_recorded_only_if_asked_for() -> None:
    assert all(episode.trajectory == {} for episode in play(SEEDS, 3))


class Counter(ActsBy):
    """Its memory is the number of steps since it was empty, and so is its action, as far as there is one."""

    def initial_state(self, num_envs: int) -> Tensor:  # type: ignore[override]
        return torch.zeros(num_envs, 1)

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        return state[:, 0].long(), state + 1


@pytest.mark.parametrize("max_episode_steps", [100, 5])
@pytest.mark.parametrize("num_envs", [1, 3, 20])
@pytest.mark.filterwarnings("ignore:an evaluation episode was stopped")
def test_the_memory_is_empty_at_the_start_of_an_episode_and_goes_on_to_its_end(
    num_envs: int, max_episode_steps: int
) -> None:
    env = make_vector_env("tests/Dice-v0", num_envs, autoreset_mode="disabled")
    for episode in EvaluationDataset(env, Counter(), SEEDS, 0, True, max_episode_steps, record=True):
        assert episode.trajectory["actions"].tolist() == list(range(int(episode.episode_length)))


class MaskedDice(Dice):
    """Allows one action, the sum of length and step modulo 4, and raises at any other."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return super().reset(seed=seed)[0], self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self._info()["action_mask"][action]:
            raise ValueError(f"{action} at {self.state}")
        return (*super().step(action)[:4], self._info())

    def _info(self) -> dict:
        return {"action_mask": np.eye(4, dtype=np.int8)[int(self.state[:2].sum()) % 4]}


gym.register("tests/MaskedDice-v0", MaskedDice)


class Obedient(ActsBy):
    """Takes the first action that is allowed."""

    def act(
        self,
        obs: Tensor,
        generator: torch.Generator,
        deterministic: bool = False,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        assert action_mask is not None
        return action_mask.argmax(-1), None


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_mask_comes_with_its_observation(num_envs: int, backend: str) -> None:
    env = make_vector_env("tests/MaskedDice-v0", num_envs, {}, (), backend, "disabled")  # type: ignore[arg-type]
    episodes = list(EvaluationDataset(env, Obedient(), SEEDS, 0, True, 100, record=True))
    env.close()
    assert len(episodes) == len(SEEDS)
    for episode in episodes:
        track = episode.trajectory
        assert torch.equal(track["actions"], track["obs"][:-1, :2].sum(-1).long() % 4)


# Through the Trainer.


@pytest.fixture
def evaluate(quiet_trainer: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `validate`, `test` or `predict` on an untrained PPO: its episodes' returns, or the predictions."""

    def run(what: str, env_id: str, trainer: dict[str, Any] | None = None, **data: Any) -> Any:
        rollouts = RolloutDataModule(env_id, **data)
        torch.manual_seed(5)
        module = PPO(
            observation_space=rollouts.observation_space, action_space=rollouts.action_space, normalize_obs=True
        )
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        found = getattr(quiet_trainer(**(trainer or {})), what)(
            module, datamodule=rollouts, **({} if what == "predict" else QUIET)
        )
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
        return found if what == "predict" else module.evaluation[0].tolist()

    return run


QUIET = {"verbose": False}


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_the_episodes_do_not_depend_on_the_envs_that_play_them(evaluate: Any, num_envs: int, backend: str) -> None:
    alone = evaluate("validate", "tests/Dice-v0", eval_episodes=7, num_envs=1)
    together = evaluate("validate", "tests/Dice-v0", eval_episodes=7, num_envs=num_envs, backend=backend)
    assert len(together) == 7
    assert sorted(together) == sorted(alone)


def test_more_episodes_add_to_the_ones_before(evaluate: Any) -> None:
    few, many = (sorted(evaluate("test", "tests/Dice-v0", eval_episodes=n)) for n in (5, 20))
    assert len(many) == 20
    assert all(many.count(length) >= few.count(length) for length in few)


LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}


@pytest.mark.parametrize("limit", [1, 8, 0.4])
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_keeps_the_first_episodes_not_the_shortest(
    evaluate: Any, what: str, backend: str, limit: float
) -> None:
    """As many fewer episodes as with `data.eval_episodes`, and the same."""
    count = int(limit * 20) if isinstance(limit, float) else limit
    trainers = [{LIMITS[what]: limit}, {}]
    settings = [{"eval_episodes": 20, "num_envs": 10, "backend": backend}, {"eval_episodes": count, "num_envs": 1}]
    limited, fewer = (
        evaluate(what, "tests/Dice-v0", trainer, **data) for trainer, data in zip(trainers, settings, strict=True)
    )
    if what == "predict":
        limited, fewer = ([float(episode.episode_return) for episode in found] for found in (limited, fewer))
    assert len(fewer) == count
    assert limited == fewer


@pytest.mark.parametrize("limit", [{"limit_val_batches": 3}, {"overfit_batches": 3}, {"fast_dev_run": 3}])
def test_limits_of_evaluations_during_training_keep_the_first_episodes(fit: Any, limit: dict[str, int]) -> None:
    data = {"eval_every_steps": 64, "eval_episodes": 20, "num_envs": 10}
    limited = fit("tests/Dice-v0", data, trainer=limit)
    fewer = fit("tests/Dice-v0", {**data, "eval_episodes": 3, "num_envs": 10})
    assert limited.evaluation[0].tolist() == fewer.evaluation[0].tolist()


def test_a_limit_of_0_turns_evaluation_off(fit: Any) -> None:
    module = fit("tests/Dice-v0", {"eval_every_steps": 64}, trainer={"limit_val_batches": 0})
    assert module.env_steps == 256


def test_validation_test_and_prediction_play_different_episodes(evaluate: Any) -> None:
    played = [evaluate(what, "tests/Dice-v0", eval_episodes=20, num_envs=1) for what in ("validate", "test", "predict")]
    played[2] = [float(episode.episode_return) for episode in played[2]]
    assert played[0] != played[1]
    assert played[1] != played[2]
    assert played[0] != played[2]


@pytest.mark.parametrize("env_id", [CONTEXTUAL, CONTINUOUS])
def test_deterministic_evaluation_plays_the_mode_and_the_other_samples(evaluate: Any, env_id: str) -> None:
    def actions_by_context(deterministic: bool) -> list[set[tuple[float, ...]]]:
        options = {"eval_episodes": 64, "eval_deterministic": deterministic}
        episodes = [episode.trajectory for episode in evaluate("predict", env_id, **options)]
        taken = [
            (float(episode["obs"][0]), tuple(episode["actions"].flatten().double().round(decimals=4).tolist()))
            for episode in episodes
        ]
        return [{action for context, action in taken if context == sign} for sign in (-1.0, 1.0)]

    assert [len(actions) for actions in actions_by_context(deterministic=True)] == [1, 1]
    assert all(len(actions) > 1 for actions in actions_by_context(deterministic=False))


def test_the_mode_is_the_mode(quiet_trainer: Any) -> None:
    rollouts = RolloutDataModule(CONTINUOUS, eval_episodes=8)
    module = PPO(observation_space=rollouts.observation_space, action_space=rollouts.action_space)
    for episode in quiet_trainer().predict(module, datamodule=rollouts):
        with torch.inference_mode():
            mode = module.network.pi(episode.trajectory["obs"][:1]).mode
        torch.testing.assert_close(episode.trajectory["actions"], mode.clamp(-1, 1))


def test_an_environment_without_an_end_is_evaluated_up_to_the_cap(evaluate: Any) -> None:
    endless = {"env_kwargs": {"max_episode_steps": -1}, "eval_episodes": 3, "eval_max_episode_steps": 30}
    with pytest.warns(UserWarning, match="eval_max_episode_steps"):
        assert evaluate("validate", ENDLESS, **endless) == [30.0, 30.0, 30.0]


@pytest.mark.parametrize("eval_every_steps", [64, 1_000_000])
def test_observation_statistics_count_training_steps_and_nothing_else(fit: Any, eval_every_steps: int) -> None:
    module = fit("CartPole-v1", {"eval_every_steps": eval_every_steps}, normalize_obs=True)
    assert module.env_steps == 256
    assert module.network.normalizer.statistics.count == 256


def test_what_is_learned_does_not_depend_on_how_often_it_is_evaluated(fit: Any) -> None:
    def weights(eval_every_steps: int) -> dict[str, Tensor]:
        torch.manual_seed(5)
        return fit("CartPole-v1", {"eval_every_steps": eval_every_steps}, normalize_obs=True).state_dict()

    often, once = weights(64), weights(1_000_000)
    assert all(torch.equal(often[name], once[name]) for name in once)
