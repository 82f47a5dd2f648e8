"""Rows of the tables of a dataset, whether it is built, imported or in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cfqa_data.format.facts import CodecEntry, TaskEntry
from cfqa_data.format.invariants import folds_of, rate_of

__all__ = ["BASELINES", "label_rows", "original_rows"]

BASELINES = ("mse", "cosine", "cka")
"""Metrics whose values against the original every label row carries."""


def original_rows(
    entry: TaskEntry, positions: Iterable[int], tokens: Any, scores: Any, losses: Any
) -> list[dict[str, Any]]:
    """Return what both tables say of originals, by column.

    Args:
        entry: what the manifest says of the task.
        positions: of the originals among its sources.
        tokens: of each.
        scores: of each.
        losses: of each; None where the task has none.
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
    """Return the label rows of one source by one codec, best level first.

    Args:
        entry: what the manifest says of the task.
        codec: what it says of the codec.
        columns: what is the same in every row, by column.
        bits: of each level; None where they are unknown.
        values: score, loss and baseline metrics -> float64 (L,).
    """
    task, (n, c, _, d) = entry.facts, entry.shape

    def known(name: str, value: float) -> float | None:
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
            **{name: known(name, float(series[level])) for name, series in values.items()},
        }
        for level, (parameter, size) in enumerate(zip(codec.levels, bits, strict=True))
    ]
