"""The games of an evaluation: against each opponent in turn, from both seats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pg_lightning.games.contract import Matchup, Opponent


class Exam:
    """Knows the opponent and the seat of every episode.

    Args:
        opponents: of the evaluation.

    Attributes:
        groups: names of the groups of episodes, an opponent and a seat; an episode is in the group of its number modulo
            their number.
        episodes: the numbers of the episodes of an evaluation, by their seeds; to be set before it.
        seed: of the moves that opponents sample in it; to be set likewise.
    """

    num_both = 0

    def __init__(self, opponents: Sequence[Opponent]) -> None:
        self._opponents = [*opponents]
        self.groups = [f"{opponent.name}/{seat}" for opponent in opponents for seat in ("first", "second")]
        self.episodes: Mapping[int, int] = {}
        self.seed = 0

    def draw(self, place: int, key: int, number: float) -> Matchup:
        """The opponent and the learner's seat in the episode with the seed `key`."""
        group = self.episodes.get(key, 0) % len(self.groups)
        return Matchup(self._opponents[group // 2], group % 2)

    def count(self, opponent: Opponent, reward: float) -> None:
        """Nothing to count: the results are in the episodes."""

    def close(self) -> None:
        """Closes the opponents."""
        for opponent in self._opponents:
            opponent.close()
