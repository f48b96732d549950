"""A gradient as one flat vector, or per parameter: backward, average over ranks, norm and scale with one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pg_lightning.collectives import Collectives
from pg_lightning.errors import UserError

LARGE = 10_000_000  # parameters from which on the time of a step is that of its numbers, not of its calls


class Gradient(Protocol):
    """The gradient between the backward pass and the optimizer.

    Attributes:
        groups: parameters for the optimizer by the name of their group; their `.grad` is averaged and scaled.
    """

    groups: dict[str, list[nn.Parameter]]

    def zero(self) -> None:
        """Clears the gradients of the parameters."""
        ...

    def collect(self) -> None:
        """Collects the gradients of the backward passes; 0 for a parameter without one."""
        ...

    def average_(self, share: float, collectives: Collectives) -> None:
        """Replaces the gradient by the mean over all ranks, see `Collectives.average_`."""
        ...

    def norm(self) -> Tensor:
        """The 2-norm of the whole gradient, a scalar."""
        ...

    def scale_(self, factor: Tensor) -> None:
        """Multiplies the whole gradient by a scalar."""
        ...


class FlatGradient:
    """Parameters and gradients as views of one vector each, group after group.

    Small networks are limited by the number of calls. Elementwise optimizers, such as Adam and RMSprop, take the same
    step on a vector as on its parts.

    Args:
        groups: parameters of one dtype on one device by the name of their group; an empty group is left out. If the
            module is moved or converted, create a new object, because its parameters have changed.

    Attributes:
        parameters: in the order of the vector.
        values: `[P]`, all parameters.
        grads: `[P]`, after the last `collect`.
        groups: one parameter per group, a part of `values` with that part of `grads` as its gradient.

    Raises:
        UserError: if the dtypes differ.
    """

    def __init__(self, groups: Mapping[str, list[nn.Parameter]]) -> None:
        self.parameters = [parameter for group in groups.values() for parameter in group]
        if len(dtypes := {parameter.dtype for parameter in self.parameters}) > 1:
            raise UserError(f"model.torso: all parameters must have one dtype, not {sorted(map(str, dtypes))}")
        self.values = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        # The last entry is the weight of this rank, which is sent with its gradient.
        self._message = self.values.new_zeros(len(self.values) + 1)
        self.grads = self._message[:-1]
        self._vector: Tensor | None = None
        self._shapes = [parameter.shape for parameter in self.parameters]
        for parameter, part in zip(self.parameters, self.unflatten(self.values), strict=True):
            parameter.data = part
        self._grads = self.unflatten(self.grads)
        sizes = {name: sum(parameter.numel() for parameter in group) for name, group in groups.items() if group}
        self.groups = {
            name: [nn.Parameter(part)] for name, part in zip(sizes, self.values.split([*sizes.values()]), strict=True)
        }
        for (vector,), part in zip(self.groups.values(), self.grads.split([*sizes.values()]), strict=True):
            vector.grad = part

    def zero(self) -> None:
        """Clears the gradients of the parameters, so that the next backward pass does not add to them."""
        self._vector = None
        for parameter in self.parameters:
            parameter.grad = None

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """The parts of `[P]`, in the shape of each parameter, as views."""
        numels = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(vector.split(numels), self._shapes, strict=True)]

    def add(self, vector: Tensor) -> None:
        """Adds a gradient `[P]` that does not come from a backward pass."""
        self._vector = vector if self._vector is None else self._vector + vector

    def collect(self) -> None:
        """Copies the gradients to `grads`; afterwards they are views of it."""
        if self._vector is not None:
            self.grads.copy_(self._vector)
        else:
            grads = [
                (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
                for parameter in self.parameters
            ]
            torch.cat(grads, out=self.grads)
        for parameter, part in zip(self.parameters, self._grads, strict=True):
            parameter.grad = part

    def average_(self, share: float, collectives: Collectives) -> None:
        """Sends the whole vector and the weight in one message."""
        collectives.average_(self._message, share)

    def norm(self) -> Tensor:
        """The norm of `grads`."""
        return torch.linalg.vector_norm(self.grads)

    def scale_(self, factor: Tensor) -> None:
        """Multiplies `grads`."""
        self.grads *= factor


class PerParameterGradient:
    """Separate parameters and gradients, for optimizers that are not elementwise, and for mixed dtypes.

    Args:
        groups: parameters by the name of their group; an empty group is left out.
    """

    def __init__(self, groups: Mapping[str, list[nn.Parameter]]) -> None:
        self.groups = {name: list(group) for name, group in groups.items() if group}
        self._parameters = [parameter for group in self.groups.values() for parameter in group]

    def zero(self) -> None:
        """Clears the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def collect(self) -> None:
        """Adds zeros for a parameter that the loss does not depend on, so that all ranks have the same gradients."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def average_(self, share: float, collectives: Collectives) -> None:
        """Sends one message in float32 or better, and copies it back to the gradients."""
        grads = self._grads()
        dtype = torch.promote_types(torch.float32, grads[0].dtype)
        message = torch.cat([*(grad.flatten().to(dtype) for grad in grads), grads[0].new_zeros(1, dtype=dtype)])
        collectives.average_(message, share)
        for grad, part in zip(grads, message[:-1].split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def norm(self) -> Tensor:
        """The norm of all gradients together."""
        return torch.nn.utils.get_total_norm(self._grads())

    def scale_(self, factor: Tensor) -> None:
        """Multiplies every gradient."""
        for grad in self._grads():
            grad *= factor

    def _grads(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]


def make_gradient(groups: Mapping[str, list[nn.Parameter]], is_elementwise: bool, needs_vectors: bool) -> Gradient:
    """Flat for small networks; per parameter for large ones, whose flat vector would be a second gradient in memory.

    Args:
        groups: parameters by the name of their group.
        is_elementwise: whether every optimizer is; others need separate parameters.
        needs_vectors: whether a gradient of any size is flat, as for a compiled step.
    """
    is_small = sum(parameter.numel() for group in groups.values() for parameter in group) < LARGE
    return FlatGradient(groups) if is_elementwise and (needs_vectors or is_small) else PerParameterGradient(groups)


def flat_gradient(value: Tensor, parameters: Sequence[nn.Parameter], create_graph: bool = False) -> Tensor:
    """The gradient of a scalar with respect to parameters, as `[P]`; 0 for a parameter that it does not depend on.

    The graph is kept for further gradients; with `create_graph` this gradient can be differentiated too.
    """
    gradients = torch.autograd.grad(
        value, list(parameters), retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return torch.cat([x.flatten() for x in gradients])


@torch.no_grad()
def set_parameters(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Copies `[P]` into the parameters in place."""
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))
