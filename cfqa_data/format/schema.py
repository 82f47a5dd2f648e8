"""Columns of the tables in a dataset folder, and rows for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.format.facts import CodecEntry, TaskEntry
from cfqa_data.format.invariants import folds_of, rate_of

__all__ = [
    "BASELINES",
    "LABEL_COLUMNS",
    "NEW_COLUMNS",
    "NULLABLE",
    "ORIGINAL_COLUMNS",
    "label_rows",
    "label_schema",
    "original_rows",
    "originals_schema",
]

BASELINES = ("mse", "cosine", "cka")
"""Metrics whose values for the compressed feature are in every label row."""

LABEL_COLUMNS: dict[str, tuple[str, str]] = {
    "task": ("string", "cls, seg or dpt"),
    "source_id": ("string", "the original this was compressed from"),
    "fold": ("int8", "0-4, the same for all rows of a source"),
    "codec": ("string", "what compressed it"),
    "level": ("int8", "0 (best) to 9 (worst)"),
    "parameter_name": ("string", "what the codec's parameter is: qp or lambda"),
    "parameter": ("float64", "the parameter's value at this level"),
    "bits": ("int64", "bits of the whole bitstream"),
    "bpfp": ("float64", "bits per feature point: `bits / (N*C*T*D)`"),
    "score": ("float64", "the task's score: rank, mIoU or RMSE in metres"),
    "reference_score": ("float64", "the score of the original"),
    "distortion": ("float64", "degradation of the score, larger is worse"),
    "loss": ("float64", "a continuous task loss, smaller is better"),
    "reference_loss": ("float64", "the loss of the original"),
    "mse": ("float64", "mean squared error against the original"),
    "cosine": ("float64", "mean cosine similarity of tokens with the original's"),
    "cka": ("float64", "linear centred kernel alignment with the original"),
    "array": ("string", "the array that holds its codes, relative to the folder"),
    "index": ("int32", "position of its source on the array's first axis"),
}
"""Column of `labels/{task}.parquet` -> (dtype, meaning)."""

ORIGINAL_COLUMNS: dict[str, tuple[str, str]] = {
    "task": ("string", "cls, seg or dpt"),
    "source_id": ("string", "unique over all tasks"),
    "fold": ("int8", "0-4"),
    "reference_score": ("float64", "the task's score on the original"),
    "reference_loss": ("float64", "the task's loss on the original"),
    "array": ("string", "the safetensors file that holds it, relative to the folder"),
    "key": ("string", "its name in that file"),
}
"""Column of `labels/originals.parquet` -> (dtype, meaning)."""


NEW_COLUMNS: dict[str, tuple[str, str]] = {
    "tokens": ("int32", "tokens T of its feature"),
    "group": ("string", "what its source belongs to: all of a group share a fold"),
}
"""Further columns of both tables in format 2."""

NULLABLE = {
    1: ("bits",),
    2: ("bits", "loss", "reference_loss", "mse", "cosine", "cka", "array"),
}
"""Format -> columns of labels that may contain nulls."""


def label_schema(format: int = 1) -> pa.Schema:
    """Return the schema of the labels, with one row per compressed feature."""
    return _schema(LABEL_COLUMNS, format)


def originals_schema(format: int = 1) -> pa.Schema:
    """Return the schema of the table of originals, with one row per original."""
    return _schema(ORIGINAL_COLUMNS, format)


def _schema(columns: dict[str, tuple[str, str]], format: int) -> pa.Schema:
    new = NEW_COLUMNS if format > 1 else {}
    return pa.schema(
        [pa.field(name, pa.type_for_alias(kind)) for name, (kind, _) in {**columns, **new}.items()]
    )


def original_rows(
    entry: TaskEntry, positions: Iterable[int], tokens: Any, scores: Any, losses: Any
) -> list[dict[str, Any]]:
    """Return the columns that both tables have for originals, a dict per original.

    Args:
        entry: The task's entry in the manifest.
        positions: Positions of the originals among the task's sources.
        tokens: Number of tokens of each original.
        scores: Reference score of each original.
        losses: Reference loss of each original; None where the task has no loss.
    """
    folds = folds_of(entry)
    return [
        {
            "task": entry.name,
            "source_id": entry.sources[position],
            "fold": int(folds[position]),
            "reference_score": score,
            "reference_loss": loss,
            "tokens": count,
            "group": entry.group_of[position],
        }
        for position, count, score, loss in zip(positions, tokens, scores, losses, strict=True)
    ]


def label_rows(
    entry: TaskEntry,
    codec: CodecEntry,
    columns: Mapping[str, Any],
    bits: Sequence[int | None],
    values: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Return the label rows of one source and codec, best level first.

    Args:
        entry: The task's entry in the manifest.
        codec: The codec's entry in the manifest.
        columns: Column -> value, for columns with one value in all rows.
        bits: Bits of each level; None where unknown.
        values: Score, loss and baseline metrics -> float64 (L,).
    """
    task, (n, c, _, d) = entry.facts, entry.shape

    def null_if_undefined(name: str, value: float) -> float | None:
        undefined = math.isnan(value) if name in BASELINES else name == "loss" and not task.loss
        return None if undefined else value

    return [
        {
            **columns,
            "codec": codec.name,
            "level": level,
            "parameter_name": codec.facts.parameter.name,
            "parameter": float(parameter),
            "bits": size,
            "bpfp": math.nan if size is None else rate_of(size, n * c * columns["tokens"] * d),
            "distortion": task.distortion(
                float(values["score"][level]), columns["reference_score"]
            ),
            **{n: null_if_undefined(n, float(series[level])) for n, series in values.items()},
        }
        for level, (parameter, size) in enumerate(zip(codec.levels, bits, strict=True))
    ]
