"""Solids of rendered scenes: unions of convex parts with closed-form ray intersections, textures.

A convex part is an intersection of half-spaces ``n . p <= k`` and at most one quadric
``sum_i diag_i (p_i - centre_i)^2 <= const`` (sphere, upright cylinder, or one nappe of an upright
cone). A ray is inside each of them over one interval of its parameter, so that it enters the part
at the largest entry and leaves it at the smallest exit, without iteration or tolerance. A solid is
the union of its parts and is entered at the nearest one. All solids fit the box [-1, 1]^3, y up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["COLOURS", "SHAPES", "TEXTURES", "ConvexPart", "Quadric", "intersect"]

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Quadric:
    """``sum_i diag_i (p_i - centre_i)^2 <= const``; ``nappe`` (+1 up, -1 down) of a cone."""

    diag: Vector
    centre: Vector
    const: float
    nappe: int = 0


@dataclass(frozen=True)
class ConvexPart:
    """Half-spaces ``n . p <= k`` as rows ``(nx, ny, nz, k)``, and optionally a quadric."""

    planes: tuple[tuple[float, float, float, float], ...]
    quadric: Quadric | None = None


def _box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> ConvexPart:
    (left, right), (front, back) = x, z
    sides = ((-1.0, 0.0, 0.0, -left), (1.0, 0.0, 0.0, right))
    ends = ((0.0, 0.0, -1.0, -front), (0.0, 0.0, 1.0, back))
    return ConvexPart((*sides, *_between(*y), *ends))


def _between(low: float, high: float) -> tuple[tuple[float, float, float, float], ...]:
    return ((0.0, -1.0, 0.0, -low), (0.0, 1.0, 0.0, high))


def _sphere(y: float, radius: float) -> Quadric:
    return Quadric((1.0, 1.0, 1.0), (0.0, y, 0.0), radius**2)


def _cylinder(radius: float) -> Quadric:
    return Quadric((1.0, 0.0, 1.0), (0.0, 0.0, 0.0), radius**2)


def _cone(apex: float, slope: float, nappe: int) -> Quadric:
    return Quadric((1.0, -(slope**2), 1.0), (0.0, apex, 0.0), 0.0, nappe)


_OCTAHEDRON = tuple(
    (sx / 3**0.5, sy / 3**0.5, sz / 3**0.5, 1 / 3**0.5)
    for sx in (-1.0, 1.0)
    for sy in (-1.0, 1.0)
    for sz in (-1.0, 1.0)
)
_ROOF = (
    (0.0, -1.0, 0.0, 0.7),
    (0.0, 0.0, -1.0, 1.0),
    (0.0, 0.0, 1.0, 1.0),
    (0.8274, 0.5616, 0.0, 0.4343),
    (-0.8274, 0.5616, 0.0, 0.4343),
)

#: Name -> convex parts. The order is the semantic class: label 0 is background, 1 the first shape.
SHAPES: dict[str, tuple[ConvexPart, ...]] = {
    "sphere": (ConvexPart((), _sphere(0.0, 1.0)),),
    "cube": (_box((-0.8, 0.8), (-0.8, 0.8), (-0.8, 0.8)),),
    "cylinder": (ConvexPart(_between(-1.0, 1.0), _cylinder(0.62)),),
    "cone": (ConvexPart(_between(-1.0, 1.0), _cone(1.0, 0.45, -1)),),
    "octahedron": (ConvexPart(_OCTAHEDRON),),
    "roof": (ConvexPart(_ROOF),),
    "dome": (ConvexPart(_between(0.0, 1.0), _sphere(0.0, 1.0)),),
    "cross": (
        _box((-0.3, 0.3), (-1.0, 1.0), (-0.3, 0.3)),
        _box((-1.0, 1.0), (-0.1, 0.5), (-0.3, 0.3)),
    ),
    "dumbbell": (
        ConvexPart((), _sphere(-0.5, 0.5)),
        ConvexPart((), _sphere(0.55, 0.45)),
        ConvexPart(_between(-0.5, 0.5), _cylinder(0.2)),
    ),
    "arch": (
        _box((-0.95, -0.45), (-1.0, 0.5), (-0.4, 0.4)),
        _box((0.45, 0.95), (-1.0, 0.5), (-0.4, 0.4)),
        _box((-0.95, 0.95), (0.3, 0.9), (-0.4, 0.4)),
    ),
    "hourglass": (
        ConvexPart(_between(-1.0, 0.1), _cone(0.1, 0.75, -1)),
        ConvexPart(_between(-0.1, 1.0), _cone(-0.1, 0.75, 1)),
    ),
    "stairs": (
        _box((-0.95, 0.95), (-1.0, -0.4), (-0.6, 0.6)),
        _box((-0.3, 0.95), (-0.5, 0.2), (-0.6, 0.6)),
        _box((0.35, 0.95), (0.1, 0.8), (-0.6, 0.6)),
    ),
}


def _enter_quadric(
    quadric: Quadric, origin: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of each ray inside the quadric; an empty one is (inf, -inf)."""
    diag = np.asarray(quadric.diag, np.float32)
    shifted = origin - np.asarray(quadric.centre, np.float32)
    a = direction**2 @ diag
    b = direction @ (diag * shifted)
    c = float(shifted**2 @ diag) - quadric.const
    root = b * b - a * c
    hit = root > 0
    root = np.sqrt(np.where(hit, root, 0.0))
    safe = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    t0 = (-b - root) / safe
    t1 = (-b + root) / safe
    near, far = np.minimum(t0, t1), np.maximum(t0, t1)
    inf = np.float32(np.inf)
    if quadric.nappe:
        # A ray steeper than the cone (a < 0) is inside one nappe before `near`, and inside the
        # other after `far`.
        steep = a < 0
        ahead = direction[:, 1] * quadric.nappe > 0
        near, far = (
            np.where(steep, np.where(ahead, far, -inf), near),
            np.where(steep, np.where(ahead, inf, near), far),
        )
    return np.where(hit, near, inf), np.where(hit, far, -inf)


