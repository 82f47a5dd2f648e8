"""JPEG of the images that the backbone takes.

The quality parameter of JPEG encoders is not portable: tables, subsampling and Huffman coding
differ between libraries. This codec passes all three to the encoder: the tables of ITU-T T.81,
Annex K, scaled by the Independent JPEG Group's rule; baseline coding; and optimised Huffman tables
per image.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import numpy as np

from cfqa_data.codecs.base import Bitstream, InputCodec, check_bitstream
from cfqa_data.codecs.inputs.picture import MAX_PIXELS, Layout, merge_views, split_views
from cfqa_data.errors import CodecError
from cfqa_data.extras import extras
from cfqa_data.format.facts import Parameter

__all__ = ["Jpeg", "quantization_tables"]

_LUMINANCE = """
    16 11 10 16 24 40 51 61        12 12 14 19 26 58 60 55
    14 13 16 24 40 57 69 56        14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77      24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101    72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
    17 18 24 47 99 99 99 99        18 21 26 66 99 99 99 99
    24 26 56 99 99 99 99 99        47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99        99 99 99 99 99 99 99 99
    99 99 99 99 99 99 99 99        99 99 99 99 99 99 99 99"""

_MAX_SIDE = 65500  # rows or columns, the limit of libjpeg


def quantization_tables(quality: int) -> list[list[int]]:
    """Return the luminance and chrominance tables at a quality of 1 to 100, in row-major order."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [
        [min(max((int(step) * scale + 50) // 100, 1), 255) for step in table.split()]
        for table in (_LUMINANCE, _CHROMINANCE)
    ]


class Jpeg(InputCodec):
    """JPEG of the views of an image, which share one file.

    A bitstream is a JPEG file of one picture; each view is a window of it. Where there are several
    views or a margin of zeros, a comment in the file holds their layout.

    Args:
        subsampling: Chroma subsampling.
    """

    name = "jpeg"
    title = "JPEG of the image"
    parameter = Parameter("quality", "higher", whole=True, lowest=1, highest=100)
    cost = 0.2

    def __init__(self, subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = "4:2:0") -> None:
        self.subsampling = subsampling

    @classmethod
    def grid(cls) -> tuple[float, ...]:
        """Return the qualities of a calibration, denser where the error grows faster."""
        return 95.0, 75.0, 50.0, 30.0, 20.0, 10.0, 5.0, 3.0, 1.0

    @extras("build")
    def encode(self, inputs: Any, parameter: float) -> bytes:
        """Return a JPEG file.

        Args:
            inputs: float32 (N, 3, H, W), N views of an image, normalised with ImageNet's
                statistics.
            parameter: The JPEG quality, 1 to 100.
        """
        quality = int(self.check_parameter(parameter))
        values = np.asarray(inputs)
        if values.dtype != np.float32 or values.ndim != 4 or values.shape[1] != 3:
            raise self._input_error(f"not {values.dtype} {values.shape}")
        if not 0 < values.size <= 3 * MAX_PIXELS:
            raise self._input_error(f"of 1 to {MAX_PIXELS} pixels, not {values.shape}")
        if (merged := merge_views(values)) is None:
            raise self._input_error("and these have other values")
        picture, layout = merged
        if max(picture.shape) > _MAX_SIDE:
            raise self._input_error(f"of at most {_MAX_SIDE} rows, not {values.shape}")
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).save(
            file,
            "JPEG",
            qtables=quantization_tables(quality),
            subsampling=self.subsampling,
            optimize=True,
            progressive=False,
            comment=layout.to_bytes(),
        )
        return file.getvalue()

    @extras("build")
    def decode(self, bitstream: Bitstream) -> np.ndarray:
        """Return the views, float32 (N, 3, H, W), normalised with ImageNet's statistics."""
        from PIL import Image

        data = check_bitstream(self.name, bitstream)
        try:
            with warnings.catch_warnings():
                # Pillow warns about sizes, which _check bounds, and about damaged metadata.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                    self._check(image, data)
                    layout = Layout.of(image.info.get("comment", b""), image.height, image.width)
                    picture = np.asarray(image)
        except CodecError:
            raise
        except Image.UnidentifiedImageError:
            raise CodecError(f"{self.name}: the bitstream is not a JPEG file") from None
        except Exception as error:  # Pillow's decoders raise many types on damaged bytes
            raise CodecError(f"{self.name}: the bitstream is damaged ({error})") from None
        return split_views(picture, layout)

    @extras("build")
    def version(self) -> dict[str, str]:
        """Return the JPEG library inside Pillow and the encoder settings."""
        import PIL
        from PIL import features

        kinds = ("mozjpeg", "libjpeg_turbo")
        present = (kind for kind in kinds if kind in features.features and features.check(kind))
        kind = next(present, "jpg")
        library = f"{kind} {features.version(kind)} in Pillow {PIL.__version__}"
        tables = "ITU-T T.81 Annex K by the IJG's quality, baseline, Huffman tables per image"
        return {"library": library, "tables": tables, "subsampling": self.subsampling}

    def _check(self, image: Any, data: bytes) -> None:
        """Check, before decoding any pixel, that a file has the form that :meth:`encode` writes."""
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width}x{image.height} pixels exceed the limit of {MAX_PIXELS}"
            raise CodecError(f"{self.name}: {size}")
        if image.format != "JPEG" or image.mode != "RGB" or "progressive" in image.info:
            raise CodecError(f"{self.name}: the bitstream is not a baseline JPEG file in RGB")
        if not data.endswith(b"\xff\xd9"):
            raise CodecError(f"{self.name}: the bitstream is cut short")

    def _input_error(self, why: str) -> CodecError:
        what = "inputs must be image views, float32 (N, 3, H, W) with ImageNet's statistics"
        return CodecError(f"{self.name}: {what}, {why}")
