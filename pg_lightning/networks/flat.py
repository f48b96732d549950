"""Parameters laid end to end: what an optimizer does to thirteen small tensors it does to one vector in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pg_lightning.errors import UserError


class FlatParameters:
    """Makes every parameter a view of one vector, group after group.

    Small networks are bound by the number of calls. Optimizers that work element by element, as Adam and RMSprop do,
    take the same step on a vector as on its parts.

    Args:
        groups: parameters of one dtype on one device; a group without any is left out. Where the module is moved or
            converted afterwards they are views no longer: make this anew.

    Attributes:
        values: `[P]`, all of them.
        grads: `[P]`, as of the last `gather_grads`.
        groups: one parameter for each group, a part of `values` with that of `grads` as its gradient: what an optimizer
            is to be given.

    Raises:
        UserError: if the dtypes differ.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self._parameters = [parameter for group in groups for parameter in group]
        if len(dtypes := {parameter.dtype for parameter in self._parameters}) > 1:
            raise UserError(f"model.torso: all parameters must have one dtype, not {sorted(map(str, dtypes))}")
        self.values = torch.cat([parameter.detach().flatten() for parameter in self._parameters])
        # One more than there are parameters: the weight of the gradients, which travels with them.
        self._weighted = self.values.new_zeros(len(self.values) + 1)
        self.grads = self._weighted[:-1]
        numels = [parameter.numel() for parameter in self._parameters]
        for parameter, part in zip(self._parameters, self.values.split(numels), strict=True):
            parameter.data = part.view_as(parameter)
        parts = zip(self._parameters, self.grads.split(numels), strict=True)
        self._grads = [part.view_as(parameter) for parameter, part in parts]
        sizes = [sum(parameter.numel() for parameter in group) for group in groups if group]
        self.groups = [nn.Parameter(part) for part in self.values.split(sizes)]
        for group, part in zip(self.groups, self.grads.split(sizes), strict=True):
            group.grad = part

    def zero_grad(self) -> None:
        """Forgets the gradients of the parameters, so that the next backward pass need not add to them."""
        for parameter in self._parameters:
            parameter.grad = None

    def gather_grads(self) -> Tensor:
        """Copies the gradients of the parameters to `grads`, 0 for one that has none, and returns it.

        Afterwards they are views of it: what is done to one is done to the other.
        """
        grads = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in self._parameters
        ]
        torch.cat(grads, out=self.grads)
        for parameter, part in zip(self._parameters, self._grads, strict=True):
            parameter.grad = part
        return self.grads

    def average_grads(self, weight: float, add_up: Callable[[Tensor], None]) -> None:
        """Replaces `grads`, which `gather_grads` has collected, by their weighted mean over all ranks.

        Args:
            weight: of this rank, in [0, 1]; with 0 its gradients do not count, though they be NaN. Where all are 0,
                the mean is.
            add_up: replaces a tensor by its sum over all ranks; called once, for the gradients and the weight.
        """
        if weight:
            self.grads *= weight
        else:
            self.grads.zero_()
        self._weighted[-1].fill_(weight)
        add_up(self._weighted)
        self.grads /= self._weighted[-1].clamp(min=torch.finfo(self.grads.dtype).tiny)
