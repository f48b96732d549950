"""Opponents that are programs: any that speaks the Go Text Protocol, such as GNU Go, Pachi or KataGo."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pg_lightning.errors import EnvironmentFailed, UserError, one_line, require
from pg_lightning.games.contract import RESIGNS

COLUMNS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # the protocol leaves out I
PLACES = ":/usr/local/games:/usr/games"  # where Debian installs games, which not every PATH contains
MOST_BYTES = 2**20  # of an answer
COLOURS = "black", "white"


class GTPOpponent:
    """A program that speaks the Go Text Protocol, version 2, as the opponent in games of Go.

    Action `board_size * i + j` of the game is a stone in row i from the top, column j from the left; the last action is
    to pass. Seat 0 has the black stones. A program holds one position: for another game it gets all moves again.

    The random numbers of the program are its own: give it a seed in `command` if it has such an option.

    Args:
        num_games: G, the most programs that are of use.
        command: of the program, with its options.
        board_size: of the game.
        komi: of the game.
        timeout: seconds that an answer may take, the first one including the start.
        processes: number of programs, which think at the same time about different games.
        name: for metrics; by default that of the program.

    Raises:
        UserError: if the program is missing, does not speak the protocol, or refuses the board.
    """

    def __init__(
        self,
        command: str,
        board_size: int = 9,
        komi: float = 7.5,
        timeout: float = 60.0,
        processes: int = 1,
        name: str | None = None,
        num_games: int = 1,
    ) -> None:
        require("data.self_play: board_size", board_size, 2, len(COLUMNS))
        require("data.self_play: timeout", timeout, 0.1)
        require("data.self_play: processes", processes, 1)
        self._size, self._command = board_size, command
        self._programs: list[_Program] = []
        try:
            for _ in range(min(processes, num_games)):
                self._programs.append(_Program(command, timeout))
                self._programs[-1].begin(board_size, komi)
        except EnvironmentFailed as error:
            self.close()
            raise UserError(str(error)) from error
        except UserError:
            self.close()
            raise
        self.name = name or os.path.basename(self._programs[0].words[0])

    def begin(self, which: np.ndarray, seats: np.ndarray) -> None:
        """See `Opponent`."""

    def act(
        self,
        which: np.ndarray,
        obs: np.ndarray,
        masks: np.ndarray,
        moves: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> np.ndarray:
        """See `Opponent`.

        Raises:
            UserError: if the game has another number of points, or the program refuses a move.
            EnvironmentFailed: if the program ends, or does not answer in time.
        """
        points = masks.shape[1] - 1
        if points != self._size**2:
            raise UserError(
                f"data.self_play: {self._command!r} has a board of {self._size} × {self._size}, but the game has "
                f"{masks.shape[1]} actions; set board_size"
            )
        count = len(self._programs)
        # A game stays with its program, so that this rarely has to replay it.
        of_program = [np.flatnonzero(which % count == p) for p in range(count)]
        chosen = np.zeros(len(which), np.int64)

        def answer(p: int) -> None:
            for k in of_program[p].tolist():
                chosen[k] = self._move(self._programs[p], moves[k])

        if count == 1:
            answer(0)
        else:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(answer, range(count)))
        return chosen

    def close(self) -> None:
        """Ends the programs."""
        for program in self._programs:
            program.end()

    def _move(self, program: _Program, moves: Sequence[int]) -> int:
        played = program.moves
        if played != [*moves[: len(played)]]:
            program.ask("clear_board")
            played.clear()
        for number in range(len(played), len(moves)):
            program.ask(f"play {COLOURS[number % 2]} {vertex_of(moves[number], self._size)}")
            played.append(moves[number])
        question = f"genmove {COLOURS[len(moves) % 2]}"
        answer = program.ask(question)
        if answer.lower() == "resign":
            return RESIGNS
        action = action_of(answer, self._size)
        if action is None:
            raise UserError(f"data.self_play: {self._command!r} answered {answer[:80]!r} to {question!r}; not a move")
        played.append(action)
        return action


def vertex_of(action: int, size: int) -> str:
    """The name of an action in the protocol: `A9` is the upper left point of a board of size 9."""
    row, column = divmod(action, size)
    return "pass" if row == size else f"{COLUMNS[column]}{size - row}"


def action_of(vertex: str, size: int) -> int | None:
    """The action of a vertex, in any case; None if there is none."""
    text = vertex.upper()
    if text == "PASS":
        return size**2
    column, number = COLUMNS.find(text[:1]), text[1:]
    if not text or not number.isdecimal() or not 0 <= column < size or not 1 <= int(number) <= size:
        return None
    return (size - int(number)) * size + column


class _Program:
    """A running program.

    Attributes:
        words: of the command.
        moves: on its board, from the first.
    """

    def __init__(self, command: str, timeout: float) -> None:
        self._command, self._timeout = command, timeout
        self.moves: list[int] = []
        self._read = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        try:
            self.words = shlex.split(command)
            program = shutil.which(self.words[0], path=os.environ.get("PATH", os.defpath) + PLACES)
            if program is None:
                raise UserError(
                    f"data.self_play: cannot start {command!r}: no program {self.words[0]!r}; install it, or give its "
                    "path"
                )
            self._process = subprocess.Popen(
                [program, *self.words[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the training
            )
        except (OSError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"data.self_play: cannot start {command!r}: {one_line(error)}") from error

    def begin(self, size: int, komi: float) -> None:
        """Checks the protocol and sets up the board.

        Raises:
            UserError: if the program does not speak the protocol, or refuses.
        """
        self.ask("protocol_version")
        for line in (f"boardsize {size}", "clear_board", f"komi {komi:g}"):
            self.ask(line)

    def ask(self, line: str) -> str:
        """The answer to a command.

        Raises:
            UserError: if it is an error.
            EnvironmentFailed: if there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except OSError:
            raise self._ended(line) from None
        answer = self._answer(line).strip()
        if answer.startswith("="):
            return answer[1:].strip()
        self.end()
        if answer.startswith("?"):
            raise UserError(f"data.self_play: {self._command!r} refused {line!r}: {one_line(answer[1:])[:200]}")
        raise UserError(
            f"data.self_play: {self._command!r} answered {one_line(answer)[:80]!r} to {line!r}; it must speak the Go "
            "Text Protocol, for which many programs need an option such as --mode gtp"
        )

    def end(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._errors.close()

    def _answer(self, line: str) -> str:
        """The text up to the next empty line."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        while b"\n\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self.end()
                raise EnvironmentFailed(
                    f"data.self_play: {self._command!r} gave no answer to {line!r} within {self._timeout:g} s; if it "
                    "thinks for so long, raise its timeout"
                )
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                raise self._ended(line)
            self._read = (self._read + part.replace(b"\r", b"")).lstrip(b"\n")
            if len(self._read) > MOST_BYTES:
                break  # it will not be an answer
        answer, _, self._read = self._read.partition(b"\n\n")
        return answer.decode(errors="replace")

    def _ended(self, line: str) -> EnvironmentFailed:
        try:
            status: int | None = self._process.wait(1)
        except subprocess.TimeoutExpired:  # it has only closed its pipes
            status = None
        self._errors.seek(0)
        said = one_line(self._errors.read(2000).decode(errors="replace"))
        self.end()
        how = "closed its output" if status is None else f"ended with status {status}"
        return EnvironmentFailed(
            f"data.self_play: {self._command!r} {how} instead of answering {line!r}{said and ': '}{said[:200]}"
        )
