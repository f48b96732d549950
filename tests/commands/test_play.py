"""`play`: a person against a checkpoint, at the terminal; and `record` of a run of self-play, as text."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import yaml
from run_files import complaint

CONFIG = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    "model": {"class_path": "pg_lightning.algorithms.PPO", "init_args": {"hidden_sizes": [16]}},
    "data": {
        "env_id": "TicTacToe-v1",
        "num_envs": 4,
        "num_steps": 16,
        "total_steps": 128,
        "self_play": {"eval_opponents": ["random", "pg_lightning.games.perfect.TicTacToeMinimax"]},
    },
}
CKPT = "runs/game/version_0/checkpoints/last.ckpt"


def trained(folder, cli, env_id, self_play):
    config = {**CONFIG, "data": {**CONFIG["data"], "env_id": env_id, "self_play": self_play}}
    (folder / "game.yaml").write_text(yaml.safe_dump(config))
    assert cli(folder, "fit", "--config", "game.yaml").returncode == 0
    return folder


@pytest.fixture(scope="module")
def tictactoe(tmp_path_factory, cli):
    return trained(tmp_path_factory.mktemp("tictactoe"), cli, "TicTacToe-v1", CONFIG["data"]["self_play"])


@pytest.fixture
def typing(cli, monkeypatch):
    """Runs `play` with lines on its input; returns what it prints."""

    def run(folder, lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        finished = cli(folder, "play", "--ckpt_path", CKPT, *arguments)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def boards(text):
    return re.findall(r"  0 1 2\n0 (.*)\n3 (.*)\n6 (.*)\n", text)


def test_a_game_is_played_to_its_end_and_illegal_moves_are_asked_again(tictactoe, typing):
    text = typing(tictactoe, ["9", "-1", "here", *(str(move) for _ in range(9) for move in range(9))])
    assert text.startswith("\nYou begin:\n  0 1 2\n0 . . .\n")
    assert "legal moves: 0 1 2 3 4 5 6 7 8\nyour move (q quits): '9' is not one of: 0 1 2 3" in text
    assert "'here' is not one of" in text
    stones = [sum(" ".join(rows).count(symbol) for symbol in "xo") for rows in boards(text)]
    assert stones[:2] == [0, 2]
    assert all(before < after for before, after in pairwise(stones))
    assert len(re.findall(r"^(You win|You lose|Draw)\.$", text, re.MULTILINE)) == 1


def test_the_second_seat_sees_the_policys_first_move(tictactoe, typing):
    text = typing(tictactoe, ["q"], "--seat", "second")
    first = re.match(r"\nThe policy plays (\d):\n", text)
    assert first is not None
    assert " ".join(boards(text)[0]).count("x") == 1
    assert first[1] not in text.split("legal moves: ")[1].splitlines()[0]
    assert "You" not in text


def test_several_games_and_the_end_of_the_input(tictactoe, typing):
    moves = [str(move) for _ in range(9) for move in range(9)]
    text = typing(tictactoe, moves + moves, "--games", "2")
    assert len(re.findall(r"^(You win|You lose|Draw)\.$", text, re.MULTILINE)) == 2
    assert text.count("You begin") == 2
    assert "You win" not in typing(tictactoe, [])


def test_the_card_of_the_policy_is_hidden_until_the_end(tmp_path, cli, typing):
    trained(tmp_path, cli, "KuhnPoker-v0", {})
    text = typing(tmp_path, ["0", "1"])
    *before, end = re.findall(r"^[JQK] against .*$", text, re.MULTILINE)
    assert all(line[1:].startswith(" against an unknown card: ") for line in before)
    assert re.match(r"[JQK] against [JQK]: ", end)
    assert len(before) == 1 + end.count("pass, bet")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--games", 0], "games: must be at least 1, got 0"),
        (["--seat", "third"], "seat: expected one of 'first', 'second', got 'third'"),
    ],
)
def test_bad_input_is_one_line(tictactoe, cli, arguments, line):
    assert complaint(cli(tictactoe, "play", "--ckpt_path", CKPT, *arguments)) == line


def test_other_environments_are_refused(run, cli, tmp_path):
    said = complaint(cli(tmp_path, "play", "--ckpt_path", run / "checkpoints/last.ckpt"))
    assert said == "play: CartPole-v1 is no two-player game; record films a policy in its environment"


def test_ctrl_c_ends_it(tictactoe):
    command = [sys.executable, "-m", "pg_lightning", "play", "--ckpt_path", CKPT]
    with subprocess.Popen(
        command, cwd=tictactoe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        shown = ""
        while "quits" not in shown and process.poll() is None:
            shown += process.stdout.read(1)
        time.sleep(0.5)  # a signal before `read` would wait for a line
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, process.communicate()


def test_games_are_recorded_as_text(tictactoe, cli):
    finished = cli(tictactoe, "record", "--ckpt_path", CKPT, "--episodes", 5, "--output", "record")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tictactoe / "record/record.json").read_text())
    assert {key: report[key] for key in ("env_id", "seed", "env_steps", "deterministic")} == {
        "env_id": "TicTacToe-v1",
        "seed": 1,
        "env_steps": report["env_steps"],
        "deterministic": True,
    }
    episodes = report["episodes"]
    assert [episode["file"] for episode in episodes] == [f"game_{number:04d}.txt" for number in range(5)]
    seats = [(episode["opponent"], episode["seat"]) for episode in episodes]
    expected = [(name, seat) for name in ("random", "minimax") for seat in ("first", "second")]
    assert seats == [*expected, expected[0]]
    for episode, line in zip(episodes, finished.stdout.splitlines(), strict=True):
        text = (tictactoe / "record" / episode["file"]).read_text()
        seat, opponent, moves = episode["seat"], episode["opponent"], episode["moves"]
        assert text.startswith(f"TicTacToe-v1: the policy is {seat}, against {opponent}\n\n  0 1 2\n0 . . .\n")
        told = re.findall(r"^(\d+)\. (first|second): (\d)$", text, re.MULTILINE)
        assert told == [(str(i + 1), ("first", "second")[i % 2], str(move)) for i, move in enumerate(moves)]
        assert sum(1 for _, mover, _ in told if mover == seat) == episode["length"]
        result = {1: "the policy wins", 0: "draw", -1: "the policy loses"}[episode["return"]]
        end = f"{result} (return {episode['return']:g})"
        assert text.endswith(f"\n\n{end}\n")
        assert line == f"{end} as {seat} against {opponent}, {len(moves)} moves: record/{episode['file']}"
    assert all(episode["return"] <= 0 for episode in episodes[2:4])
    predicted = cli(tictactoe, "predict", "--ckpt_path", CKPT, "--data.eval_episodes", 5, "--data.num_envs", 1)
    assert predicted.returncode == 0


def test_a_folder_that_cannot_be_written_is_named(tictactoe, cli):
    finished = cli(tictactoe, "record", "--ckpt_path", CKPT, "--output", "game.yaml/x")
    assert finished.returncode == 2
    assert "error: output: cannot write 'game.yaml/x'" in finished.stderr
