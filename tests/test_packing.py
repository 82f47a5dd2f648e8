from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfqa_data.errors import CodecError
from cfqa_data.format.packing import pack, plane_shape, unpack

shapes = st.tuples(*[st.integers(1, 6)] * 4)


@given(shapes)
def test_unpack_undoes_pack(shape: tuple[int, int, int, int]) -> None:
    codes = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    plane = pack(codes)
    assert plane.shape == plane_shape(shape)
    assert plane.flags.c_contiguous
    np.testing.assert_array_equal(unpack(plane, shape), codes)


def test_views_stack_downwards_and_layers_lie_side_by_side() -> None:
    codes = np.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5)
    plane = pack(codes)
    for n, c, t, d in np.ndindex(codes.shape):
        assert plane[n * 3 + t, c * 5 + d] == codes[n, c, t, d]


def test_the_paper_s_plane_sizes() -> None:
    assert plane_shape((1, 1, 257, 1536)) == (257, 1536)
    assert plane_shape((2, 1, 1370, 1536)) == (2740, 1536)
    assert plane_shape((2, 4, 1611, 1536)) == (3222, 6144)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(CodecError, match="must be"):
        pack(np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(CodecError, match="does not hold"):
        unpack(np.zeros((6, 19), np.uint8), (2, 4, 3, 5))
