"""Games as environments: every step is a move of the learner, and its opponents move within the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from pg_lightning.actor import Actor
from pg_lightning.envs.contract import Capabilities, EnvState, VectorStep
from pg_lightning.envs.seeds import env_seed
from pg_lightning.errors import UserError
from pg_lightning.games.contract import BOTH, RESIGNS, Games, Opponent
from pg_lightning.games.exam import Exam
from pg_lightning.games.league import League
from pg_lightning.games.opponents import require_legal

Step = VectorStep[np.ndarray]
MOST_DRAWS = 1000  # of a game, until one reaches the learner's first turn


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
        self._opening = np.zeros((self.num_envs, 2))  # rewards of moves before the learner's first
        self._totals = np.zeros((self.num_envs, 2))  # rewards of the current games
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
            seed = self._seed if self.exam is None else self.exam.seed
            self._generator.manual_seed(seed)
            self._games.reseed(seed)
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
                self._matches.count(opponent, self._totals[n, self._seats[n]])
        self._begin(ended, [None] * len(ended))
        return step._replace(obs=self._games.obs, begins=step.done, action_mask=self._games.masks)

    def step_and_wait(self, actions: Tensor) -> Step:
        """See `ResettableEnvironments`."""
        games = self._games
        movers = games.turn.copy()
        rewards, self._opening = self._opening, np.zeros((self.num_envs, 2))
        self._play(self._all, actions.cpu().numpy(), rewards)
        self._opponents_move(self._all, rewards)
        self._totals += rewards
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
        """See `Environments`: the league; seeds, moves and opponents of the current games, if they can be replayed."""
        if self._league is None:
            return {"envs": None}
        games = {
            "keys": list(self._keys),
            "numbers": list(self._numbers),
            "moves": [list(moves) for moves in self._moves],
            "seats": self._seats.tolist(),
            "opponents": [None if x is None else x.name for x in self.opponents],
            "totals": torch.from_numpy(self._totals.copy()),
            "opening": torch.from_numpy(self._opening.copy()),
            "generator": self._generator.get_state(),
        }
        in_play = [x for x in self.opponents if x is not None]
        league = self._league.state_dict(in_play if self._games.can_replay else [])
        return {"envs": {"steps": self._steps, "league": league, "games": games if self._games.can_replay else None}}

    def load_state_dict(self, state: EnvState, obs: Tensor, returns: Tensor, lengths: Tensor) -> str:
        """See `Environments`; restores the league also where the games cannot be."""
        if self._league is None or state["envs"] is None:
            return "there are no games in it"
        league, saved = state["envs"]["league"], state["envs"]["games"]
        try:
            known = self._league.load_state_dict(league, (self.single_observation_space, self.single_action_space))
        except UserError as error:  # of a policy that cannot be made from plain types
            return f"its snapshots cannot be made ({error})"
        self._steps = state["envs"]["steps"]
        if saved is None:
            return "the positions of these games cannot be restored"
        if missing := {name for name in saved["opponents"] if name is not None} - known.keys():
            return f"it was played against {', '.join(sorted(missing))}, who is no opponent of the config"
        self.opponents = [None if name is None else known[name] for name in saved["opponents"]]
        self._keys, self._numbers, self._seats = [*saved["keys"]], [*saved["numbers"]], np.array(saved["seats"])
        if reason := self._replay(saved["moves"]):
            return reason
        self._league.restore_memories(league, known)
        self._totals, self._opening = (saved[name].numpy().copy() for name in ("totals", "opening"))
        self._generator.set_state(saved["generator"])
        return "" if np.array_equal(self._games.obs, obs.numpy()) else "its moves lead to other positions"

    def _replay(self, moves: Sequence[Sequence[int]]) -> str:
        """Begins the current games and plays their moves; returns an empty string, or the reason for failure."""
        self._moves = [[] for _ in range(self.num_envs)]
        self._games.begin(self._all, self._draws(self._all)[0].tolist())
        for opponent, some in self._by_opponent(self._all):
            opponent.begin(some, 1 - self._seats[some])
        for played in range(max(map(len, moves))):
            which = np.array([n for n, of_game in enumerate(moves) if played < len(of_game)])
            actions = np.array([moves[n][played] for n in which])
            if self._games.over[which].any() or not self._games.masks[which, actions].all():
                return "its moves are not legal"
            self._play(which, actions, np.zeros((self.num_envs, 2)))
        return ""

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
        for _ in range(MOST_DRAWS):
            if not len(which):
                return
            for n in which.tolist():
                self._numbers[n] += 1
            seeds, chances = self._draws(which)
            for n, chance in zip(which.tolist(), chances.tolist(), strict=True):
                self.opponents[n], self._seats[n] = self._matches.draw(n, self._keys[n], chance)
                self._moves[n] = []
            self._games.begin(which, seeds.tolist())
            self._resigned[which], self._totals[which], self._opening[which] = False, 0.0, 0.0
            for opponent, some in self._by_opponent(which):
                opponent.begin(some, 1 - self._seats[some])
            self._opponents_move(which, self._opening)
            if self._resigned[which].any():
                quitter = self.opponents[which[self._resigned[which]][0]]
                raise UserError(f"data.self_play: opponent {quitter and quitter.name} resigned before the first move")
            which = which[self._games.over[which]]
        raise UserError(
            f"data.env_id: {MOST_DRAWS} games in a row ended before the first turn of the policy, which cannot learn so"
        )

    def _draws(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seeds `[K]` of 31 bits and uniform random numbers `[K]` in [0, 1) of the current games in `which` `[K]`."""
        keys, numbers = (np.array([x[n] for n in which.tolist()], np.uint64) for x in (self._keys, self._numbers))
        games = (keys << np.uint64(32)) + numbers
        seeds, chances = (split_mix(games * np.uint64(2) + np.uint64(i)) for i in (0, 1))
        return (seeds >> np.uint64(33)).astype(np.int64), (chances >> np.uint64(11)) * 2.0**-53

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


def split_mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64-bit integers `[K]`, whose bits are random for consecutive ones (SplitMix64, Steele et al. 2014)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
