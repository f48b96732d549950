"""The NumPy fast path: actions of a small MLP on the CPU.

A step of the environments is limited by the number of calls, not by arithmetic. NumPy's calls cost a third of torch's,
and noise is drawn for many steps at once. `ActorCritic.acting` uses it if possible; all other policies act in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from pg_lightning.policies.heads import CategoricalHead, DiagonalGaussianHead, Head, SquashedGaussianHead
from pg_lightning.policies.normalizers import ObservationNormalizer
from pg_lightning.policies.obs_groups import Columns, GroupTorso
from pg_lightning.policies.torsos import MLP

FEW_ROWS = 64  # rows up to which NumPy is faster than torch; torch uses one thread for so few rows
NOISE_STEPS = 16  # steps for which noise is drawn at once

Sampler: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

_ACTIVATIONS: dict[Any, Callable[[np.ndarray, np.ndarray], Any]] = {
    torch.tanh: np.tanh,
    torch.relu: lambda x, out: np.maximum(x, 0, out=out),
}


class _Sampling(NamedTuple):
    """A sample as a function of the outputs of the head's layer and of noise that does not depend on them.

    Attributes:
        draw: fills a tensor in the shape of the outputs with noise.
        sample: actions `[N, *action]` from outputs and noise `[N, O]`.
    """

    draw: Callable[[Tensor, torch.Generator], Tensor]
    sample: Callable[[np.ndarray, np.ndarray], np.ndarray]


def numpy_sampler(torso: nn.Module, head: nn.Module, normalizer: ObservationNormalizer | None) -> Sampler | None:
    """A function that samples actions `[N, *action]` for observations `[N, *obs]` without a mask.

    It reads the weights in place: it is valid until they are moved. Changes in place take effect,
    except those of log σ, which is read once.

    Returns:
        None if NumPy does not support the policy: another torso than an `MLP` with tanh or ReLU and no layer norm, a
        head or a last layer of an unknown class, a σ that depends on the state, weights that are not float32
        on the CPU, or autocast.
    """
    mlp = torso.torso if type(torso) is GroupTorso else torso
    if not isinstance(head, Head) or type(mlp) is not MLP or mlp.norms is not None:
        return None
    layer = head.linear
    if type(layer) is not nn.Linear or layer.bias is None or mlp.activation not in _ACTIVATIONS:
        return None
    if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    sampling = _sampling(head)
    if sampling is None:
        return None
    draw, finish = sampling
    features, last, bias = _features(mlp), layer.weight.detach().numpy().T, layer.bias.detach().numpy()
    if type(torso) is GroupTorso:
        features = _of_columns(features, torso.columns)
    noise: Iterator[np.ndarray] = iter(())

    def sample(obs: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal noise
        x = (obs.float() if normalizer is None else normalizer(obs.float())).numpy()
        outputs = features(x.reshape(len(x), -1)) @ last
        outputs += bias
        drawn = next(noise, None)
        if drawn is None or drawn.shape != outputs.shape:
            noise = iter(draw(torch.empty(NOISE_STEPS, *outputs.shape), generator).numpy())
            drawn = next(noise)
        return torch.from_numpy(finish(outputs, drawn))

    return sample


def _of_columns(features: Callable[[np.ndarray], np.ndarray], parts: Columns) -> Callable[[np.ndarray], np.ndarray]:
    """The same function for `[N, D]`, applied to some columns."""
    columns = parts[0] if len(parts) == 1 else np.r_[parts]
    return lambda x: features(x[:, columns])


def _features(torso: MLP) -> Callable[[np.ndarray], np.ndarray]:
    """The function of the torso, for `[N, in_features]` float32 arrays."""
    linears = cast(list[nn.Linear], list(torso.linears))
    layers = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linears]
    activation = _ACTIVATIONS[torso.activation]

    def forward(x: np.ndarray) -> np.ndarray:
        for weight, bias in layers:
            x = x @ weight
            x += bias
            activation(x, x)
        return x

    return forward


def _sampling(head: Head) -> _Sampling | None:
    """The head's sampling in NumPy; None if it, or a subclass, samples in another way."""
    distribution = type(head).distribution
    if type(head).forward is not Head.forward:
        return None
    if distribution is CategoricalHead.distribution:  # the exponential race of `Categorical.sample`
        return _Sampling(
            draw=lambda block, generator: block.exponential_(generator=generator).log_(),
            sample=lambda logits, noise: (logits - noise).argmax(-1),
        )
    if distribution not in (DiagonalGaussianHead.distribution, SquashedGaussianHead.distribution):
        return None
    log_std = cast(DiagonalGaussianHead | SquashedGaussianHead, head).log_std
    if log_std is None:
        return None
    std = log_std.detach().exp().numpy()
    return _Sampling(
        draw=lambda block, generator: block.normal_(generator=generator),
        sample=lambda mean, noise: mean + std * noise,
    )
