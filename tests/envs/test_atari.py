"""Lives and FIRE, on a game that is a list of lives; and, where ALE is installed, on a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pg_lightning.envs import make_env
from pg_lightning.envs.wrappers.atari import FireAtLifeStart, LifeEpisodes

NOOP, FIRE, DIE = range(3)


class Game(gym.Env):
    """Five lives; DIE costs one, and pays nothing. Observations say how often FIRE was pressed in this game."""

    observation_space = spaces.Box(0, 99, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, actions: str = "NOOP FIRE DIE", lives: int = 5, lingers: bool = False) -> None:
        self.actions, self.full, self.lingers = actions.split(), lives, lingers
        self.ale = SimpleNamespace(lives=lambda: self.lives)
        self.lives = self.games = self.fires = 0

    def get_action_meanings(self) -> list[str]:
        return self.actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.lives, self.fires = self.full, 0
        self.games += 1
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        is_over = self.full > 0 and self.lives - (action == DIE and not self.lingers) <= 0
        self.fires += action == FIRE
        self.lives -= action == DIE
        return self._obs(), float(action != DIE), is_over, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.fires], dtype=np.float32)


def test_fire_is_pressed_where_a_life_begins_and_nowhere_else() -> None:
    game = Game()
    env = FireAtLifeStart(game)
    assert env.reset()[0].tolist() == [1]
    assert env.step(NOOP)[0].tolist() == [1]
    for life in range(2, 6):
        obs, reward, terminated, truncated, _ = env.step(DIE)
        assert (obs.tolist(), reward, terminated, truncated) == ([life], 1.0, False, False)  # FIRE's reward
    obs, reward, terminated, _, _ = env.step(DIE)
    assert (obs.tolist(), reward, terminated) == ([5], 0.0, True)
    assert env.reset()[0].tolist() == [1]


def test_a_game_without_fire_is_refused() -> None:
    with pytest.raises(ValueError, match="FIRE"):
        FireAtLifeStart(Game("NOOP UP DOWN"))


def test_every_life_is_an_episode_and_the_game_goes_on() -> None:
    game = Game()
    env = LifeEpisodes(FireAtLifeStart(game))
    for _ in range(2):
        env.reset()
        for life in range(1, 6):
            assert env.step(NOOP)[2] is False
            obs, _, terminated, truncated, _ = env.step(DIE)
            assert (terminated, truncated) == (True, False)
            if life < 5:
                assert env.reset()[0].tolist() == obs.tolist() == [life + 1]
    assert game.games == 2


def test_the_last_life_ends_with_the_game() -> None:
    """Some games show their end for a while, with no life left."""
    game = Game(lingers=True)
    env = LifeEpisodes(FireAtLifeStart(game))
    env.reset()
    for _ in range(4):
        assert env.step(DIE)[2]
        env.reset()
    obs, _, terminated, _, _ = env.step(DIE)
    assert (obs.tolist(), terminated) == ([5], False)
    assert env.step(NOOP)[2]
    env.reset()
    assert game.games == 2


def test_a_seed_begins_a_new_game() -> None:
    game = Game()
    env = LifeEpisodes(game)
    env.reset(seed=1)
    env.step(DIE)
    env.reset(seed=1)
    assert (game.games, game.lives) == (2, 5)


def test_a_game_without_lives_is_one_episode() -> None:
    env = LifeEpisodes(FireAtLifeStart(Game(lives=0)))
    env.reset()
    assert not any(env.step(NOOP)[2] for _ in range(3))


def test_breakout_as_shipped_has_five_lives_in_a_game() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    stack = {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 4}}
    wrappers = ["gymnasium.wrappers.AtariPreprocessing", "pg_lightning.envs.wrappers.atari.FireAtLifeStart", stack]
    lives, lengths = "pg_lightning.envs.wrappers.atari.LifeEpisodes", []
    env = make_env("ale_py:ALE/Breakout-v5", {"frameskip": 1, "repeat_action_probability": 0.0}, [*wrappers, lives])
    assert (env.observation_space.shape, env.observation_space.dtype) == ((4, 84, 84), np.uint8)
    for episode in range(6):
        env.reset(seed=3 if episode == 0 else None)
        length, ended = 0, False
        while not ended:
            _, _, terminated, truncated, _ = env.step(NOOP)
            ended, length = terminated or truncated, length + 1
        lengths.append(length)
        assert env.unwrapped.ale.lives() == (0 if episode == 4 else 4 - episode % 5)
    assert max(lengths) < 100  # the ball is in play from the first step of every life
