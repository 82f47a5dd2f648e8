"""Scalar quantisers between float32 features and integer codes, with one table per layer.

A dataset stores its quantisers completely, beside the codes. Dequantising is only a lookup in their
tables, so every reader gets the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from cfqa_data.errors import CodecError, RecipeError, check_known
from cfqa_data.format.fields import check_keys, plain

__all__ = [
    "KMeansQuantizer",
    "PaperKMeansQuantizer",
    "PaperUniformQuantizer",
    "Quantizer",
    "UniformQuantizer",
    "fit_kmeans",
    "quantizer_from_dict",
]

MAX_BITS = 16

MAX_LAYERS = 64

LARGEST = float(np.finfo(np.float32).max)


class Quantizer:
    """Base class of quantisers: ``values()[c, k]`` is the value of code ``k`` in layer ``c``.

    Features are float32 (..., C, T, D) and codes unsigned integers of the same shape.
    """

    kind: ClassVar[str]
    bits: int

    @property
    def layers(self) -> int:
        """C, the number of layers, each with a table."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Number of values in all tables."""
        return self.layers << self.bits

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the codes: uint8 up to 8 bits, uint16 above."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    @property
    def largest_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @cached_property
    def _values(self) -> np.ndarray:
        # Computed on first use, because a manifest may contain thousands of quantisers.
        values = self._table().astype(np.float32)
        values.flags.writeable = False
        return values

    def values(self) -> np.ndarray:
        """Return the values of all codes, float32 (C, 2**bits), read-only and increasing."""
        return self._values

    def quantize(self, features: np.ndarray) -> np.ndarray:
        """Return the code of the nearest value for each element.

        Raises:
            CodecError: If the layer axis does not match, or a value is NaN or infinite.
        """
        features = np.asarray(features, np.float32)
        self._check_layers(features)
        if not np.isfinite(features).all():
            raise CodecError("a feature with NaN or infinite values cannot be quantised")
        return self._nearest(features)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Return the float32 values of ``codes``.

        Raises:
            CodecError: If the layer axis does not match, or a code is not an integer in 0..2**bits
                - 1.
        """
        codes = np.asarray(codes)
        self._check_layers(codes)
        if codes.dtype.kind not in "iu":
            raise CodecError(f"codes must be whole numbers, not {codes.dtype}")
        for code in (codes.min(initial=0), codes.max(initial=0)):
            if not 0 <= code <= self.largest_code:
                raise CodecError(f"code {code} is not a {self.bits}-bit code")
        features = np.empty(codes.shape, np.float32)
        for layer, table in enumerate(self._values):
            features[..., layer, :, :] = table[codes[..., layer, :, :]]
        return features

    def to_dict(self) -> dict[str, Any]:
        """Return the quantiser as exact, JSON-serialisable numbers."""
        names = (entry.name for entry in fields(self))  # type: ignore[arg-type]
        return {"kind": self.kind} | {name: plain(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, data: object, *_: str) -> Quantizer:
        """Return :func:`quantizer_from_dict` of a table."""
        return quantizer_from_dict(data)

    def _table(self) -> np.ndarray:
        raise NotImplementedError

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _check_layers(self, array: np.ndarray) -> None:
        if array.ndim < 3 or array.shape[-3] != self.layers:
            raise CodecError(
                f"quantiser of {self.layers} layer(s), array (..., C, T, D) of shape {array.shape}"
            )


@dataclass(frozen=True)
class UniformQuantizer(Quantizer):
    """2**bits evenly spaced values from ``lo`` to ``hi``, per layer.

    Attributes:
        bits: Bits of a code, 1 to 16.
        lo: Value of code 0, per layer.
        hi: Value of the last code, per layer.
    """

    bits: int
    lo: tuple[float, ...]
    hi: tuple[float, ...]
    kind = "uniform"
    least_step: ClassVar[int] = 1
    """Least distance of two values in float32 spacings of the larger end, so that they differ."""

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        object.__setattr__(self, "lo", _floats("lo", self.lo))
        object.__setattr__(self, "hi", _floats("hi", self.hi))
        if len(self.lo) != len(self.hi) or not self.lo:
            raise RecipeError("uniform quantiser: lo and hi need one number per layer each")
        for lo, hi in zip(self.lo, self.hi, strict=True):
            step = (hi - lo) / self.largest_code
            if not step >= self.least_step * float(np.spacing(np.float32(max(abs(lo), abs(hi))))):
                raise RecipeError(f"uniform quantiser: hi {hi} must be above lo {lo}")

    @property
    def layers(self) -> int:
        return len(self.lo)

    def _table(self) -> np.ndarray:
        lo, hi = np.array(self.lo)[:, None], np.array(self.hi)[:, None]
        return np.asarray(lo + (hi - lo) * (np.arange(self.largest_code + 1) / self.largest_code))

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(self._steps(features)), 0, self.largest_code).astype(self.dtype)

    def _steps(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of features from ``lo`` in steps, float32."""
        lo, scale = (column[..., None] for column in self._float32())
        with np.errstate(over="ignore"):  # values far beyond the range become infinity
            return np.asarray((features - lo) * scale)

    def _float32(self) -> tuple[np.ndarray, np.ndarray]:
        """Return lo and the codes per unit of each layer, (C, 1), as rounded float32."""
        lo, hi = np.array(self.lo)[:, None], np.array(self.hi)[:, None]
        with np.errstate(divide="ignore", over="ignore"):  # an (almost) empty range
            return lo.astype(np.float32), (self.largest_code / (hi - lo)).astype(np.float32)


