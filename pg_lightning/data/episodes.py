"""Current episodes: their returns and lengths across rollouts, and which environments still play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pg_lightning.envs.contract import VectorStep


class HostEpisodes:
    """Episodes of environments whose steps are NumPy arrays.

    Attributes:
        returns: `[N]` float64 sum of rewards of the current episode.
        lengths: `[N]` int64 env steps of the current episode.
        playing: `[N]` bool; False where the rollout waits for other environments to end their episodes.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._finished: list[tuple[float, int]] = []
        self.clear()

    def clear(self) -> None:
        """Clears all episodes after a reset of all environments."""
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self.playing = np.ones(self.num_envs, bool)

    def advance(
        self, step: VectorStep[np.ndarray], rewards: np.ndarray, valid: np.ndarray, is_last: bool
    ) -> np.ndarray | None:
        """Counts a step.

        Args:
            step: the step of the environments.
            rewards: `[N]` as in the rollout, 0 where not valid.
            valid: `[N]` bool, as in the rollout.
            is_last: whether environments that end an episode in this step wait for the others.

        Returns:
            `[K]` int, the environments that ended an episode; None if none did.
        """
        if step.restarted is not None:
            self.returns[step.restarted], self.lengths[step.restarted] = 0.0, 0
            if is_last:
                self.playing &= ~step.restarted
        self.returns += rewards
        self.lengths += valid
        if not np.count_nonzero(step.done):
            return None
        ended = np.flatnonzero(step.done & self.playing)
        self._finished += zip(self.returns[ended], self.lengths[ended], strict=True)
        self.returns[step.done], self.lengths[step.done] = 0.0, 0
        if is_last:
            self.playing &= ~step.done
        return ended

    def take_finished(self) -> tuple[Tensor, Tensor]:
        """Return and length `[E]` of the episodes that ended in this rollout, in the order of its rows."""
        returns, lengths = zip(*self._finished, strict=True) if self._finished else ((), ())
        self._finished = []
        return torch.tensor(returns, dtype=torch.float32), torch.tensor(lengths, dtype=torch.float32)

    def any_playing(self) -> bool:
        """Whether the rollout must continue."""
        return bool(self.playing.any())

    def longest(self) -> int:
        """Env steps of the longest current episode."""
        return int(self.lengths.max())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns and lengths of the current episodes."""
        return {
            "returns": torch.from_numpy(self.returns.copy()),
            "lengths": torch.from_numpy(self.lengths.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.returns, self.lengths = state["returns"].numpy().copy(), state["lengths"].numpy().copy()


class GameEpisodes(HostEpisodes):
    """Episodes of games that the policy plays on one seat or, the first `num_both`, on both: one episode of each seat.

    A game that was played on both seats counts twice.

    Attributes:
        seat: `[G]` the seat whose turn it is, 0 where the policy plays one.
        lengths: `[G]` int64, previous turns of this seat.
    """

    def __init__(self, num_games: int, num_both: int) -> None:
        self.num_both = num_both
        self._all = np.arange(num_games)
        self._is_both = self._all < num_both
        self.seat = np.zeros(num_games, np.int64)
        super().__init__(num_games)

    def clear(self) -> None:
        """Clears all episodes after a reset of all games."""
        super().clear()
        self._returns, self._lengths = np.zeros((2, self.num_envs)), np.zeros((2, self.num_envs), np.int64)

    def early_rewards(self) -> np.ndarray:
        """`[G]` the rewards that the seat whose turn it is has had before its first turn in the game, if this is it."""
        return np.where(self.lengths == 0, self._returns[self.seat, self._all], 0.0)

    def look(self, seats: np.ndarray) -> None:
        """Notes whose turn it is, `[G]`; a learner with one seat is counted as the first, whichever its seat is."""
        self.seat = np.where(self._is_both, seats, 0)
        self.lengths = self._lengths[self.seat, self._all]

    def advance(
        self, step: VectorStep[np.ndarray], rewards: np.ndarray, valid: np.ndarray, is_last: bool
    ) -> np.ndarray | None:
        """Counts a turn: see `HostEpisodes`."""
        assert step.seat_rewards is not None
        own = np.where(self._is_both, step.seat_rewards.T, np.stack([step.rewards, np.zeros(self.num_envs)]))
        self._returns += own * self.playing
        self._lengths[self.seat, self._all] += valid
        if not np.count_nonzero(step.done):
            return None
        ended = np.flatnonzero(step.done & self.playing)
        for n in ended:
            for seat in range(1 + self._is_both[n]):
                self._finished.append((self._returns[seat, n], self._lengths[seat, n]))
        self._returns[:, step.done], self._lengths[:, step.done] = 0.0, 0
        if is_last:
            self.playing &= ~step.done
        return ended

    def longest(self) -> int:
        """Turns of the seat that has had most in its current game."""
        return int(self._lengths.max())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns and lengths `[G + num_both]` of the current episodes."""
        returns, lengths = (np.concatenate([x[0], x[1, : self.num_both]]) for x in (self._returns, self._lengths))
        return {"returns": torch.from_numpy(returns), "lengths": torch.from_numpy(lengths)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of `state_dict`."""
        for saved, own in ((state["returns"], self._returns), (state["lengths"], self._lengths)):
            own[0], own[1, : self.num_both] = saved[: self.num_envs], saved[self.num_envs :]
        self.look(self.seat)


class DeviceEpisodes(NamedTuple):
    """Episodes of environments whose steps are tensors on a device: only `any_playing` and `longest` synchronise with
    the device.

    Attributes:
        returns: as in `HostEpisodes`, a tensor, as are `lengths` and `playing`.
    """

    returns: Tensor
    lengths: Tensor
    playing: Tensor

    @classmethod
    def fresh(cls, num_envs: int, device: torch.device) -> DeviceEpisodes:
        """The episodes after a reset of all environments."""
        return cls(
            torch.zeros(num_envs, dtype=torch.float64, device=device),
            torch.zeros(num_envs, dtype=torch.int64, device=device),
            torch.ones(num_envs, dtype=torch.bool, device=device),
        )

    def advanced(
        self, step: VectorStep[Tensor], rewards: Tensor, valid: Tensor, is_last: bool
    ) -> tuple[DeviceEpisodes, DeviceEpisodes]:
        """Counts a step, see `HostEpisodes.advance`: the episodes with this step, and those that go on after it."""
        returns, lengths, over = self.returns, self.lengths, step.done
        if step.restarted is not None:
            returns, lengths = returns.masked_fill(step.restarted, 0.0), lengths.masked_fill(step.restarted, 0)
            over = over | step.restarted
        counted = DeviceEpisodes(returns + rewards, lengths + valid, self.playing)
        playing = self.playing & ~over if is_last else self.playing
        returns, lengths = counted.returns.masked_fill(step.done, 0.0), counted.lengths.masked_fill(step.done, 0)
        return counted, DeviceEpisodes(returns, lengths, playing)

    def any_playing(self) -> bool:
        """Whether the rollout must continue; synchronises with the device."""
        return bool(self.playing.any())

    def longest(self) -> int:
        """Env steps of the longest current episode; synchronises with the device."""
        return int(self.lengths.max())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns and lengths of the current episodes."""
        return {"returns": self.returns.cpu().clone(), "lengths": self.lengths.cpu().clone()}

    @classmethod
    def loaded(cls, state: dict[str, Any], device: torch.device) -> DeviceEpisodes:
        """Restores the result of `state_dict`."""
        returns, lengths = (state[name].to(device).clone() for name in ("returns", "lengths"))
        return cls(returns, lengths, torch.ones_like(lengths, dtype=torch.bool))
