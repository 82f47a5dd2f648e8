"""Drawings of truths and predictions: a picture, or bars of the most likely answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cfqa_data.builders.sources.geometry import IGNORE
from cfqa_data.errors import BuildError
from cfqa_data.format.previews import MAX_SIDE

__all__ = [
    "Bar",
    "Drawing",
    "answers",
    "check_drawing",
    "class_name",
    "draw_depth",
    "draw_mask",
    "webp",
]

SHOWN = 5
"""Maximum number of answers in a drawing."""

BACKGROUND, IGNORED = (24, 24, 24), (255, 255, 255)


class Bar(NamedTuple):
    """A bar for one answer.

    Attributes:
        label: Name of the answer.
        share: Length of the bar, 0 to 1, such as a probability or similarity.
        text: Number beside the bar.
        right: Whether the answer is the truth.
    """

    label: str
    share: float
    text: str = ""
    right: bool = False


class Drawing(NamedTuple):
    """A drawing of a truth or a prediction.

    Attributes:
        picture: Picture, uint8 RGB (H, W, 3), or None.
        bars: Bars of answers, the most likely first.
        key: Legend of the picture's colours: text -> RGB.
    """

    picture: np.ndarray | None = None
    bars: tuple[Bar, ...] = ()
    key: Mapping[str, tuple[int, ...]] = {}


def class_name(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or its number if it has no name."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def answers(
    shares: np.ndarray,
    right: int | None,
    name: Callable[[int], str],
    text: Callable[[float], str] = "{:.0%}".format,
) -> tuple[Bar, ...]:
    """Return bars of the most likely answers; the last is the true one if it is not among them.

    Args:
        shares: Share of each answer, 0 to 1.
        right: Index of the true answer; None if unknown.
        name: Function that returns the name of an answer.
        text: Function that formats a share.
    """
    order = np.argsort(-shares, kind="stable").tolist()
    bars = [Bar(name(k), float(shares[k]), text(float(shares[k])), k == right) for k in order]
    if right is None or right in order[:SHOWN]:
        return tuple(bars[:SHOWN])
    index = order.index(right)
    return (*bars[: SHOWN - 1], bars[index]._replace(text=f"place {index + 1}"))


def draw_mask(mask: np.ndarray, classes: Sequence[str], least: float = 0.0) -> Drawing:
    """Draw a mask of class numbers (H, W): class 0 is dark, ignored pixels are white.

    Args:
        mask: Class numbers, integers (H, W).
        classes: Names of the classes.
        least: Minimum share of the mask for a class to appear in the key.
    """
    from matplotlib import colormaps

    colours = (255 * colormaps["tab20"](np.arange(256) % 20)[:, :3]).astype(np.uint8)
    colours[0], colours[IGNORE] = BACKGROUND, IGNORED
    mask = np.asarray(mask).clip(0, IGNORE)
    labels, counts = np.unique(mask, return_counts=True)
    shown = [k for k in labels[counts >= least * mask.size].tolist() if k != IGNORE]
    key = {class_name(k, classes): tuple(colours[k].tolist()) for k in shown}
    return Drawing(colours[mask], key=key)


def draw_depth(metres: np.ndarray, near: float, far: float) -> Drawing:
    """Draw depths (H, W) in the range from near (bright) to far (dark); invalid ones are grey."""
    from matplotlib import colormaps

    colours = colormaps["magma_r"]
    picture = colours(((metres - near) / max(far - near, 1e-6)).clip(0, 1))[..., :3]
    picture[~(metres > 0)] = 0.5
    key = {
        f"{limit:.1f} m": tuple(int(255 * value) for value in colours(share)[:3])
        for limit, share in ((near, 0.0), (far, 1.0))
    }
    return Drawing((255 * picture).astype(np.uint8), key=key)


def check_drawing(drawing: Any, what: str) -> Drawing | None:
    """Validate and return the drawing that a task returned.

    Raises:
        BuildError: If it is neither None nor a valid drawing.
    """
    if drawing is None:
        return None
    if not isinstance(drawing, Drawing):
        raise BuildError(f"{what} must return a Drawing or None, not {type(drawing).__name__}")
    for bar in drawing.bars:
        if not isinstance(bar, Bar) or not isinstance(bar.label, str) or not 0 <= bar.share <= 1:
            raise BuildError(f"{what}: a bar must be Bar(text, share from 0 to 1), not {bar!r:.80}")
    for text, colour in drawing.key.items():
        if len(colour) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in colour):
            raise BuildError(
                f"{what}: the colour of {text!r} must be RGB of 0 to 255, not {colour!r}"
            )
    if (picture := drawing.picture) is not None and (
        np.shape(picture)[2:] != (3,) or picture.dtype != np.uint8 or not picture.size
    ):
        raise BuildError(f"{what}: a picture must be uint8 (H, W, 3), not {np.shape(picture)}")
    return drawing


def webp(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8 RGB (H, W, 3), as WebP: lossless if it has few colours."""
    from PIL import Image

    image, data = Image.fromarray(picture), io.BytesIO()
    few = image.getcolors(64) is not None
    if max(image.size) > MAX_SIDE:
        kind = Image.Resampling.NEAREST if few else Image.Resampling.BOX
        image.thumbnail((MAX_SIDE, MAX_SIDE), kind)
    image.save(data, "WEBP", lossless=few, quality=100 if few else 80, method=4)
    return data.getvalue()
