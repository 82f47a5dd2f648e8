"""Pack a feature's codes into the single luma plane that video codecs take, and unpack them."""

from __future__ import annotations

import numpy as np

from cfqa_data.errors import CodecError

__all__ = ["pack", "plane_shape", "unpack"]


def plane_shape(shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return the (rows, columns) of the plane of a feature of shape (N, C, T, D)."""
    n, c, t, d = shape
    return n * t, c * d


def pack(codes: np.ndarray) -> np.ndarray:
    """Return codes (N, C, T, D) as a contiguous plane (N*T, C*D) of the same dtype.

    Views are stacked vertically and layers horizontally, so a row holds one token of one view.

    Raises:
        CodecError: If the codes do not have four axes.
    """
    if codes.ndim != 4:
        raise CodecError(f"codes to pack must be (N, C, T, D), got shape {codes.shape}")
    return np.ascontiguousarray(codes.transpose(0, 2, 1, 3)).reshape(plane_shape(codes.shape))


def unpack(plane: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return a plane (N*T, C*D) as contiguous codes of ``shape`` (N, C, T, D).

    Raises:
        CodecError: If the plane does not have the shape of such a feature.
    """
    if plane.shape != plane_shape(shape):
        raise CodecError(f"a plane of shape {plane.shape} does not hold a feature {tuple(shape)}")
    n, c, t, d = shape
    return np.ascontiguousarray(plane.reshape(n, t, c, d).transpose(0, 2, 1, 3))
