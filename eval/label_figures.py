"""What labels can tell at most: negative, constant and tied distortions, and a ceiling per task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.console.text import percent, table_text
from cfqa_data.eval.statistics.correlations import constant_rows, spearman

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ceiling", "describe_labels", "label_figures", "labels_text"]


def describe_labels(labels: pa.Table, useless: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what labels can tell, JSON-safe.

    Args:
        labels: rows of :func:`cfqa_data.format.schema.label_schema`.
        useless: task -> mean distortion of a useless feature, where it is known.

    Returns:
        ``labels``, rows of :func:`label_figures`, ``ceilings``, task -> :func:`ceiling`, and
        ``useless``.
    """
    ceilings = {task: ceiling(part) for (task,), part in _parts(labels, "task")}
    rows = label_figures(labels, useless)
    return {"labels": rows, "ceilings": ceilings, "useless": dict(useless)}


def label_figures(
    labels: pa.Table, useless: Mapping[str, float | None] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return one row of figures per task and codec.

    Args:
        labels: rows of :func:`cfqa_data.format.schema.label_schema`.
        useless: task -> mean distortion of a useless feature, where it is known.

    Returns:
        Rows with ``task``, ``codec``, ``negative`` (share of distortions below 0: the compressed
        feature scores better than its original), ``constant`` (share of sources whose distortion is
        the same at all levels), ``tied`` (share of pairs of levels of a source that have the same
        distortion; None of one level), ``harm_best`` and ``harm_worst`` (shares of a useless
        feature's mean distortion that the first and the last level have; None where unknown).
    """
    rows = []
    for (task, codec), part in _parts(labels, "task", "codec"):
        distortion, whole = _by_source(part, "distortion"), useless.get(task)
        levels = distortion.shape[1]
        equal = (distortion[:, :, None] == distortion[:, None, :]).sum() - distortion.size
        pairs = len(distortion) * levels * (levels - 1)
        best, worst = (
            float(distortion[:, level].mean()) / whole if whole and whole > 0 else None
            for level in (0, -1)
        )
        rows.append(
            {
                "task": task,
                "codec": codec,
                "negative": float((distortion < 0).mean()),
                "constant": float((distortion == distortion[:, :1]).all(axis=1).mean()),
                "tied": float(equal / pairs) if pairs else None,
                "harm_best": best,
                "harm_worst": worst,
            }
        )
    return rows


def ceiling(labels: pa.Table) -> float | None:
    """Return how well a task's own loss orders its distortions: what a metric may hope for.

    It is the mean over sources of the SROCC of loss and distortion over all versions of a source,
    by the rules of `cfqa eval`: sources of constant distortion are left out, and a constant loss
    counts 0. The loss sees truth and head, which a metric of features does not.

    Args:
        labels: rows of one task.

    Returns:
        None where the task has no loss, or all distortions of every source are the same.
    """
    if not labels.num_rows:
        return None
    distortion, loss = _by_source(labels, "distortion"), _by_source(labels, "loss")
    varying = ~constant_rows(distortion)
    if np.isnan(loss).any() or not varying.any():
        return None
    return float(np.nan_to_num(spearman(loss[varying], distortion[varying])).mean())


def _by_source(labels: pa.Table, column: str) -> np.ndarray:
    """Return a column as float64 (sources, versions), in the same order of versions."""
    keys = [labels[name].to_pylist() for name in ("source_id", "codec", "level")]
    order = sorted(range(labels.num_rows), key=list(zip(*keys, strict=True)).__getitem__)
    values = labels[column].to_numpy()[order].astype(np.float64)
    return np.asarray(values.reshape(len(set(keys[0])), -1))


def _parts(labels: pa.Table, *columns: str) -> list[tuple[tuple[str, ...], pa.Table]]:
    """Return the rows of each combination of columns, in the order of their first rows."""
    keys = list(zip(*(labels[name].to_pylist() for name in columns), strict=True))
    places: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [(key, labels.take(rows)) for key, rows in places.items()]


def labels_text(described: Mapping[str, Any]) -> str:
    """Return what :func:`describe_labels` found as `cfqa info` prints it."""
    columns = {
        "negative": "negative",
        "constant": "constant",
        "tied": "tied",
        "harm_best": "best",
        "harm_worst": "worst, of useless",
    }
    rows = described["labels"]
    shown = [name for name in columns if any(row[name] is not None for row in rows)]
    cells = [[row["task"], row["codec"], *(percent(row[n], 1) for n in shown)] for row in rows]
    lines = [
        f"{task}: ceiling {value:.3f}, the SROCC of its own loss with the distortion"
        for task, value in described["ceilings"].items()
        if value is not None
    ]
    table = table_text([["task", "codec", *(columns[name] for name in shown)], *cells], left=2)
    return "\n".join([table, *([""] if lines else []), *lines])