@dataclass(frozen=True)
class KMeansQuantizer(Quantizer):
    """2**bits increasing centres, per layer.

    Attributes:
        bits: Bits of a code, 1 to 16.
        centers: float32 numbers (C, 2**bits) as tuples; arrays are converted.
    """

    bits: int
    centers: tuple[tuple[float, ...], ...]
    kind = "kmeans"

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                table = np.array(self.centers, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise RecipeError("k-means quantiser: centers must be numbers (C, 2**bits)") from None
        if table.ndim != 2 or table.shape[1] != 1 << self.bits or not len(table):
            raise RecipeError(
                f"k-means quantiser: centers must be (C, {1 << self.bits}), got {table.shape}"
            )
        if not np.isfinite(table).all() or not (np.diff(table) > 0).all():
            raise RecipeError("k-means quantiser: centers must be finite and increasing")
        object.__setattr__(self, "centers", tuple(map(tuple, table.tolist())))

    @property
    def layers(self) -> int:
        return len(self.centers)

    def _table(self) -> np.ndarray:
        return np.array(self.centers)

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        codes = np.empty(features.shape, self.dtype)
        for layer, table in enumerate(self._values):
            codes[..., layer, :, :] = self._search(table, features[..., layer, :, :])
        return codes

    def _search(self, table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted((table[:-1].astype(np.float64) + table[1:]) / 2, numbers)


# The quantisers of the published code, including its faults, to reproduce its numbers (Gao et al.,
# arXiv 2506.07412; `coding/` of its code). Both take a lower code where the nearest one would halve
# the error, and the uniform one lets values outside its range wrap around. Use `uniform` and
# `kmeans` for anything else.


@dataclass(frozen=True)
class PaperUniformQuantizer(UniformQuantizer):
    """q = trunc((x - lo) * scale), x' = q / scale + lo, with scale = (2**bits - 1) / (hi - lo).

    Arithmetic is float32, as published. Numbers are truncated towards zero, not rounded, and cast
    to the codes' unsigned type without clipping, so they wrap around modulo 2**16 (2**8 for codes
    of up to 8 bits). In 10 bits, less than a step below ``lo`` is still 0, one step below is 65535,
    and above ``hi`` come 1024, 1025, up to 65535, and then 0 again.

    Codes above 2**bits - 1 have no value: :meth:`dequantize` and every codec here refuse them. The
    published code writes them into the encoder's input, where VTM 23.13 ends with an error, and HM
    18.0 reads them as signed 16-bit samples and clips them when it reconstructs (1024..32767 become
    1023, 32768..65535 become 0; measured).

    Casting a float outside the range of its target type is undefined in C. This class does what
    x86-64 does for values up to 2**31 steps from the range. Beyond, it continues to wrap around,
    and values without a finite float32 product become 0.
    """

    kind = "paper_uniform"
    least_step = 4  # quotient and sum are rounded

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.isfinite(self._float32()[1]).all():
            raise RecipeError(f"uniform quantiser: hi {self.hi} must be above lo {self.lo}")

    def _table(self) -> np.ndarray:
        lo, scale = self._float32()
        return np.arange(self.largest_code + 1, dtype=np.float32) / scale + lo

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        steps = np.trunc(self._steps(features))
        steps = np.where(np.isfinite(steps), steps, np.float32(0))
        modulus = np.float32(1 << (8 * self.dtype.itemsize))
        return np.fmod(steps, modulus).astype(np.int64).astype(self.dtype)


@dataclass(frozen=True)
class PaperKMeansQuantizer(KMeansQuantizer):
    """The code of the centre just below x, digitize(x, centres) - 1, and 0 below all centres.

    The network of a learned codec takes code / 2**bits, and its output y becomes
    centres[clip(round(2**bits * y), 0, 2**bits - 1)], ties to even; in 8 bits, the hyperprior
    codecs here do the same.
    """

    kind = "paper_kmeans"

    def _search(self, table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return np.maximum(np.searchsorted(table, numbers, side="right") - 1, 0)

    def network_input(self, codes: np.ndarray) -> np.ndarray:
        """Return the network's input for codes: float32 in [0, 1)."""
        return (codes / (self.largest_code + 1)).astype(np.float32)

    def from_network(self, output: np.ndarray) -> np.ndarray:
        """Return the float32 features of a network's output (..., C, T, D)."""
        codes = np.clip(
            np.round(np.asarray(output) * (self.largest_code + 1)), 0, self.largest_code
        )
        return self.dequantize(codes.astype(self.dtype))


KINDS: Mapping[str, type[Any]] = {
    kind.kind: kind
    for kind in (UniformQuantizer, KMeansQuantizer, PaperUniformQuantizer, PaperKMeansQuantizer)
}


def quantizer_from_dict(data: object) -> Quantizer:
    """Return the quantiser that :meth:`Quantizer.to_dict` described.

    Raises:
        RecipeError: If a key is missing or unknown, or a value is invalid.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"a quantiser must be a table with a kind, got {data!r}")
    kind: str = check_known("quantiser kind", data.get("kind"), KINDS, RecipeError)
    keys = ("kind", *(entry.name for entry in fields(KINDS[kind])))
    values = check_keys(f"the {kind} quantiser", data, keys, error=RecipeError)
    quantizer: Quantizer = KINDS[kind](**{key: values[key] for key in keys[1:]})
    return quantizer


def fit_kmeans(samples: np.ndarray, bits: int, *, iterations: int = 200) -> np.ndarray:
    """Fit 2**bits centres to numbers by Lloyd's algorithm from evenly spaced starts.

    A linear start keeps centres in the sparse tails, where an error in value is large; a start at
    quantiles would stay near histogram equalisation. An empty cell keeps its centre, so the centres
    stay in order. Sorted prefix sums make one iteration O(2**bits log n).

    Args:
        samples: Finite numbers (n,), with at least two distinct values.
        bits: Bits of a code.
        iterations: Largest number of iterations; fitting stops when no centre moves.

    Returns:
        Ascending centres, float32 (2**bits,); equal ones where samples differ by rounding only.

    Raises:
        RecipeError: If the samples are not finite or all equal.
    """
    _check_bits(bits)
    data = np.sort(np.asarray(samples, np.float64).ravel())
    if data.size == 0 or not np.isfinite(data).all() or data[0] == data[-1]:
        raise RecipeError("k-means: samples must be finite and have more than one value")
    sums = np.concatenate([[0.0], np.cumsum(data)])
    centers = np.linspace(data[0], data[-1], 1 << bits)
    for _ in range(iterations):
        edges = np.searchsorted(data, (centers[:-1] + centers[1:]) / 2)
        edges = np.concatenate([[0], edges, [data.size]])
        counts = np.diff(edges)
        moved = np.where(counts, np.diff(sums[edges]) / np.maximum(counts, 1), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers.astype(np.float32)


def _check_bits(bits: object) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= MAX_BITS:
        raise RecipeError(
            f"quantiser: bits must be a whole number from 1 to {MAX_BITS}, got {bits!r}"
        )


def _floats(name: str, numbers: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or len(numbers) > MAX_LAYERS:
        requirement = f"at most {MAX_LAYERS} numbers, got {numbers!r}"
        raise RecipeError(f"uniform quantiser: {name} must be {requirement}")
    try:
        values = tuple(float(number) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        raise RecipeError(f"uniform quantiser: {name} must be numbers, got {numbers!r}") from None
    if not all(abs(value) <= LARGEST for value in values):
        raise RecipeError(f"uniform quantiser: {name} must be finite float32 numbers, got {values}")
    return values