def _enter_part(
    part: ConvexPart, origin: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the entry parameter of each ray (inf if it misses) and the outward normal there."""
    rays = len(direction)
    near = np.full(rays, -np.inf, np.float32)
    far = np.full(rays, np.inf, np.float32)
    normal = np.zeros((rays, 3), np.float32)
    if part.planes:
        rows = np.asarray(part.planes, np.float32)
        speed = direction @ rows[:, :3].T
        gap = rows[:, 3] - rows[:, :3] @ origin
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gap / speed
        entries = np.where(speed < 0, t, -np.inf)
        exits = np.where(speed > 0, t, np.inf)
        outside = (speed == 0) & (gap < 0)
        which = entries.argmax(axis=1)
        near = entries[np.arange(rays), which]
        far = np.where(outside.any(axis=1), -np.inf, exits.min(axis=1))
        normal = rows[which, :3]
    if part.quadric is not None:
        enter, leave = _enter_quadric(part.quadric, origin, direction)
        later = enter > near
        near = np.where(later, enter, near)
        far = np.minimum(far, leave)
        safe = np.where(np.isfinite(near), near, 0.0)
        point = origin + safe[:, None] * direction
        gradient = (point - np.asarray(part.quadric.centre, np.float32)) * np.asarray(
            part.quadric.diag, np.float32
        )
        normal = np.where(later[:, None], gradient, normal)
    missed = (near >= far) | (near <= 0) | ~np.isfinite(near)
    return np.where(missed, np.float32(np.inf), near), normal


def intersect(
    parts: tuple[ConvexPart, ...], origin: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first hit of rays with a union of convex parts.

    Args:
        parts: Parts of the solid, in its local frame.
        origin: Common ray origin, float32 (3,), outside the solid.
        direction: Ray directions, float32 (R, 3), any length.

    Returns:
        The ray parameter of the first hit, float32 (R,), inf where the ray misses; and the outward
        normal there (R, 3), not normalised.
    """
    nearest, normal = _enter_part(parts[0], origin, direction)
    for part in parts[1:]:
        t, n = _enter_part(part, origin, direction)
        closer = t < nearest
        nearest = np.where(closer, t, nearest)
        normal = np.where(closer[:, None], n, normal)
    return nearest.astype(np.float32), normal.astype(np.float32)


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


def _marble(p: np.ndarray) -> np.ndarray:
    turbulence = np.sin(3.1 * p[:, 1] + 1.3) + np.sin(4.3 * p[:, 2] + 0.7 + 2.0 * p[:, 0])
    wave = np.sin(4.0 * p[:, 0] + 2.2 * turbulence)
    return (0.5 + 0.5 * wave).astype(np.float32)


def _speckle(p: np.ndarray) -> np.ndarray:
    x, y, z = np.floor(p * 5.0 + 0.43).astype(np.int64).T
    hashed = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791)
    return ((hashed * 2654435761 >> 16) % 100 < 40).astype(np.float32)


#: Name -> function from points (P, 3) in the object's frame to the share of the second tone,
#: float32 (P,) in 0..1.
TEXTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda p: np.zeros(len(p), np.float32),
    "bands": lambda p: (np.sin(p[:, 1] * 9.0 + 0.6) > 0).astype(np.float32),
    "checker": _checker,
    "dots": _dots,
    "grid": _grid,
    "diagonal": lambda p: (np.sin((p[:, 0] + p[:, 1] + p[:, 2]) * 7.0 + 0.4) > 0).astype(
        np.float32
    ),
    "marble": _marble,
    "speckle": _speckle,
}
