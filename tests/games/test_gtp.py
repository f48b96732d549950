"""Programs that speak the Go Text Protocol as opponents; each way in which they can fail is one line."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted_games import PlainGo

from pg_lightning.errors import EnvironmentFailed, UserError
from pg_lightning.games import SelfPlay, evaluation_arena, training_arena
from pg_lightning.games.contract import RESIGNS
from pg_lightning.games.gtp import GTPOpponent, action_of, vertex_of

PROGRAM = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).with_name('gtp_program.py')))}"
GNUGO = shutil.which("gnugo") or shutil.which("/usr/games/gnugo")
SIZE = 3


def spec(command=PROGRAM, **arguments):
    return {
        "class_path": "pg_lightning.games.gtp.GTPOpponent",
        "init_args": {"command": command, "board_size": SIZE, **arguments},
    }


def first_seat(arena, seed):
    """Whether the learner begins the game that has this seed."""
    arena.reset([seed])
    return not arena.seats[0] and arena.opponents[0] is not None


def ask(opponent, moves, size=SIZE):
    count = len(moves)
    masks = np.ones((count, size**2 + 1), bool)
    return opponent.act(np.arange(count), np.zeros((count, 1)), masks, moves, torch.Generator()).tolist()


def test_vertices():
    assert [vertex_of(a, 9) for a in (0, 1, 8, 9, 80, 81)] == ["A9", "B9", "J9", "A8", "J1", "pass"]
    for size in (2, 9, 19, 25):
        assert [action_of(vertex_of(a, size), size) for a in range(size**2 + 1)] == [*range(size**2 + 1)]
    assert action_of("j1", 9) == 80
    assert [action_of(text, 9) for text in ("I5", "K1", "A0", "A10", "5A", "", "A", "A-1", "Ä1")] == [None] * 9


@pytest.mark.parametrize("processes", [1, 2, 9])
def test_a_program_plays_many_games(processes):
    opponent = GTPOpponent(PROGRAM, SIZE, processes=processes, num_games=3)
    assert opponent.name == Path(sys.executable).name
    games = [[], [0, 1], [0, 2, 1]]
    assert ask(opponent, games) == [0, 2, 3]
    assert ask(opponent, [[0, 4], [0, 1, 2, 8], [0, 2, 1, 3, 9]]) == [1, 3, 4]
    assert ask(opponent, [[], [5], [0, 4, 1]]) == [0, 0, 2]  # new games, and one that goes on
    opponent.close()


def test_moves_are_not_sent_again_and_colours_alternate(tmp_path):
    log = tmp_path / "log"
    opponent = GTPOpponent(f"sh -c {shlex.quote(f'{PROGRAM} 2> {log}')}", SIZE, 6.5, name="shell")
    assert opponent.name == "shell"
    assert ask(opponent, [[]]) == [0]
    assert ask(opponent, [[0, 9]]) == [1]
    assert ask(opponent, [[5]]) == [0]
    opponent.close()
    setup = ["protocol_version", "boardsize 3", "clear_board", "komi 6.5"]
    moves = ["genmove black", "play white pass", "genmove black", "clear_board", "play black C2", "genmove white"]
    assert log.read_text().splitlines() == [*setup, *moves]


def test_a_resigned_game_is_won():
    games = PlainGo(4, SIZE)
    arena = evaluation_arena(games, SelfPlay(eval_opponents=[spec(f"{PROGRAM} 2 resign")]), 0)
    assert arena.exam is not None
    arena.exam.episodes = {0: 0, 1: 1, 2: 0, 3: 1}
    arena.reset([0, 1, 2, 3])
    step = arena.step_and_wait(torch.tensor([8, 8, 8, 8]))
    assert step.done.tolist() == [False, True, False, True]
    assert step.rewards.tolist() == [0, 1, 0, 1]
    arena.begin(step.done)
    step = arena.step_and_wait(torch.tensor([7, 7, 7, 7]))
    assert step.done.all()
    assert step.rewards.tolist() == [1, 1, 1, 1]
    arena.close()


def test_a_program_that_resigns_at_once_is_one_line():
    settings = SelfPlay(both_seats=0.0, opponents=[spec(f"{PROGRAM} 0 resign", name="quitter")])
    arena = training_arena(PlainGo(8, SIZE), settings, 0)
    with pytest.raises(UserError, match="opponent quitter resigned before the first move"):
        arena.reset(0)


def test_a_game_that_is_resigned_in_training_is_counted_and_a_new_one_begins():
    games = PlainGo(2, SIZE)
    settings = SelfPlay(both_seats=0.0, opponents=["random", spec(f"{PROGRAM} 2 resign", name="quitter")])
    arena = training_arena(games, settings, 0)
    masks = arena.reset([1, 2])[1]
    results = []
    for _ in range(60):
        step = arena.step(torch.from_numpy(masks).float().multinomial(1)[:, 0])
        masks = step.action_mask
        results += step.rewards[step.done].tolist()
        assert (games.over == 0).all()
    state = arena.state_dict(torch.zeros(2))["envs"]["league"]["scores"]
    games_played, points = state["quitter"]
    assert games_played == points > 0
    assert len(results) == sum(count for count, _ in state.values())


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("no-such-program --mode gtp", "cannot start 'no-such-program --mode gtp': no program 'no-such-program'"),
        ("", "cannot start '': list index out of range"),
        ("prog 'x", 'cannot start "prog \'x": No closing quotation'),
        (f"{PROGRAM} 0 'not start'", "ended with status 1 instead of answering 'protocol_version': no such network"),
        (f"{PROGRAM} 0 babble", "answered 'welcome' to 'protocol_version'; it must speak the Go Text Protocol"),
        ("cat", "answered 'protocol_version' to 'protocol_version'"),
        ("true", "ended with status 0 instead of answering"),
        ("yes", "answered 'y y y"),
        (f"{PROGRAM} 0 drip", "gave no answer to 'protocol_version' within 0.5 s"),
        ("sleep 100", "gave no answer to 'protocol_version' within 0.5 s"),
    ],
)
def test_a_program_that_cannot_play_is_one_line_before_training(command, line):
    settings = SelfPlay(opponents=[spec(command, timeout=0.5)])
    if command == "cat":
        settings = SelfPlay(opponents=[spec("sed -u s/$/\\\\n/", timeout=0.5)])
    with pytest.raises(UserError) as error:
        training_arena(PlainGo(1, SIZE), settings, 0)
    assert line in str(error.value)
    assert str(error.value).startswith("data.self_play")
    assert "\n" not in str(error.value)
    assert error.value.status == 2


@pytest.mark.parametrize(
    ("deed", "kind", "line"),
    [
        ("die", EnvironmentFailed, "ended with status 1 instead of answering 'genmove black': protocol_version"),
        ("hang", EnvironmentFailed, "gave no answer to 'genmove black' within 0.5 s"),
        ("poetry", UserError, "answered 'a stone' to 'genmove black'; not a move"),
        ("refuse", UserError, "refused 'genmove black': cannot think"),
    ],
)
def test_a_program_that_fails_in_a_game_is_one_line(deed, kind, line):
    opponent = GTPOpponent(f"{PROGRAM} 1 {deed}", SIZE, timeout=0.5)
    assert ask(opponent, [[]]) == [0]
    start = time.monotonic()
    with pytest.raises(kind) as error:
        ask(opponent, [[0, 1]])
    assert time.monotonic() - start < 5
    assert line in str(error.value)
    assert f"1 {deed}" in str(error.value)
    assert "\n" not in str(error.value)
    opponent.close()


def test_a_refused_move_is_one_line():
    opponent = GTPOpponent(PROGRAM, SIZE)
    with pytest.raises(UserError, match="refused 'play white A3': illegal move"):
        ask(opponent, [[0, 0]])


def test_an_illegal_move_is_one_line():
    settings = SelfPlay(both_seats=0.0, opponents=[spec(f"{PROGRAM} 0 illegal", name="cheat")])
    arena = training_arena(PlainGo(1, SIZE), settings, 0)
    arena.reset([next(seed for seed in range(9) if first_seat(arena, seed))])
    with pytest.raises(UserError, match="opponent cheat played the illegal move 4; legal were 0, 1, 2, 3, 5, 6, 7, 8"):
        arena.step(torch.tensor([4]))


def test_another_board_is_one_line():
    opponent = GTPOpponent(PROGRAM, SIZE)
    with pytest.raises(UserError, match="has a board of 3 × 3, but the game has 82 actions; set board_size"):
        ask(opponent, [[]], 9)
    with pytest.raises(UserError, match="refused 'boardsize 20': unacceptable size"):
        GTPOpponent(PROGRAM, 20)


def test_resigning_is_no_action():
    assert RESIGNS < 0


@pytest.mark.skipif(GNUGO is None, reason="needs GNU Go")
def test_gnu_go_plays():
    opponent = GTPOpponent("gnugo --mode gtp --level 1 --chinese-rules --seed 1", 9, 7.5, processes=2, num_games=2)
    assert opponent.name == "gnugo"
    moves = [[], [40]]
    for _ in range(10):
        for game, action in zip(moves, ask(opponent, moves, 9), strict=True):
            assert 0 <= action < 81
            assert action not in game
            game.append(action)
    opponent.close()
