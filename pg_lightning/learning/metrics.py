"""Metrics: episodes of training and of evaluations, and the reduction of values over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pg_lightning.collectives import Collectives
from pg_lightning.errors import UserError
from pg_lightning.policies import RunningMeanVar
from pg_lightning.statistics import weighted_mean

Reduction = Literal["mean", "sum", "max", "even"]
# Reduction over ranks; other metrics are means over rows, and those of `Rollout.measures`, of which every rank has the
# same number of episodes, means over ranks.
REDUCTIONS: dict[str, Reduction] = {
    "env/restarts": "sum",
    "train/bootstrap_is_approximate": "max",
    "train/policy_lag": "max",
}


def means(steps: Sequence[dict[str, Tensor]], at_once: bool) -> dict[str, Tensor]:
    """The mean of each scalar over several steps.

    Args:
        steps: with the same names.
        at_once: in four operations for all names, which may round differently.
    """
    names = [*steps[0]]
    if not at_once:
        return {name: torch.stack([stats[name] for stats in steps]).mean() for name in names}
    values = torch.stack([stats[name] for stats in steps for name in names]).view(len(steps), len(names))
    means_of_all = zip(names, values.mean(0).unbind(), strict=True)
    return {name: mean.to(steps[0][name].dtype) for name, mean in means_of_all}


class Evaluation(NamedTuple):
    """The episodes of an evaluation.

    Attributes:
        returns: `[E]` undiscounted.
        lengths: `[E]` in env steps.
        groups: `[E]` int64, see `Episode.group`.
    """

    returns: Tensor
    lengths: Tensor
    groups: Tensor


class EvaluationEpisodes(Metric):
    """Returns, lengths and groups of the episodes of an evaluation, gathered over ranks."""

    full_state_update = False
    returns: list[Tensor]
    lengths: list[Tensor]
    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Evaluation._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, returns: Tensor, lengths: Tensor, group: int = 0) -> None:
        """Adds `[E]` undiscounted returns and `[E]` lengths in env steps, of episodes of a group."""
        self.returns.append(returns)
        self.lengths.append(lengths)
        self.groups.append(torch.full_like(returns, group, dtype=torch.int64))

    def compute(self) -> Evaluation:
        """All episodes since the last reset."""
        return Evaluation(dim_zero_cat(self.returns), dim_zero_cat(self.lengths), dim_zero_cat(self.groups))

    def collect(self) -> Evaluation:
        """The result of `compute`, `[E]` even for one episode, which torchmetrics would squeeze; then resets."""
        found = self.compute()
        self.reset()
        return Evaluation(*map(torch.atleast_1d, found))


def game_results(evaluation: Evaluation, names: Sequence[str]) -> dict[str, float]:
    """Shares of won, drawn and lost games, of all games and of each group.

    Args:
        evaluation: whose returns are the results of games: positive for a win, 0 for a draw.
        names: of the groups, by their number.

    Returns:
        `win_rate`, `draw_rate`, `loss_rate`, and each of them as `win_rate/name` for each group with a game.
    """
    shares = {}
    for number, name in [(None, ""), *enumerate(f"/{name}" for name in names)]:
        returns = evaluation.returns if number is None else evaluation.returns[evaluation.groups == number]
        if len(returns):
            for result, sign in (("win", 1), ("draw", 0), ("loss", -1)):
                shares[f"{result}_rate{name}"] = (returns.sign() == sign).double().mean().item()
    return shares


class TrainingEpisodes:
    """Returns and lengths of the episodes that have ended on this rank since they were last logged."""

    def __init__(self) -> None:
        self._returns: list[Tensor] = []
        self._lengths: list[Tensor] = []

    def add(self, returns: Tensor, lengths: Tensor) -> None:
        """Adds `[E]` undiscounted returns and `[E]` lengths in env steps."""
        if len(returns):
            self._returns.append(returns)
            self._lengths.append(lengths)

    def all(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """All returns and all lengths, `[E]` each."""
        nothing = torch.zeros(0, device=device)
        returns, lengths = (
            torch.cat([nothing, *(x.to(device) for x in known)]) for known in (self._returns, self._lengths)
        )
        return returns, lengths

    def clear(self) -> None:
        """Clears them."""
        self._returns.clear()
        self._lengths.clear()


def of_all_ranks(
    metrics: dict[str, Tensor], episodes: TrainingEpisodes, rows: Sequence[int], collectives: Collectives
) -> dict[str, Tensor]:
    """The metrics of an update over all ranks, and the means over the episodes that ended on any rank.

    Args:
        metrics: scalars of this rank.
        episodes: of this rank.
        rows: valid rows of each rank, the weights of the means.
        collectives: of the training.
    """
    device = next(iter(metrics.values())).device
    returns, lengths = episodes.all(device)
    if collectives.world_size == 1:
        ended = {"rollout/return_mean": returns.mean(), "rollout/length_mean": lengths.mean()} if len(returns) else {}
        return metrics | ended
    own = torch.stack([x.detach().double() for x in metrics.values()])
    sums = torch.stack([returns.double().sum(), lengths.double().sum(), returns.new_tensor(len(returns)).double()])
    own, sums = collectives.all_gather_together(own, sums)
    means = weighted_mean(own, torch.tensor(rows, dtype=own.dtype, device=device))
    reduced = {"mean": means, "sum": own.sum(0), "max": own.max(0).values, "even": own.mean(0)}
    together = {name: reduced[_reduction_of(name)][i] for i, name in enumerate(metrics)}
    total_return, total_length, count = sums.sum(0)
    if count:
        together |= {"rollout/return_mean": total_return / count, "rollout/length_mean": total_length / count}
    return together


def _reduction_of(name: str) -> Reduction:
    return "even" if name.startswith("rollout/") else REDUCTIONS.get(name, "mean")


def refuse_drift(module: nn.Module, updates: int, collectives: Collectives) -> None:
    """Compares the state that must be equal on all ranks: weights, running statistics and the algorithm's own buffers.

    Args:
        module: the algorithm.
        updates: number of updates so far.
        collectives: of the training.

    Raises:
        UserError: if they differ; on every rank, so that none waits for another.
    """
    if collectives.world_size == 1:
        return
    statistics = [x for part in module.modules() if isinstance(part, RunningMeanVar) for x in part.buffers()]
    state = [*module.parameters(), *module.buffers(recurse=False), *statistics]
    finite = [x.detach().double().nan_to_num() for x in state]
    gathered = collectives.all_gather(torch.stack([f(x) for x in finite for f in (torch.sum, _size)]))
    sums, sizes = gathered[:, 0::2], gathered[:, 1::2]
    # With a tolerance: the last bits may differ between kinds of processors.
    apart = ((sums - sums[0]).abs() > 1e-6 * sizes[0]).any(1).nonzero().flatten().tolist()
    if apart:
        raise UserError(
            f"trainer.devices: weights or statistics of rank {', '.join(map(str, apart))} differ from those of "
            f"rank 0 after {updates} updates; {type(module).__name__}.update must change weights by learner.step and "
            "decide by what all ranks know"
        )


def _size(x: Tensor) -> Tensor:
    return x.abs().sum()
