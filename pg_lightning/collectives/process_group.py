"""Collectives over a `torch.distributed` process group: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

from torch import Tensor, distributed

from pg_lightning.collectives.contract import Statistics


class ProcessGroup(Statistics):
    """All-reduce and all-gather over the default process group."""

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return distributed.get_world_size()

    def all_gather(self, x: Tensor) -> Tensor:
        """`[K, *shape]`, in the order of the ranks."""
        gathered = x.new_empty(distributed.get_world_size(), *x.shape)
        distributed.all_gather(list(gathered.unbind()), x.contiguous())
        return gathered

    def all_reduce_(self, x: Tensor) -> None:
        """Sums over all ranks, in place."""
        distributed.all_reduce(x)
