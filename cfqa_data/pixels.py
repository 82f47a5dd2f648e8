"""Convert 8-bit RGB images to the inputs of image backbones, and back."""

from __future__ import annotations

import numpy as np

__all__ = ["MEAN", "STD", "normalise", "pixels_of"]

#: Mean and standard deviation of RGB in [0, 1] over ImageNet, as in published DINOv2 evaluations.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalise(images: np.ndarray) -> np.ndarray:
    """Normalise uint8 RGB images (..., H, W, 3) to float32 (..., 3, H, W)."""
    scaled = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def pixels_of(values: np.ndarray) -> np.ndarray | None:
    """Invert :func:`normalise`: (..., 3, H, W) to the nearest uint8 RGB images (..., H, W, 3).

    Return None if a value is not finite or is outside the range of pixels.
    """
    pixels = np.rint((np.moveaxis(values, -3, -1) * STD + MEAN) * np.float32(255))
    return pixels.astype(np.uint8) if ((pixels >= 0) & (pixels <= 255)).all() else None
