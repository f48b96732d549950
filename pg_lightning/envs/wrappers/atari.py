"""Wrappers of Atari recipes that Gymnasium lacks: FIRE at the start of a life, and lives as episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from pg_lightning.envs.contract import Info, SingleReset, SingleStep

Wrapper = gym.Wrapper[Any, Any, Any, Any]  # of any kind of observations and actions


class FireAtLifeStart(Wrapper):
    """Presses FIRE at the start of a life: some games wait for it, and a policy may never learn to press it.

    The usual wrapper does this at the start of a game only. This one also does it after every lost life, so that a
    policy trained with `LifeEpisodes` meets the same situation in whole games.

    Args:
        env: an Atari game, preprocessed; not yet frame-stacked.

    Raises:
        ValueError: if the game has no action FIRE.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        if "FIRE" not in meanings:
            raise ValueError("the environment has no action FIRE")
        self._fire = meanings.index("FIRE")
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """Starts a game."""
        self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, info = self.env.step(self._fire)
        if terminated or truncated:
            obs, info = self.env.reset(options=options)
        self._lives = lives_of(self)
        return obs, info

    def step(self, action: Any) -> SingleStep:
        """One step, or two if it cost a life."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        lives = lives_of(self)
        if 0 < lives < self._lives and not (terminated or truncated):
            obs, more, terminated, truncated, info = self.env.step(self._fire)
            reward = float(reward) + float(more)
        self._lives = lives
        return obs, reward, terminated, truncated, info


class LifeEpisodes(Wrapper):
    """Every life is an episode that ends in a terminal state; the game continues in the next one (Mnih et al. 2015).

    For `data.train_wrappers`: evaluation plays whole games. Gymnasium's `terminal_on_life_loss` starts a new game
    instead, so the later lives are never seen.

    Args:
        env: an Atari game, preprocessed.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives = 0
        self._is_over = True
        self._last: SingleReset

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> SingleReset:
        """The observation at the end of the last life; a new game if none is in progress, or if there is a seed."""
        if self._is_over or seed is not None:
            self._last = self.env.reset(seed=seed, options=options)
            self._lives, self._is_over = lives_of(self), False
        return self._last

    def step(self, action: Any) -> SingleStep:
        """One step; terminated if it cost a life."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._last, self._is_over = (obs, info), terminated or truncated
        lives = lives_of(self)
        terminated = terminated or 0 < lives < self._lives
        self._lives = lives
        return obs, reward, terminated, truncated, info


def lives_of(env: gym.Env) -> int:
    """The remaining lives in an Atari game; 0 in games without lives."""
    return int(env.unwrapped.ale.lives())  # type: ignore[attr-defined]
