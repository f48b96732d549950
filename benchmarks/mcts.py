"""A policy of self-play against Monte-Carlo tree search of OpenSpiel, from both seats.

    pip install open_spiel
    python benchmarks/mcts.py runs/ppo_connect_four/version_0/checkpoints/best.ckpt --game connect_four --games 200

The search plays random moves to the end from every leaf (UCT, c = √2). An action must have the same number in both
games. The policy plays its mode; the search is random, so that games differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from elo import settings_of
from scipy.stats import binomtest

from pg_lightning.errors import UserError
from pg_lightning.games import make_games
from pg_lightning.games.match import play_match
from pg_lightning.games.opponents import PolicyOpponent
from pg_lightning.policies.trained import load
from pg_lightning.run.folder import run_folder


class Search:
    """Plays the move that a search visits most; each move is a new search."""

    def __init__(self, game: str, simulations: int, seed: int) -> None:
        try:
            import pyspiel
            from open_spiel.python.algorithms import mcts
        except ImportError as error:
            raise UserError("benchmarks/mcts.py needs OpenSpiel; pip install open_spiel") from error
        self.name = f"mcts_{simulations}"
        self._game, random = pyspiel.load_game(game), np.random.RandomState(seed)
        evaluator = mcts.RandomRolloutEvaluator(n_rollouts=1, random_state=random)
        self._bot = mcts.MCTSBot(self._game, 2**0.5, simulations, evaluator, random_state=random)

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """Nothing is kept from game to game."""

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """The moves of the games, one after the other."""
        return np.array([self._move(played, mask) for played, mask in zip(moves, masks, strict=True)])

    def close(self) -> None:
        """Nothing is open."""

    def _move(self, played: Sequence[int], mask: np.ndarray) -> int:
        state = self._game.new_initial_state()
        for action in played:
            state.apply_action(action)
        if state.legal_actions() != np.flatnonzero(mask).tolist():
            raise UserError("--game: its legal moves are not those of the policy's game")
        return int(self._bot.step(state))


class Mode(PolicyOpponent):
    """A policy that plays its most likely moves."""

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """The moves of a policy without memory."""
        with torch.inference_mode():
            actions, _ = self.policy.mode(torch.from_numpy(obs), torch.from_numpy(masks))
            return self.policy.env_actions(actions).numpy()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--game", default="connect_four", help="OpenSpiel's name of the game")
    parser.add_argument("--simulations", type=int, default=100, help="of a search")
    parser.add_argument("--games", type=int, default=200, help="half of them from each seat")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    print("| checkpoint | seat | won | drawn | lost | won, 95 % interval |\n|---|---|--:|--:|--:|--:|")
    for path in arguments.checkpoints:
        data = settings_of(run_folder(path))
        half, seed = arguments.games // 2, arguments.seed
        games = make_games(data["env_id"], half, data.get("env_kwargs"), data.get("backend", "sync"), seed)
        policy = Mode("policy", load(path).policy, half)
        search = Search(arguments.game, arguments.simulations, seed)
        for seat, pair in (("first", (policy, search)), ("second", (search, policy))):
            won, drawn, lost = play_match(games, *pair, half, seed)[:: 1 if seat == "first" else -1]
            interval = binomtest(int(won), half).proportion_ci(method="wilson")
            print(
                f"| {path} | {seat} | {won} | {drawn} | {lost} | {interval.low:.2f} to {interval.high:.2f} |",
                flush=True,
            )
        games.close()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
