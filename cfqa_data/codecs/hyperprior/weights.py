"""Files of hyperprior models: one ladder per safetensors file.

A ladder file holds, for each lambda i, the state dict under the prefix ``i.`` and the tables of z
under ``i.tables.``. The tables of y, which all models share, are under ``tables.``. Its metadata is
one JSON text, ``hyperprior``: name, lambdas, n, m, stages, pad, and convention if it is not cfqa.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.codecs.hyperprior.entropy_tables import (
    COMPRESSAI_BITS,
    COMPRESSAI_TAIL,
    Density,
    Tables,
    bottleneck_tables,
    gaussian_tables,
    scale_table,
)
from cfqa_data.codecs.hyperprior.fixed_point import FRACTION
from cfqa_data.errors import CodecError
from cfqa_data.format.limits import pointer_at
from cfqa_data.format.storage import write_tensors
from cfqa_data.paths import absolute_path

__all__ = [
    "MINI_PAD",
    "PAPER_PAD",
    "HyperpriorWeights",
    "Pad",
    "read_ladder",
    "write_ladder",
]

METADATA_KEY = "hyperprior"
CONVENTIONS = ("cfqa", "compressai")


@dataclass(frozen=True)
class Pad:
    """How a plane is padded to a size that the network accepts.

    Attributes:
        multiple: Both sides become multiples of this.
        mode: ``edge`` repeats the outer samples, ``zero`` adds zeros.
        align: ``start`` adds at the bottom and right, ``centre`` half on each side.
    """

    multiple: int
    mode: str
    align: str

    def __post_init__(self) -> None:
        known = self.mode in ("edge", "zero") and self.align in ("start", "centre")
        if not 1 <= self.multiple <= 1024 or not known:
            raise CodecError(f"unknown padding: {self}")

    def margins(self, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the samples to add before and after, per axis."""
        missing = [-side % self.multiple for side in shape]
        before = [0 if self.align == "start" else side // 2 for side in missing]
        return (before[0], missing[0] - before[0]), (before[1], missing[1] - before[1])


MINI_PAD = Pad(multiple=8, mode="edge", align="start")
PAPER_PAD = Pad(multiple=64, mode="zero", align="centre")


@dataclass(frozen=True)
class HyperpriorWeights:
    """All that encoder and decoder share for one lambda.

    Attributes:
        state: The state dict, arrays by CompressAI's names.
        pad: How planes are padded.
        y_tables: One table per scale.
        y_thresholds: int64 (scales - 1,), in units of 2**-FRACTION; a scale uses the table whose
            index is the number of thresholds below it.
        z_tables: One table per channel of z.
        medians: float64 (channels,), multiples of 2**-FRACTION.
        convention: ``cfqa``, or ``compressai`` for results that are comparable with CompressAI's:
            the arithmetic is then as precise as float32, and escapes are coded as in CompressAI.
    """

    state: Mapping[str, np.ndarray]
    pad: Pad
    y_tables: Tables
    y_thresholds: np.ndarray
    z_tables: Tables
    medians: np.ndarray
    convention: str = "cfqa"

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise CodecError(f"unknown coding convention: {self.convention!r}")

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, np.ndarray],
        pad: Pad,
        scales: np.ndarray | None = None,
        published: bool = False,
    ) -> HyperpriorWeights:
        """Compute the tables of a state dict.

        Args:
            state: Arrays by CompressAI's names.
            pad: How planes are padded.
            scales: float64 (scales,), increasing: the standard deviations of y's tables; those of
                :func:`scale_table` by default.
            published: Whether to follow CompressAI: a scale then uses the next larger table, not
                the nearest, and the offsets of z are the state's quantiles, not the density's own
                median.

        Raises:
            CodecError: If an entry is missing.
        """
        scales = scale_table() if scales is None else scales
        if published:
            quantiles = state["entropy_bottleneck.quantiles"][:, 0].astype(np.float64)
            z_tables, medians = bottleneck_tables(Density(state), quantiles, COMPRESSAI_BITS)
            y_tables = gaussian_tables(scales, COMPRESSAI_TAIL, COMPRESSAI_BITS)
            thresholds = scales[:-1]
        else:
            z_tables, medians = bottleneck_tables(Density(state))
            y_tables, thresholds = gaussian_tables(scales), np.sqrt(scales[:-1] * scales[1:])
        return cls(
            state=state,
            pad=pad,
            y_tables=y_tables,
            y_thresholds=_to_fixed_point(thresholds),
            z_tables=z_tables,
            medians=_to_fixed_point(medians) * 2.0**-FRACTION,
            convention="compressai" if published else "cfqa",
        )


def _to_fixed_point(values: np.ndarray) -> np.ndarray:
    """Return values as int64, in units of 2**-FRACTION."""
    return np.rint(values * 2.0**FRACTION).astype(np.int64)


def write_ladder(
    path: str | Path,
    name: str,
    models: Sequence[tuple[float, HyperpriorWeights]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write models of one architecture to a file atomically.

    Args:
        path: The safetensors file.
        name: Name of the ladder.
        models: Pairs (lambda, weights) with distinct lambdas, which share the tables of y, the
            padding and the convention.
        facts: Further metadata, JSON-serialisable.
    """
    first = models[0][1]
    tensors = vars(first.y_tables) | {"thresholds": first.y_thresholds}
    tensors = {f"tables.y.{part}": array for part, array in tensors.items()}
    for index, (_, weights) in enumerate(models):
        tables = vars(weights.z_tables) | {"medians": weights.medians}
        tensors |= {f"{index}.tables.z.{part}": array for part, array in tables.items()}
        tensors |= {f"{index}.{key}": value for key, value in weights.state.items()}
    header = {
        "name": name,
        "lambdas": [lmbda for lmbda, _ in models],
        "pad": asdict(first.pad),
        **({} if first.convention == "cfqa" else {"convention": first.convention}),
        **(facts or {}),
    }
    write_tensors(absolute_path(path), tensors, header, key=METADATA_KEY)


def read_ladder(path: str | Path) -> tuple[dict[str, Any], list[tuple[float, HyperpriorWeights]]]:
    """Return the metadata and the models, (lambda, weights), of a ladder file.

    Raises:
        CodecError: If the file is no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = absolute_path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        pad = Pad(**header["pad"])
        y_tables, thresholds = _tables(tensors, "tables.y."), tensors["tables.y.thresholds"]
        models = []
        for index, lmbda in enumerate(header["lambdas"]):
            prefix = f"{index}."
            weights = HyperpriorWeights(
                state={
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix) and ".tables." not in key
                },
                pad=pad,
                y_tables=y_tables,
                y_thresholds=thresholds,
                z_tables=_tables(tensors, f"{prefix}tables.z."),
                medians=tensors[f"{prefix}tables.z.medians"],
                convention=header.get("convention", "cfqa"),
            )
            models.append((float(lmbda), weights))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        detail = pointer_at(path) or error
        raise CodecError(f"{path}: not a file of hyperprior models ({detail})") from None
    return header, models


def _tables(tensors: Mapping[str, np.ndarray], prefix: str) -> Tables:
    return Tables(*(tensors[prefix + key] for key in ("counts", "sizes", "firsts")))
