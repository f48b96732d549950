"""`record` of a run of self-play: games as text instead of videos."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from pg_lightning.commands.game_episodes import games_of_policy
from pg_lightning.data import RolloutDataModule
from pg_lightning.data.environments import games_of
from pg_lightning.errors import UserError, require
from pg_lightning.games import evaluation_arena
from pg_lightning.games.written import WrittenGames
from pg_lightning.learning import PolicyGradientModule
from pg_lightning.rollout import Episode
from pg_lightning.run.files import write_file, write_json


def record_games(
    trainer: Trainer,
    model: PolicyGradientModule,
    data: RolloutDataModule,
    ckpt_path: str,
    episodes: int,
    folder: Path,
) -> list[Path]:
    """Plays games against the opponents of evaluations in turn, from both seats, and writes each as a text.

    `record.json` has the keys of `record`, and for each episode also `opponent`, `seat` (`first` or `second`) and
    `moves`, the actions of both seats.

    Returns:
        The files of the games.

    Raises:
        UserError: if the games cannot be played, or the folder cannot be written.
    """
    require("episodes", episodes, 1)
    assert data.self_play is not None
    games = WrittenGames(games_of(data, 1, data.seed))
    arena = evaluation_arena(games, data.self_play, data.seed)
    assert arena.exam is not None
    lines: list[dict[str, object]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, episode in enumerate(games_of_policy(trainer, model, data, ckpt_path, arena, range(episodes))):
            opponent, _, seat = arena.exam.groups[episode.group].rpartition("/")
            line: dict[str, object] = {
                "file": f"game_{number:04d}.txt",
                "return": episode.episode_return.item(),
                "length": int(episode.episode_length),
                "opponent": opponent,
                "seat": seat,
                "moves": games.moves[0],
            }
            title = f"{data.env_id}: the policy is {seat}, against {opponent}"
            end = f"{result_of(episode)} (return {line['return']:g})"
            write_file(folder / str(line["file"]), "\n\n".join([title, *games.pages[0], end]) + "\n")
            lines.append(line)
            print(f"{end} as {seat} against {opponent}, {len(games.moves[0])} moves: {folder / str(line['file'])}")
        write_report(folder, model, data, lines)
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error}; give another folder") from error
    finally:
        arena.close()
    return [folder / str(line["file"]) for line in lines]


def write_report(
    folder: Path, model: PolicyGradientModule, data: RolloutDataModule, episodes: list[dict[str, object]]
) -> None:
    """Writes `record.json`: what was played, and a dict for each episode."""
    report = {
        "env_id": data.env_id,
        "seed": data.seed,
        "env_steps": model.env_steps,
        "deterministic": data.eval_deterministic,
        "episodes": episodes,
    }
    write_json(folder / "record.json", report)


def result_of(episode: Episode) -> str:
    """Who has won."""
    if episode.capped:
        return "stopped"
    reward = episode.episode_return.item()
    return "draw" if reward == 0 else "the policy wins" if reward > 0 else "the policy loses"
