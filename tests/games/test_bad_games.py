"""Games and opponents that cannot be played are one line, before training wherever they show themselves."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch

from pg_lightning.errors import UserError
from pg_lightning.games import SelfPlay, evaluation_arena, make_games, training_arena

HAS_ENVPOOL = importlib.util.find_spec("envpool") is not None


def refused(make: Any) -> str:
    with pytest.raises(UserError) as error:
        make()
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("env_id", "line"),
    [
        ("odd_games:ThreePlayers", "data.env_id: ThreePlayers is a game of 3 players; data.self_play plays games of"),
        ("odd_games:Continuous", "data.env_id: Continuous has observations Box(0, 5, (1,), int8) and actions Box("),
        ("odd_games:Worded", "data.env_id: Worded has observations Text("),
        ("odd_games:Unequal", "data.env_id: the players of Unequal have different action spaces, Discrete(3) and"),
        ("odd_games:NoGame", "data.env_id: NoGame has no possible_agents, observe, step; data.self_play plays games"),
        ("odd_games:NotThere", "data.env_id: cannot import 'odd_games:NotThere': AttributeError"),
        ("no_such_module:Game", "data.env_id: cannot import 'no_such_module:Game': ModuleNotFoundError"),
        ("CartPole-v1", "data.env_id: no game 'CartPole-v1'; with data.self_play it is KuhnPoker-v0, "),
    ],
)
def test_what_is_no_two_player_game(env_id, line):
    assert refused(lambda: make_games(env_id, 1, None, "sync")).startswith(line)


def test_a_missing_pettingzoo_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    line = refused(lambda: make_games("pettingzoo.classic:connect_four_v3", 1, None, "sync"))
    assert line.endswith('; pip install "pg_lightning[pettingzoo]"')


@pytest.mark.parametrize(
    ("env_id", "line"),
    [
        (
            "odd_games:Generous",
            "data.env_id: Generous gave the rewards 1 and 0 for one move; data.self_play plays zero",
        ),
        ("odd_games:Stuck", "data.env_id: Stuck forbids every action of two after 3 moves; a player who cannot move"),
        ("odd_games:Broken", "data.env_id: env 1 failed in step 1: it raised KeyError: 'x' ("),
    ],
)
def test_what_shows_itself_in_a_game(env_id, line):
    games = make_games(env_id, 2, None, "sync")
    games.begin(np.array([0, 1]), [0, 1])

    def play() -> None:
        for _ in range(5):
            games.play(np.array([1]), np.array([0]))

    assert refused(play).startswith(line)


@pytest.mark.skipif(not HAS_ENVPOOL, reason="needs EnvPool")
@pytest.mark.parametrize(
    ("env_id", "line"),
    [
        ("CartPole-v1", "data.env_id: CartPole-v1 has 1 player; data.self_play needs two"),
        ("Play2048-v1", "data.env_id: Play2048-v1 has 1 player; data.self_play needs two"),
        ("SparrowMahjong-v1", "data.env_id: SparrowMahjong-v1 has 3 players; data.self_play needs two"),
        ("Checkers-v1", "data.env_id: EnvPool cannot make 'Checkers-v1': "),
    ],
)
def test_what_is_no_two_player_game_of_envpool(env_id, line):
    assert refused(lambda: make_games(env_id, 1, None, "envpool")).startswith(line)


@pytest.mark.parametrize("action", [4, 9, -2, 10**6])
def test_an_illegal_move_of_an_opponent(action):
    spec = {"class_path": "odd_games.Opponent", "init_args": {"action": action}}
    arena = evaluation_arena(make_games("TicTacToe-v1", 1, None, "sync"), SelfPlay(eval_opponents=[spec]), 0)
    arena.reset([0])
    line = refused(lambda: arena.step_and_wait(torch.tensor([4])))
    assert line == (
        f"data.self_play: opponent stubborn played the illegal move {action}; legal were 0, 1, 2, 3, 5, 6, 7, 8"
    )


@pytest.mark.parametrize("field", ["opponents", "eval_opponents"])
@pytest.mark.parametrize(
    ("opponents", "line"),
    [
        (["random", "random"], "two opponents are called 'random'"),
        (["nobody"], "cannot import 'nobody'"),
        (["runs/none/version_0"], "no "),
        (
            [{"class_path": "odd_games.Opponent", "init_args": {"strength": 3}}],
            "cannot make Opponent(num_games, **init",
        ),
        (["odd_games.NoGame"], "cannot make NoGame(num_games, **init_args): TypeError"),
    ],
)
def test_opponents_that_cannot_be_made(field, opponents, line):
    make = training_arena if field == "opponents" else evaluation_arena
    settings: dict[str, Any] = {field: opponents}
    got = refused(lambda: make(make_games("TicTacToe-v1", 1, None, "sync"), SelfPlay(**settings), 0))
    assert got.startswith(f"data.self_play.{field}: {line}")


def test_a_checkpoint_of_another_game(fit, tmp_path):
    module = fit("KuhnPoker-v0", {"self_play": SelfPlay(), "total_steps": 64})
    path = str(tmp_path / "kuhn.ckpt")
    module.trainer.save_checkpoint(path)
    spec = SelfPlay(eval_opponents=[path])
    assert evaluation_arena(make_games("KuhnPoker-v0", 1, None, "sync"), spec, 0).opponents
    line = refused(lambda: evaluation_arena(make_games("TicTacToe-v1", 1, None, "sync"), spec, 0))
    assert line == (
        f"data.self_play.eval_opponents: the observation space of {path!r} is Box(0, 1, (7,), uint8), that of the game "
        "Box(0, 1, (3, 3, 2), uint8); give a checkpoint of this game"
    )


def test_a_bad_opponent_of_evaluations_is_found_before_the_first_step(fit, monkeypatch):
    from pg_lightning.games.small import TicTacToe

    begun = []
    monkeypatch.setattr(TicTacToe, "play", lambda self, which, actions: begun.append(1))
    line = refused(lambda: fit("TicTacToe-v1", {"self_play": SelfPlay(eval_opponents=["nobody.Nobody"])}))
    assert line.startswith("data.self_play.eval_opponents: cannot import")
    assert not begun
