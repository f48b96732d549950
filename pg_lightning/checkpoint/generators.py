"""Random states in a checkpoint. Some generators read past their end if the position in their state is too large."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pg_lightning.checkpoint.values import Damage, Unchecked, kind_of, require_mapping

WORDS = 624  # of a Mersenne twister, 32 bits each
CUDA_BYTES = 16
# Positions in the buffers of NumPy's generators, which it does not test, and their largest values.
POSITIONS = {"MT19937": ("pos", WORDS), "Philox": ("buffer_pos", 4)}


def check_generators(field: str, state: Unchecked) -> None:
    """Refuses the states of a process that its generators would not accept: torch, NumPy, Python, GPU.

    Raises:
        Damage: naming the generator.
    """
    require_mapping(field, state)
    if not isinstance(state.get("seed"), int):
        raise Damage(f"{field}.seed", f"is {kind_of(state.get('seed'))}, not an integer")
    check_torch_generator(f"{field}.torch", state.get("torch"))
    if state.get("cuda") is not None:
        check_torch_generator(f"{field}.cuda", state["cuda"], "cuda")
    _check_numpy(f"{field}.numpy", state.get("numpy"))
    _check_python(f"{field}.python", state.get("python"))


def check_torch_generator(field: str, state: Unchecked, device: str = "cpu") -> None:
    """Refuses a state that a generator of torch would not accept.

    Raises:
        Damage: naming the field.
    """
    length = len(torch.get_rng_state()) if device == "cpu" else CUDA_BYTES
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or [*state.shape] != [length]:
        raise Damage(field, f"is {kind_of(state)}, not {length} bytes")
    if device == "cpu" and not state.is_meta:
        try:
            torch.Generator().set_state(state.contiguous())
        except RuntimeError as error:
            raise Damage(field, f"is not a state of torch's generator: {error}") from error


def check_bit_generator(field: str, state: Mapping[str, Unchecked]) -> None:
    """Refuses the state of a NumPy `BitGenerator` whose position is outside its buffer.

    Raises:
        Damage: naming the field.
    """
    name, limit = POSITIONS.get(str(state.get("bit_generator")), ("", 0))
    for part in (state, state.get("state")):
        position = part.get(name, 0) if isinstance(part, Mapping) else 0
        if not isinstance(position, int) or not 0 <= position <= limit:
            raise Damage(f"{field}.{name}", f"is {kind_of(position)}, not a position from 0 to {limit}")


def _check_numpy(field: str, state: Unchecked) -> None:
    match state:
        case ("MT19937", Tensor() as keys, int() as position, int() as has_gauss, float() as gauss):
            is_whole = keys.dtype == torch.uint32 and [*keys.shape] == [WORDS]
            if is_whole and 0 <= position <= WORDS and has_gauss in (0, 1) and gauss == gauss:
                if not keys.is_meta:
                    np.random.RandomState().set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
                return
    raise Damage(field, "is not a state of NumPy's generator")


def _check_python(field: str, state: Unchecked) -> None:
    try:
        random.Random(0).setstate(state)
    except (TypeError, ValueError, OverflowError) as error:
        raise Damage(field, f"is not a state of Python's generator: {error}") from error
