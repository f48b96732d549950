"""A policy as one graph of tensor operations, and its export to torch.export and ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
)
from pg_lightning.policies.obs_groups import GroupTorso

PolicyFormat = Literal["onnx", "torch"]
TOLERANCE = 1e-5  # absolute, and relative for numbers above 1, because of the precision of float32

Tensors = dict[str, Tensor]


class Policy(nn.Module):
    """A policy as a function of `[B, *obs]` observations for one step, in one graph.

    If the actor sees only some groups of the observation, `obs` contains only these, `[B, C]`.

    Args:
        network: is copied, without the critic and without gradients.
    """

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.actor = deepcopy(network).requires_grad_(False)
        self.actor.critic_torso = self.actor.critic_memory = None
        self.actor.critic_head = self.actor.value_normalizer = None
        torso = self.actor.actor_torso
        if isinstance(torso, GroupTorso):
            self.actor.actor_torso = torso.torso
            if self.actor.normalizer is not None:
                self.actor.normalizer = self.actor.normalizer.of_columns(torso.columns)

    def forward(self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None) -> Tensors:
        """The mode as the environment expects it, the parameters for sampling, and the next recurrent state."""
        return outputs(self.actor, obs, action_mask, state)


def seen(network: ActorCritic, obs: Tensor) -> Tensor:
    """The actor's columns of `[B, *obs]`: the input of its graph."""
    return network.actor_torso.select(obs) if isinstance(network.actor_torso, GroupTorso) else obs


def outputs(network: ActorCritic, obs: Tensor, action_mask: Tensor | None, state: Tensor | None) -> Tensors:
    """`action` `[B, *action]`, the parameters of π by name, and `next_state` `[B, S]` for a policy with memory."""
    pi, state = network.act(obs, action_mask, state)
    found = {"action": network.actor_head.env_actions(pi.mode)}
    found |= {name: parameter for name, (parameter, _) in parameters(pi).items()}
    if network.actor_memory is not None and state is not None:
        found["next_state"] = state[:, : network.actor_memory.state_size]
    return found


def parameters(pi: Distribution) -> dict[str, tuple[Tensor, str]]:
    """The parameters needed to sample from a distribution: tensors `[B, ...]`, and their meanings. Empty for an unknown
    distribution.
    """
    match pi:
        case Categorical():
            return {
                "logits": (
                    pi.logits,
                    "softmax gives the probability of each choice, starting with the first action of the space",
                )
            }
        case MultiCategorical():
            meaning = (
                "softmax over the last dimension gives the probabilities of each choice; the lowest floats are padding"
            )
            return {"logits": (pi.choices.logits, meaning)}
        case Bernoulli():
            return {"logits": (pi.logits, "the sigmoid gives the probability of 1 for each bit")}
        case DiagonalGaussian():
            meaning = "{} of a normal distribution; clip a sample of it to the bounds of the space"
            return _of_normal(pi, meaning)
        case SquashedGaussian():
            meaning = "{} of a normal distribution of u; the action is low + (high - low) (tanh u + 1) / 2"
            return _of_normal(pi.normal, meaning)
        case Beta():
            meaning = "{} of a beta distribution of x; the action is low + (high - low) x"
            return {name: (getattr(pi, name), meaning.format(name)) for name in ("alpha", "beta")}
    return {}


def _of_normal(normal: DiagonalGaussian, meaning: str) -> dict[str, tuple[Tensor, str]]:
    mean, log_std = normal.mean, normal.log_std.expand_as(normal.mean)
    return {
        "mean": (mean, meaning.format("mean")),
        "log_std": (log_std, meaning.format("logarithm of the standard deviation")),
    }


def to_torch(policy: Policy, inputs: Tensors) -> bytes:
    """A program for `torch.export.load`."""
    file = io.BytesIO()
    torch.export.save(_program(policy, inputs), file)
    return file.getvalue()


def to_onnx(policy: Policy, inputs: Tensors, names: list[str]) -> bytes:
    """An ONNX model whose outputs have these names."""
    program = _program(policy, inputs)
    logger = logging.getLogger("torch.onnx")
    level, logger.level = logger.level, logging.ERROR  # it warns about torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about several axes with one name
            model = torch.onnx.export(
                program,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes={name: {0: "batch"} for name in inputs},
                verbose=False,
            )
    except Exception as error:
        raise _not_expressed("ONNX", error) from error
    finally:
        logger.level = level
    assert model is not None
    return model.model_proto.SerializeToString()


def _program(policy: Policy, inputs: Tensors) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")  # the same for all inputs
    dynamic = {name: {0: batch} for name in inputs}
    try:
        # With more than one row: a size of 1 would be treated as constant.
        return torch.export.export(policy, (), {name: x[:2] for name, x in inputs.items()}, dynamic_shapes=dynamic)
    except Exception as error:
        raise _not_expressed("torch.export", error) from error


def _not_expressed(form: str, error: Exception) -> UserError:
    cause = error.__cause__ or error  # torch.onnx wraps it in advice
    reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    return UserError(f"model: {form} cannot export this policy; change its torso or head: {reason}")


def loaded(content: bytes, format: PolicyFormat) -> Callable[[Tensors], Tensors]:
    """The policy in a file, as a function of its inputs."""
    if format == "torch":
        module = torch.export.load(io.BytesIO(content)).module()
        return lambda inputs: module(**inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        values = session.run(names, {name: x.numpy() for name, x in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def largest_difference(policy: Callable[[Tensors], Tensors], inputs: Tensors, expected: Tensors) -> float:
    """The largest absolute difference of any output, for all rows at once and for the first row alone.

    Raises:
        UserError: if a difference exceeds the tolerance.
    """
    largest = 0.0
    for rows in (slice(None), slice(1)):
        with torch.no_grad():
            found = policy({name: x[rows] for name, x in inputs.items()})
        for name, value in expected.items():
            wanted, got = value[rows].double(), found[name].double()
            if found[name].dtype != value.dtype or got.shape != wanted.shape:
                raise UserError(
                    f"model: {name} of the export is {kind_of(found[name])}, unlike the checkpoint's {kind_of(value)}"
                )
            difference = (got - wanted).abs()
            within = difference <= TOLERANCE * wanted.abs().clamp(min=1.0)
            if value.is_floating_point():
                largest = max(largest, difference.max().item())
            else:
                within = difference == 0
            if not within.all():
                apart = int((~within).flatten(1).any(1).sum()) if within.dim() > 1 else int((~within).sum())
                raise UserError(
                    f"model: {name} of the export differs from that of the checkpoint in {apart} of {len(within)} "
                    f"observations, by up to {difference.max().item():.1e}; nothing is written"
                )
    return largest


def kind_of(x: Tensor) -> str:
    """Shape and dtype in words."""
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
