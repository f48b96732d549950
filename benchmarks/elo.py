"""Elo of the checkpoints of a run of self-play, and of named opponents: every pair plays games from both seats.

    python benchmarks/elo.py runs/ppo_tictactoe/version_0 --opponents random pg_lightning.games.perfect.TicTacToeMinimax
    python benchmarks/elo.py RUN --games 40 --opponents random '{"class_path": "pg_lightning.games.gtp.GTPOpponent",
        "init_args": {"command": "gnugo --mode gtp --level 1 --chinese-rules --capture-all-dead"}}'

Writes `elo.md`, `elo.json`, `elo.png` and `elo.svg` into the folder of the run, or `--output`. The first opponent has
the rating 0. The policies sample their moves, without which two of them would play the same game again and again.
Keep the checkpoints of a run with Lightning's callback, which then saves after every evaluation:

    --trainer.callbacks ModelCheckpoint --trainer.callbacks.save_top_k -1 --trainer.callbacks.filename "{step}"
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pg_lightning.analysis.elo import Ratings, ratings
from pg_lightning.analysis.plots import COLORS, literal, new_figure, save
from pg_lightning.envs import env_seed
from pg_lightning.errors import UserError, require
from pg_lightning.games import Games, Opponent, make_games
from pg_lightning.games.make import make_opponents
from pg_lightning.games.match import play_match
from pg_lightning.games.opponents import PolicyOpponent
from pg_lightning.policies.trained import load
from pg_lightning.run.files import write_file, write_json
from pg_lightning.run.reading import read_yaml


def settings_of(run: Path) -> dict[str, Any]:
    """The section `data` of the run's config."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"no config.yaml in {run}; give the folder of a run, such as runs/ppo_tictactoe/version_0")
    data: dict[str, Any] = read_yaml(run / "config.yaml", "config")["data"]
    if data.get("self_play") is None:
        raise UserError(f"{run} is no run of self-play")
    return data


def checkpoints(run: Path, most: int) -> dict[int, Path]:
    """The checkpoints of a run by their env steps, at most so many, evenly spread."""
    files = [path for path in (run / "checkpoints").glob("*.ckpt") if not path.name.startswith("best")]
    files = [path for path in files if ".previous" not in path.name]
    by_steps = dict(sorted((load(path).env_steps, path) for path in files))
    steps = [*by_steps]
    chosen = {steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(most, len(steps)))}
    return {step: path for step, path in by_steps.items() if step in chosen}


def play_all(games: Games, players: list[Opponent], count: int, seed: int) -> np.ndarray:
    """`[P, P, 3]` results of all pairs, `count` games each, half from each seat."""
    P = len(players)
    results = np.zeros((P, P, 3), np.int64)
    for number, (i, j) in enumerate(combinations(range(P), 2)):
        for k, (first, second) in enumerate(((i, j), (j, i))):
            results[first, second] = play_match(
                games, players[first], players[second], count // 2, env_seed(seed, number, k)
            )
        won, drawn, lost = results[i, j] + results[j, i][::-1]
        print(f"{players[i].name} against {players[j].name}: {won} won, {drawn} drawn, {lost} lost", flush=True)
    return results


def table(players: list[Opponent], found: Ratings, results: np.ndarray) -> str:
    """The players from the best to the worst."""
    won, drawn, lost = (results.sum(1) + results.sum(0)[:, ::-1]).T
    lines = ["| player | Elo | 95 % interval | won | drawn | lost |", "|---|---:|---:|---:|---:|---:|"]
    for p in np.argsort(-found.elo, kind="stable"):
        interval = f"{found.low[p]:.0f} to {found.high[p]:.0f}" if found.low[p] != found.high[p] else "–"
        lines.append(f"| {players[p].name} | {found.elo[p]:.0f} | {interval} | {won[p]} | {drawn[p]} | {lost[p]} |")
    return "\n".join(lines) + "\n"


def draw(title: str, steps: list[int], names: list[str], found: Ratings, output: Path) -> list[Path]:
    """Elo of the checkpoints over env steps, and a line for each named opponent."""
    figure, axes = new_figure(title, "env steps", f"Elo ({names[0]}: 0)")
    K = len(names)
    axes.plot(steps, found.elo[K:], color=COLORS[0], linewidth=2, marker="o", markersize=4)
    axes.fill_between(steps, found.low[K:], found.high[K:], color=COLORS[0], alpha=0.18, linewidth=0)
    for k, name in enumerate(names):
        color = COLORS[1 + k % (len(COLORS) - 1)]
        axes.axhline(found.elo[k], color=color, linestyle="--", linewidth=1)
        axes.axhspan(found.low[k], found.high[k], color=color, alpha=0.08, linewidth=0)
        axes.annotate(
            literal(name), (1, found.elo[k]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=color
        )
    return save(figure, output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run of self-play")
    parser.add_argument("--opponents", nargs="+", default=["random"], help="as in data.self_play.eval_opponents")
    parser.add_argument("--games", type=int, default=100, help="of each pair, half of them from each seat")
    parser.add_argument("--checkpoints", type=int, default=12, help="the most that take part")
    parser.add_argument("--num_games", type=int, default=50, help="played in parallel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the table and the figure; by default that of the run")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    require("--games", arguments.games, 2)
    data = settings_of(arguments.run)
    games = make_games(
        data["env_id"], arguments.num_games, data.get("env_kwargs"), data.get("backend", "sync"), arguments.seed
    )
    specs = [json.loads(spec) if spec.startswith("{") else spec for spec in arguments.opponents]
    named = make_opponents("--opponents", specs, games)
    found = checkpoints(arguments.run, arguments.checkpoints)
    if len(found) < 2:
        raise UserError(f"{arguments.run} has {len(found)} checkpoint(s); see --help for how to keep more")
    players: list[Opponent] = [
        *named,
        *(PolicyOpponent(f"{step:,} steps", load(path).policy, games.num_games) for step, path in found.items()),
    ]
    try:
        results = play_all(games, players, arguments.games, arguments.seed)
    finally:
        for player in players:
            player.close()
        games.close()
    elo = ratings(results)
    output = arguments.output or arguments.run
    output.mkdir(parents=True, exist_ok=True)
    text = table(players, elo, results)
    print(f"\n{text}")
    write_file(output / "elo.md", text)
    names = [player.name for player in players]
    columns = {name: values.round(1).tolist() for name, values in elo._asdict().items()}
    steps = [None] * len(named) + [*found]
    write_json(
        output / "elo.json",
        {"env_id": data["env_id"], "players": names, "env_steps": steps, **columns, "results": results.tolist()},
    )
    for file in draw(data["env_id"], [*found], names[: len(named)], elo, output / "elo.png"):
        print(file)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
