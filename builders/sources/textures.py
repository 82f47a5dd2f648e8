"""Textures and colours of the solids: functions of the point in an object's own frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["COLOURS", "TEXTURES"]

#: Name -> linear RGB in 0..1.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.48, 0.06),
    "yellow": (0.93, 0.85, 0.12),
    "green": (0.12, 0.60, 0.18),
    "cyan": (0.12, 0.76, 0.80),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.50, 0.14, 0.70),
    "pink": (0.96, 0.50, 0.70),
    "brown": (0.40, 0.24, 0.12),
    "white": (0.90, 0.90, 0.90),
}


def _plain(p: np.ndarray) -> np.ndarray:
    return np.zeros(len(p), np.float32)


def _bands(p: np.ndarray) -> np.ndarray:
    return (np.sin(p[:, 1] * 9.0 + 0.6) > 0).astype(np.float32)


def _checker(p: np.ndarray) -> np.ndarray:
    parity: np.ndarray = np.floor(p * 1.9 + 0.37).sum(axis=1) % 2
    return parity.astype(np.float32)


def _dots(p: np.ndarray) -> np.ndarray:
    cell = p * 2.1 + 0.25
    cell = cell - np.floor(cell) - 0.5
    return ((cell**2).sum(axis=1) < 0.15).astype(np.float32)


def _grid(p: np.ndarray) -> np.ndarray:
    cell = p * 2.3 + 0.31
    cell = np.abs(cell - np.floor(cell) - 0.5)
    return (cell.max(axis=1) > 0.40).astype(np.float32)


def _diagonal(p: np.ndarray) -> np.ndarray:
    return (np.sin((p[:, 0] + p[:, 1] + p[:, 2]) * 7.0 + 0.4) > 0).astype(np.float32)


def _marble(p: np.ndarray) -> np.ndarray:
    turbulence = np.sin(3.1 * p[:, 1] + 1.3) + np.sin(4.3 * p[:, 2] + 0.7 + 2.0 * p[:, 0])
    wave = np.sin(4.0 * p[:, 0] + 2.2 * turbulence)
    return (0.5 + 0.5 * wave).astype(np.float32)


def _speckle(p: np.ndarray) -> np.ndarray:
    x, y, z = np.floor(p * 5.0 + 0.43).astype(np.int64).T
    hashed = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791)
    return ((hashed * 2654435761 >> 16) % 100 < 40).astype(np.float32)


#: Name -> share of the second tone, float32 (P,) in 0..1, of points (P, 3) in the object's frame.
TEXTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "bands": _bands,
    "checker": _checker,
    "dots": _dots,
    "grid": _grid,
    "diagonal": _diagonal,
    "marble": _marble,
    "speckle": _speckle,
}
