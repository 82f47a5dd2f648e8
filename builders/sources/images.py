"""Read images, masks and depth maps from untrusted files.

Only JPEG and PNG are opened. Pixels are returned as stored: the EXIF orientation is not applied.
The published extraction for classification and segmentation, which reads with Pillow, does not
apply it either, and masks and depth maps match unrotated images. Errors name the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cfqa_data.builders.sources.files import names_in, reason
from cfqa_data.errors import BuildError
from cfqa_data.format.limits import pointer_at

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "check_pixels",
    "images_below",
    "most",
    "read_depth",
    "read_mask",
    "read_rgb",
    "read_size",
]

SUFFIXES = (".jpeg", ".jpg", ".png")
#: Misplaced images are ignored if they are at most this many, or at most one in this many.
_MAX_MISPLACED = 10

MAX_PIXELS = 64_000_000
"""Maximum number of pixels of an image, before and after scaling."""

#: 8-bit modes that Pillow converts to RGB like torchvision's loader; alpha is dropped.
_EIGHT_BIT = ("RGB", "L", "1", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def check_pixels(path: Path, width: int, height: int) -> None:
    """Check that an image is not too large to be held in memory.

    Raises:
        BuildError: If the image has more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        raise BuildError(f"{path}: {width}x{height} pixels exceed the limit of {MAX_PIXELS}")


def _open(path: Path, load: bool = True) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF blocks, which occur in ImageNet, and of large sizes.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                check_pixels(path, *image.size)
                if load:
                    image.load()
                return image
    except BuildError:
        raise
    except FileNotFoundError:
        raise BuildError(f"{path}: {pointer_at(path) or 'no such file'}") from None
    except Image.UnidentifiedImageError:
        raise BuildError(f"{path}: {pointer_at(path) or 'not a JPEG or PNG image'}") from None
    except Exception as error:  # Pillow's decoders raise all kinds on damaged bytes
        raise BuildError(f"{path}: cannot be read as an image ({reason(error)})") from None


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image, from its header.

    Raises:
        BuildError: If the file is missing, not an image, or too large.
    """
    width, height = _open(path, load=False).size
    return height, width


def _open_as(path: Path, modes: Sequence[str], what: str) -> Image.Image:
    """Open an image in one of several modes; raise an error that states `what` for others."""
    image = _open(path)
    if image.mode not in modes:
        raise BuildError(f"{path}: {what}, not of mode {image.mode}")
    return image


def read_rgb(path: Path) -> Image.Image:
    """Read an image as 8-bit RGB.

    Grey, palette, CMYK and YCbCr images are converted, and alpha is dropped. 16-bit grey values are
    reduced to their high byte, as Pillow does for 16-bit colour.

    Raises:
        BuildError: If the file is missing, damaged, too large, or of another mode.
    """
    what = "an image must be RGB, grey, palette, CMYK or YCbCr (save it as 8-bit RGB)"
    image = _open_as(path, (*_EIGHT_BIT, *_SIXTEEN_BIT), what)
    if image.mode in _SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of transparency in palettes
        return image.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of class numbers, uint8 (H, W), from a palette or 8-bit grey PNG.

    Raises:
        BuildError: If the file is missing, damaged, too large, or of another mode.
    """
    what = "a mask must be a palette or 8-bit grey PNG of class numbers"
    return np.array(_open_as(path, ("P", "L"), what), np.uint8)


def read_depth(path: Path) -> np.ndarray:
    """Read a depth map, uint16 (H, W), from a 16-bit grey PNG.

    Raises:
        BuildError: If the file is missing, damaged, too large, or of another mode.
    """
    # Older releases of Pillow open 16-bit grey as mode "I".
    what = "a depth map must be a 16-bit grey PNG in millimetres"
    return np.array(_open_as(path, (*_SIXTEEN_BIT, "I"), what)).astype(np.uint16)


def images_below(folder: Path) -> list[Path]:
    """Return the sorted images in a folder or in its subfolders, whichever has more.

    Raises:
        BuildError: If both have many.
    """
    names = names_in(folder)
    direct = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    nested = [
        folder / name / image
        for name in names
        if not name.lower().endswith(SUFFIXES)
        for image in names_in(folder / name)
        if image.lower().endswith(SUFFIXES)
    ]
    return most(direct, nested, f"{folder}: images in it and images in folders in it")


def most(some: list[Path], others: list[Path], what: str) -> list[Path]:
    """Return the longer of two lists; the shorter one contains misplaced files.

    Raises:
        BuildError: If the shorter list is too long to be ignored.
    """
    more, fewer = (some, others) if len(some) > len(others) else (others, some)
    if len(fewer) > max(_MAX_MISPLACED, len(more) // _MAX_MISPLACED):
        raise BuildError(f"{what} ({len(some)} and {len(others)}): remove what does not belong")
    return more
