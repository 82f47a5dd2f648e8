"""8-bit RGB images, and what image backbones take: values normalised by ImageNet's statistics."""

from __future__ import annotations

import numpy as np

__all__ = ["MEAN", "STD", "normalise", "pixels_of"]

#: ImageNet's statistics of RGB in 0..1, as every published DINOv2 evaluation normalises.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalise(images: np.ndarray) -> np.ndarray:
    """Normalise uint8 RGB images (..., H, W, 3) to float32 (..., 3, H, W)."""
    scaled = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def pixels_of(values: np.ndarray) -> np.ndarray | None:
    """Return the nearest uint8 RGB images (..., H, W, 3) of normalised ones (..., 3, H, W).

    None if some value, of NaN and infinity too, is that of no pixel.
    """
    found = np.rint((np.moveaxis(values, -3, -1) * STD + MEAN) * np.float32(255))
    return found.astype(np.uint8) if ((found >= 0) & (found <= 255)).all() else None
