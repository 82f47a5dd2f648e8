"""The quantisers of the published code, faults included, under names that say so.

They are kept to reproduce its numbers (Gao et al., arXiv 2506.07412; `coding/` of its code): both
take a lower code where the nearest one would halve the error, and the uniform one lets values
outside its range wrap around. Use `uniform` and `kmeans` for anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cfqa_data.format.quantizers import KMeansQuantizer, UniformQuantizer

__all__ = ["PaperKMeansQuantizer", "PaperUniformQuantizer"]


@dataclass(frozen=True)
class PaperUniformQuantizer(UniformQuantizer):
    """q = trunc((x - lo) * scale), x' = q / scale + lo, with scale = (2**bits - 1) / (hi - lo).

    Arithmetic is float32, as published. The number is cut off towards zero, not rounded, and cast
    to the codes' unsigned type without being clipped, so it wraps around modulo 2**16 (2**8 for
    codes of up to 8 bits): in 10 bits, less than a step below ``lo`` is still 0, one step below is
    65535, and above ``hi`` come 1024, 1025, up to 65535, and then 0 again.

    Codes above 2**bits - 1 stand for nothing: :meth:`dequantize` and every codec here refuse them
    by name. The published code writes them into the encoder's input, where VTM 23.13 ends with an
    error, and HM 18.0 reads them as signed 16-bit samples and clips them when it reconstructs
    (1024..32767 become 1023, 32768..65535 become 0; measured).

    Casting a float beyond its type is undefined in C. This is what x86-64 does for values up to
    2**31 steps from the range; beyond, the wrapping goes on here, and what has no finite float32
    product is 0.
    """

    @cached_property
    def _values(self) -> np.ndarray:  # type: ignore[override]
        codes = np.arange(1 << self.bits, dtype=np.float32)
        scale, lo = self._float32()
        values = codes / scale + lo
        values.flags.writeable = False
        return values

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        scale, lo = (column[..., None] for column in self._float32())
        modulus = 1 << (8 * self.dtype.itemsize)
        with np.errstate(over="ignore"):
            steps = np.trunc((features - lo) * scale)
        steps = np.where(np.isfinite(steps), steps, np.float32(0))
        return np.fmod(steps, np.float32(modulus)).astype(np.int64).astype(self.dtype)

    def _float32(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and lo per layer, (C, 1); the scale is rounded after it was divided."""
        lo, hi = np.array(self.lo), np.array(self.hi)
        with np.errstate(
            divide="ignore", over="ignore"
        ):  # (nearly) no range: refused by its values
            scale = (((1 << self.bits) - 1) / (hi - lo)).astype(np.float32)
        return scale[:, None], lo.astype(np.float32)[:, None]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"kind": "paper_uniform"}


@dataclass(frozen=True)
class PaperKMeansQuantizer(KMeansQuantizer):
    """The code of the centre just below x, digitize(x, centres) - 1, and 0 below all of them.

    A learned codec's network is given code / 2**bits, and its output y stands for
    centres[clip(round(2**bits * y), 0, 2**bits - 1)], ties to even; in 8 bits that is also what the
    hyperprior codecs here do.
    """

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        codes = np.empty(features.shape, self.dtype)
        for layer, table in enumerate(self._values):
            below = np.searchsorted(table, features[..., layer, :, :], side="right")
            codes[..., layer, :, :] = np.maximum(below - 1, 0)
        return codes

    def network_input(self, codes: np.ndarray) -> np.ndarray:
        """Return what the network is given for codes: float32 in [0, 1)."""
        return (codes / (1 << self.bits)).astype(np.float32)

    def from_network(self, output: np.ndarray) -> np.ndarray:
        """Return the float32 features that a network's output (..., C, T, D) stands for."""
        last = (1 << self.bits) - 1
        codes = np.clip(np.round(np.asarray(output) * (last + 1)), 0, last)
        return self.dequantize(codes.astype(self.dtype))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"kind": "paper_kmeans"}
