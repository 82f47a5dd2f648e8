"""Preprocess 8-bit RGB into views exactly as the published evaluation does.

Classification follows torchvision 0.x on Pillow images. Segmentation and depth follow mmcv 1.5,
which resizes and normalises with OpenCV; both operations are implemented here in NumPy and are
bit-exact (compared with OpenCV 4.14 and 5.0 on x86-64, see docs/sources.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cfqa_data.builders.sources.geometry import SegGeometry
from cfqa_data.builders.sources.images import check_pixels
from cfqa_data.pixels import normalise

__all__ = [
    "PATCH",
    "classification_view",
    "depth_views",
    "normalise_255",
    "pad_to_patches",
    "resize_linear",
    "segmentation_views",
    "two_windows",
]

PATCH = 14
_SHORT_SIDE, _CROP = 256, 224

# As in mmcv: float32 statistics of RGB in 0..255, and the reciprocal in float64.
_MEAN = np.array((123.675, 116.28, 103.53), np.float32)
_STD = np.array((58.395, 57.12, 57.375), np.float32)
_COEFFICIENT = np.float32(2048)  # OpenCV's bilinear weights have 11 bits.


def classification_view(image: Image.Image, path: Path) -> np.ndarray:
    """Scale the short side to 256, bilinear with antialias, and take the centre 224 x 224 crop.

    The long side is int(256 * long / short); the crop starts at half the margin, rounded half to
    even.

    Args:
        image: RGB image.
        path: Path of its file, for messages.

    Returns:
        View, float32 (1, 3, 224, 224): (x / 255 - mean) / std in float32, as torchvision computes.

    Raises:
        BuildError: If the image is so narrow that it has too many pixels after scaling.
    """
    width, height = image.size
    short = min(width, height)
    size = (
        (_SHORT_SIDE, int(_SHORT_SIDE * height / short))
        if width <= height
        else (int(_SHORT_SIDE * width / short), _SHORT_SIDE)
    )
    check_pixels(path, *size)
    scaled = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - _CROP) / 2.0) for side in size)
    return normalise(np.asarray(scaled.crop((left, top, left + _CROP, top + _CROP)))[None])


def two_windows(height: int, width: int) -> bool:
    """Whether an image of this size gives exactly two windows, as the dataset requires."""
    return len(_GEOMETRY.corners(*_GEOMETRY.scaled(height, width))) == 2


def segmentation_views(image: np.ndarray) -> np.ndarray:
    """Return the sliding windows over the image with its short side scaled to 512.

    Args:
        image: RGB image, uint8 (H, W, 3).

    Returns:
        Windows of 512, normalised, then padded with zeros: float32 (N, 3, 518, 518).
    """
    rows, columns = _GEOMETRY.scaled(*image.shape[:2])
    scaled, side = resize_linear(image, rows, columns), _GEOMETRY.window
    windows = [
        scaled[top : top + side, left : left + side]
        for top, left in _GEOMETRY.corners(rows, columns)
    ]
    return pad_to_patches(normalise_255(np.stack(windows)))


def depth_views(image: np.ndarray) -> np.ndarray:
    """Return the image and its mirror image, normalised, then padded with zeros.

    Args:
        image: RGB image, uint8 (480, 640, 3).

    Returns:
        Views, float32 (2, 3, 490, 644).
    """
    return pad_to_patches(normalise_255(np.stack([image, image[:, ::-1]])))


def normalise_255(images: np.ndarray) -> np.ndarray:
    """Normalise uint8 RGB (..., H, W, 3) to float32 (..., 3, H, W) in mmcv's arithmetic.

    The difference to the mean is float32; its product with 1 / std is float64 and is rounded once.
    The result differs from `normalise`, with the same statistics divided by 255, by at most 5e-7.
    """
    levels = np.arange(256, dtype=np.float32)[:, None] - _MEAN
    table = (levels.astype(np.float64) * (1.0 / _STD.astype(np.float64))).astype(np.float32)
    channels = [table[:, channel][images[..., channel]] for channel in range(3)]
    return np.stack(channels, axis=-3)


def pad_to_patches(views: np.ndarray) -> np.ndarray:
    """Zero-pad (..., H, W) to multiples of the patch; an odd margin has its extra pixel last."""
    margins = [(0, 0)] * (views.ndim - 2)
    for side in views.shape[-2:]:
        margin = -side % PATCH
        margins.append((margin // 2, margin - margin // 2))
    return np.pad(views, margins)


def resize_linear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, C) like OpenCV's `resize` with INTER_LINEAR, without antialias.

    Positions are float32 and weights have 11 bits. Integers are interpolated along columns, then
    rows, which drops 4 and then 16 bits; the last 2 bits of the sum are rounded. Half the size in
    both axes is the mean of four pixels, as in OpenCV.
    """
    source = image.shape[:2]
    if source == (height, width):
        return image
    if source == (2 * height, 2 * width):
        sums = image.astype(np.int32).reshape(height, 2, width, 2, -1).sum(axis=(1, 3))
        return ((sums + 2) >> 2).astype(np.uint8)
    (left, right, *across), (upper, lower, *down) = (
        _taps(source[1], width, clamp=True),
        _taps(source[0], height, clamp=False),
    )
    pixels = image.astype(np.int32)
    rows = pixels[:, left] * across[0][:, None] + pixels[:, right] * across[1][:, None] >> 4
    weights = [weight[:, None, None] for weight in down]
    total = (rows[upper] * weights[0] >> 16) + (rows[lower] * weights[1] >> 16)
    return (total + 2 >> 2).clip(0, 255).astype(np.uint8)


def _taps(source: int, target: int, clamp: bool) -> tuple[np.ndarray, ...]:
    """Return both neighbours of each target pixel along an axis, and their weights out of 2048.

    Args:
        source: Number of source pixels.
        target: Number of target pixels.
        clamp: Give the nearest pixel the full weight at positions beyond the outermost centres, as
            OpenCV does along rows; otherwise only the neighbours are clipped.
    """
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    if clamp:
        share[(first < 0) | (first >= source - 1)] = 0
        first = first.clip(0, source - 1)
    weights = (
        np.rint(part * _COEFFICIENT).astype(np.int32) for part in (np.float32(1) - share, share)
    )
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), *weights


_GEOMETRY = SegGeometry()
