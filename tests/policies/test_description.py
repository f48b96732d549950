"""Spaces in plain types, and back."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from pg_lightning.errors import UserError
from pg_lightning.policies.description import described_space, made_space, plain
from pg_lightning.spaces import FlattenedBox

INF = np.inf
SPACES = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(np.array([0.1, -INF], np.float32), np.array([0.3, INF], np.float32)),
    spaces.Box(0.1, 0.7, (2, 2), np.float64),
    spaces.Box(0, 255, (84, 84, 4), np.uint8),
    spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
    spaces.Box(-1.0, 1.0, ()),
    spaces.Box(-1.0, 1.0, (0,)),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -5]]),
    spaces.MultiDiscrete([2, 3], dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.Box(0, 1, (1,)), spaces.MultiBinary(2)])}),
    FlattenedBox(spaces.Dict(z=spaces.Discrete(3), a=spaces.Box(-1, 1, (2,)))),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: " ".join(str(space).split())[:60])
def test_a_space_comes_back(space):
    made = made_space(json.loads(json.dumps(described_space(space))))
    assert type(made) is type(space)
    assert made == space
    assert (made.shape, made.dtype) == (space.shape, space.dtype)
    assert str(made) == str(space)
    if isinstance(space, spaces.Box):
        assert np.array_equal(made.low, space.low)
        assert np.array_equal(made.high, space.high)
    if isinstance(space, FlattenedBox):
        assert made.original == space.original
    if isinstance(space, spaces.Dict):
        assert list(made.spaces) == list(space.spaces)


def test_the_bounds_of_an_image_take_two_numbers():
    assert len(json.dumps(described_space(spaces.Box(0, 255, (84, 84, 4), np.uint8)))) < 100


def test_an_unknown_space_is_named():
    with pytest.raises(UserError, match="space: Text"):
        described_space(spaces.Text(5))
    with pytest.raises(UserError, match="'Text' is not known"):
        made_space({"space": "Text"})


def test_what_is_not_plain_is_named():
    assert plain("x", {"a": (np.float64(0.5), np.int64(1), None), "b": [True]}) == {"a": [0.5, 1, None], "b": [True]}
    assert type(plain("x", np.float64(0.5))) is float
    with pytest.raises(UserError, match=r"x\.a\[1\]: .* is not of a plain type"):
        plain("x", {"a": [1, object()]})
