"""The options of self-play, as the datamodule and the command line take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import UserError, require

Sampling = Literal["uniform", "recent", "hard"]


@dataclass
class SelfPlay:
    """How a policy learns a two-player zero-sum game.

    Attributes:
        both_seats: share of the games in which the learner plays both seats, and learns from both. In the others it has
            one seat, drawn anew for each game, against an opponent that does not learn.
        opponents: of these other games, beside the snapshots: see `eval_opponents`.
        snapshot_every_steps: env steps after which a copy of the policy joins the opponents; null for no snapshots.
        snapshot_score: a copy joins only if the mean score since the last one, a win counting 1 and a draw 1/2, is at
            least this.
        max_snapshots: number of copies that are kept, the latest ones.
        sampling: how an opponent is drawn: `uniform`; `recent`, a snapshot with a weight that halves with each younger
            one; `hard`, with the weight (1 − score)² against it (as in prioritised fictitious self-play). Until there
            is an opponent, moves are drawn at random.
        eval_opponents: of evaluations, each from both seats in turn: `random`, a checkpoint or the folder of a run, or
            the class path of an `Opponent`.
    """

    both_seats: float = 1.0
    opponents: list[ClassPath] = field(default_factory=list)
    snapshot_every_steps: int | None = None
    snapshot_score: float = 0.0
    max_snapshots: int = 20
    sampling: Sampling = "uniform"
    # Not in the text of the settings that must be equal in a resumed run.
    eval_opponents: list[ClassPath] = field(default_factory=lambda: ["random"], repr=False)

    def __post_init__(self) -> None:
        require("data.self_play.both_seats", self.both_seats, 0, 1)
        require("data.self_play.max_snapshots", self.max_snapshots, 1)
        require("data.self_play.snapshot_score", self.snapshot_score, 0, 1)
        if self.snapshot_every_steps is not None:
            require("data.self_play.snapshot_every_steps", self.snapshot_every_steps, 1)
        if not self.eval_opponents:
            raise UserError("data.self_play.eval_opponents: name at least one opponent, for example random")

    def require_use(self, num_games: int) -> None:
        """Refuses opponents for which no game is left.

        Raises:
            UserError: naming them.
        """
        if self.num_both(num_games) < num_games:
            return
        for name in ("opponents", "snapshot_every_steps"):
            if getattr(self, name):
                raise UserError(
                    f"data.self_play.{name}: with both_seats {self.both_seats:g} the policy plays both seats of all "
                    f"{num_games} games (data.num_envs), and no opponent is ever met; lower both_seats"
                )

    def num_both(self, num_games: int) -> int:
        """The number of games in which the learner plays both seats."""
        return round(self.both_seats * num_games)
