"""What labels can tell at most: negative, constant and tied distortions, and a ceiling per task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.console.text import percent, table_text
from cfqa_data.eval.statistics.correlations import constant_rows, spearman
from cfqa_data.eval.statistics.grids import read_grids

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ceilings", "describe_labels", "label_figures", "labels_text"]


def describe_labels(labels: pa.Table, useless: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what labels can tell, JSON-safe.

    Args:
        labels: rows of :func:`cfqa_data.format.schema.label_schema`.
        useless: task -> mean distortion of a useless feature, where it is known.

    Returns:
        ``labels``, rows of :func:`label_figures`, ``ceilings``, task -> :func:`ceilings`, and
        ``useless``.
    """
    rows = label_figures(labels, useless)
    return {"labels": rows, "ceilings": ceilings(labels), "useless": dict(useless)}


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
    for grid in read_grids(labels):
        distortions, whole = _values(labels, "distortion")[grid.rows], useless.get(grid.task)
        for codec, versions in grid.codecs.items():
            distortion = distortions[:, versions]
            levels = distortion.shape[1]
            equal = (distortion[:, :, None] == distortion[:, None, :]).sum() - distortion.size
            pairs = len(distortion) * levels * (levels - 1)
            best, worst = (
                float(distortion[:, level].mean()) / whole if whole and whole > 0 else None
                for level in (0, -1)
            )
            rows.append(
                {
                    "task": grid.task,
                    "codec": codec,
                    "negative": float((distortion < 0).mean()),
                    "constant": float((distortion == distortion[:, :1]).all(axis=1).mean()),
                    "tied": float(equal / pairs) if pairs else None,
                    "harm_best": best,
                    "harm_worst": worst,
                }
            )
    return rows


def ceilings(labels: pa.Table) -> dict[str, float | None]:
    """Return how well each task's own loss orders its distortions: what a metric may hope for.

    It is the mean over sources of the SROCC of loss and distortion over all versions of a source,
    by the rules of `cfqa eval`: sources of constant distortion are left out, and a constant loss
    counts 0. The loss sees truth and head, which a metric of features does not.

    Returns:
        Task -> ceiling; None where it has no loss, or all distortions of every source are the same.
    """
    found: dict[str, float | None] = {}
    for grid in read_grids(labels):
        distortion, loss = (_values(labels, name)[grid.rows] for name in ("distortion", "loss"))
        varying = ~constant_rows(distortion)
        found[grid.task] = None
        if varying.any() and not np.isnan(loss).any():
            each = np.nan_to_num(spearman(loss[varying], distortion[varying]))
            found[grid.task] = float(each.mean())
    return found


def _values(labels: pa.Table, column: str) -> np.ndarray:
    return np.asarray(labels[column].to_numpy(), np.float64)


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
