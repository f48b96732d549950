"""Games with PettingZoo's interface, each of which cannot be played for another reason, and bad opponents."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


class Counting:
    """The player who says the last of five numbers wins; subclasses say what is odd."""

    possible_agents: Any = ("one", "two")
    action_spaces: Any = spaces.Discrete(2)
    observation_spaces: Any = spaces.Dict(
        {"observation": spaces.Box(0, 5, (1,), np.int8), "action_mask": spaces.Box(0, 1, (2,), np.int8)}
    )

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces

    def action_space(self, agent: str) -> Any:
        return self.action_spaces

    def reset(self, seed: int | None = None) -> None:
        self.said = 0
        self.rewards = dict.fromkeys(self.possible_agents, 0)
        self.terminations = dict.fromkeys(self.possible_agents, False)
        self.truncations = dict.fromkeys(self.possible_agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.possible_agents}
        self.agent_selection = self.possible_agents[0]

    def observe(self, agent: str) -> Any:
        return {"observation": np.array([self.said], np.int8), "action_mask": self.mask()}

    def mask(self) -> Any:
        return np.ones(2, np.int8)

    def step(self, action: int) -> None:
        mover = self.agent_selection
        other = self.possible_agents[1 - self.possible_agents.index(mover)]
        self.said += 1
        if self.said == 5:
            self.rewards = self.result(mover, other)
            self.terminations = dict.fromkeys(self.possible_agents, True)
        self.agent_selection = other

    def result(self, mover: str, other: str) -> dict[str, int]:
        return {mover: 1, other: -1}

    def close(self) -> None:
        pass


class ThreePlayers(Counting):
    possible_agents = ("one", "two", "three")


class Generous(Counting):
    def result(self, mover: str, other: str) -> dict[str, int]:
        return {mover: 1, other: 0}


class Stuck(Counting):
    def mask(self) -> Any:
        return np.ones(2, np.int8) * (self.said < 3)


class Continuous(Counting):
    action_spaces = spaces.Box(-1, 1, (2,))


class Worded(Counting):
    observation_spaces = spaces.Text(5)


class Unequal(Counting):
    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2 + len(agent) % 2 + (agent == "two"))


class Broken(Counting):
    def step(self, action: int) -> None:
        raise KeyError("x")


class NoGame:
    """No game of two players at all."""


class Opponent:
    """Plays one action, whatever is legal."""

    name = "stubborn"

    def __init__(self, action: int = 0, num_games: int = 1) -> None:
        self.action = action

    def begin(self, which: Any, seats: Any) -> None:
        pass

    def act(self, which: Any, obs: Any, masks: Any, moves: Any, generator: Any) -> Any:
        return np.full(len(which), self.action)

    def close(self) -> None:
        pass
