"""Games as environments: every step is a move of the learner, and its opponents move within the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from pg_lightning.envs.contract import Capabilities, EnvState, VectorStep
from pg_lightning.envs.seeds import env_seed
from pg_lightning.errors import UserError
from pg_lightning.games.contract import BOTH, RESIGNS, Games, Opponent
from pg_lightning.games.exam import Exam
from pg_lightning.games.league import League
from pg_lightning.games.opponents import require_legal
from pg_lightning.rollout import Actor

Step = VectorStep[np.ndarray]


class Arena:
    """G games with the interface of `ResettableEnvironments`; the learner has one seat, or both.

    With one seat, a step goes from the learner's turn to its next turn, and the reward is that of all moves in between,
    of its seat. With both seats a step goes to the next turn of either; `data.game_rows` makes transitions of
    them.

    A new game is drawn from a random stream of its own, keyed by the seed of its place and by the number of the game
    there, so that a resumed run goes on with the same games.

    Args:
        games: to be played.
        matches: says who plays: a `League` in training; an `Exam` in an evaluation, where games begin on request.
        seed: of the moves that opponents sample.

    Attributes:
        num_envs: G.
        opponents: of each game now; None where the learner plays both seats.
        seats: see `GameEnvironments`.
        exam: the matches of an evaluation; None in training.
    """

    def __init__(self, games: Games, matches: League | Exam, seed: int) -> None:
        self.num_envs = games.num_games
        self.single_observation_space: Space[Any] = games.observation_space
        self.single_action_space: Space[Any] = games.action_space
        league = matches if isinstance(matches, League) else None
        trains = league is not None
        self.capabilities = Capabilities(
            autoreset="same_step" if trains else "disabled",
            seeds="per_env",
            can_save_state="by_replay" if games.can_replay and trains else "no",
            can_reset_some=not trains,
            follows_policy=trains,
            num_both=matches.num_both,
        )
        self._games, self._matches, self._league = games, matches, league
        self._seed = seed
        self._generator = torch.Generator()
        self._keys = list(range(self.num_envs))  # of the random streams
        self._numbers = [0] * self.num_envs  # of the games in each place
        self._seats = np.full(self.num_envs, BOTH)
        self.opponents: list[Opponent | None] = [None] * self.num_envs
        self._moves: list[list[int]] = [[] for _ in range(self.num_envs)]  # of the current games
        self._resigned = np.zeros(self.num_envs, bool)  # games that ended so, in the midst of play
        self._steps = 0
        self.seats = games.turn
        self.exam = matches if isinstance(matches, Exam) else None
        self._all = np.arange(self.num_envs)
        self._never = np.zeros(self.num_envs, bool)

    def follow(self, actor: Actor) -> None:
        """Shows the policy of the next rollout to the league."""
        assert self._league is not None
        self._league.follow(actor.policy, self._steps)  # type: ignore[arg-type]

    def reset(self, seeds: Sequence[int | None] | int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Environments`."""
        if isinstance(seeds, int):
            seeds = [env_seed(seeds, n) for n in range(self.num_envs)]
        if seeds is not None:
            self._generator.manual_seed(self._seed)
        self._begin(self._all, [None] * self.num_envs if seeds is None else seeds)
        return self._games.obs, self._games.masks

    def begin(self, which: np.ndarray, seeds: Sequence[int | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `ResettableEnvironments`."""
        chosen = np.flatnonzero(which)
        self._begin(chosen, [None if seeds is None else seeds[n] for n in chosen.tolist()])
        return self._games.obs, self._games.masks

    def step(self, actions: Tensor) -> Step:
        """See `Environments`."""
        step = self.step_and_wait(actions)
        self._steps += self.num_envs
        if not step.done.any():
            return step
        ended = np.flatnonzero(step.done)
        for n in ended:
            if (opponent := self.opponents[n]) is not None:
                self._matches.count(opponent, step.rewards[n])
        self._begin(ended, [None] * len(ended))
        return step._replace(obs=self._games.obs, begins=step.done, action_mask=self._games.masks)

    def step_and_wait(self, actions: Tensor) -> Step:
        """See `ResettableEnvironments`."""
        games = self._games
        movers = games.turn.copy()
        rewards = np.zeros((self.num_envs, 2))
        self._play(self._all, actions.cpu().numpy(), rewards)
        self._opponents_move(self._all, rewards)
        over = games.over | self._resigned
        own = rewards[self._all, movers]
        return Step(
            games.obs,
            own,
            over,
            self._never,
            over,
            self._never,
            action_mask=games.masks,
            seat_rewards=rewards,
        )

    def trim(self, lengths: Any) -> None:
        """Nothing to do: only the moves of the current games are kept."""

    def state_dict(self, lengths: Tensor) -> EnvState:
        """See `Environments`: seeds, moves and opponents of the current games, and the league."""
        if self._league is None or not self._games.can_replay:
            return {"envs": None}
        in_play = [x for x in self.opponents if x is not None]
        return {
            "envs": {
                "keys": list(self._keys),
                "numbers": list(self._numbers),
                "moves": [list(moves) for moves in self._moves],
                "seats": self._seats.tolist(),
                "opponents": [None if x is None else x.name for x in self.opponents],
                "generator": self._generator.get_state(),
                "steps": self._steps,
                "league": self._league.state_dict(in_play),
            }
        }

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """See `Environments`."""
        saved = state["envs"]
        if saved is None or self._league is None:
            return "its games cannot be restored"
        known = self._league.load_state_dict(saved["league"])
        self._keys, self._numbers = list(saved["keys"]), list(saved["numbers"])
        self._seats = np.array(saved["seats"])
        if missing := {name for name in saved["opponents"] if name is not None} - known.keys():
            return f"it was played against {', '.join(sorted(missing))}, who is no opponent of the config"
        self.opponents = [None if name is None else known[name] for name in saved["opponents"]]
        self._steps = saved["steps"]
        self._generator.set_state(saved["generator"])
        self._moves = [[] for _ in range(self.num_envs)]
        self._games.begin(self._all, [self._random(n)[1] for n in range(self.num_envs)])
        for played in range(max(map(len, saved["moves"]))):
            which = np.array([n for n, moves in enumerate(saved["moves"]) if played < len(moves)])
            moves = np.array([saved["moves"][n][played] for n in which])
            if self._games.over[which].any() or not self._games.masks[which, moves].all():
                return "its moves are not legal"
            self._play(which, moves, np.zeros((self.num_envs, 2)))
        return "" if np.array_equal(self._games.obs, obs.numpy()) else "its moves lead to other positions"

    @property
    def restarts(self) -> int:
        """See `Environments`; none is ever replaced."""
        return 0

    def close(self) -> None:
        """Closes games and opponents."""
        self._games.close()
        self._matches.close()

    def _begin(self, which: np.ndarray, keys: Sequence[int | None]) -> None:
        """Starts games, and plays on to the learner's first turn; a game that ends before it is drawn again."""
        for n, key in zip(which, keys, strict=True):
            if key is not None:
                self._keys[n], self._numbers[n] = key, -1
        while len(which):
            seeds = []
            for n in which.tolist():
                self._numbers[n] += 1
                random, seed = self._random(n)
                seeds.append(seed)
                self.opponents[n], self._seats[n] = self._matches.draw(n, self._keys[n], random.random())
                self._moves[n] = []
            self._games.begin(which, seeds)
            self._resigned[which] = False
            for opponent, some in self._by_opponent(which):
                opponent.begin(some, 1 - self._seats[some])
            self._opponents_move(which, np.zeros((self.num_envs, 2)))
            if self._resigned[which].any():
                quitter = self.opponents[which[self._resigned[which]][0]]
                raise UserError(f"data.self_play: opponent {quitter and quitter.name} resigned before the first move")
            which = which[self._games.over[which]]

    def _random(self, n: int) -> tuple[np.random.Generator, int]:
        """The random numbers of the current game in a place, after the seed of the game, which is their first."""
        random = np.random.default_rng([self._keys[n], self._numbers[n]])
        return random, int(random.integers(2**31))

    def _opponents_move(self, which: np.ndarray, rewards: np.ndarray) -> None:
        """Plays the opponents' moves until it is the learner's turn, or the game is over."""
        games = self._games
        while True:
            waiting = (self._seats[which] != BOTH) & (games.turn[which] != self._seats[which])
            waiting &= ~(games.over | self._resigned)[which]
            if not waiting.any():
                return
            for opponent, some in self._by_opponent(which[waiting]):
                history = [self._moves[n] for n in some]
                moves = opponent.act(some, games.obs[some], games.masks[some], history, self._generator)
                if (gone := moves == RESIGNS).any():
                    self._resign(some[gone], rewards)
                    some, moves = some[~gone], moves[~gone]
                require_legal(opponent, games.masks[some], moves)
                self._play(some, moves, rewards)

    def _resign(self, which: np.ndarray, rewards: np.ndarray) -> None:
        self._resigned[which] = True
        seats = self._seats[which]
        rewards[which, seats] += 1.0
        rewards[which, 1 - seats] -= 1.0

    def _play(self, which: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        self._games.play(which, actions)
        rewards[which] += self._games.rewards[which]
        for n, action in zip(which.tolist(), actions.tolist(), strict=True):
            self._moves[n].append(action)

    def _by_opponent(self, which: np.ndarray) -> list[tuple[Opponent, np.ndarray]]:
        """The games of each opponent among some, in the order of their first game."""
        groups: dict[int, tuple[Opponent, list[int]]] = {}
        for n in which.tolist():
            if (opponent := self.opponents[n]) is not None:
                groups.setdefault(id(opponent), (opponent, []))[1].append(n)
        return [(opponent, np.array(some)) for opponent, some in groups.values()]
