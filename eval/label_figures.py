"""What labels can tell at most: negative, constant and tied distortions, and a ceiling per task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.console.text import percent, table_text
from cfqa_data.eval.statistics.correlations import constant_rows, spearman
from cfqa_data.eval.statistics.grids import Grid, read_grids

__all__ = ["ceilings", "describe_labels", "labels_text"]


def describe_labels(
    labels: pa.Table, useless: Mapping[str, float | None] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what labels can tell, JSON-safe.

    Args:
        labels: Rows of :func:`cfqa_data.format.schema.label_schema`.
        useless: Task -> mean distortion of a useless feature, where it is known.

    Returns:
        ``labels``: rows with ``task``, ``codec``, ``negative`` (share of distortions below 0: the
        compressed feature scores better than its original), ``constant`` (share of sources whose
        distortion is the same at all levels), ``tied`` (share of pairs of levels of a source that
        have the same distortion; None of one level), ``harm_best`` and ``harm_worst`` (shares of a
        useless feature's mean distortion that the first and the last level have; None where
        unknown). ``ceilings``: task -> how well its own loss orders its distortions, which is what
        a metric may hope for: the mean over sources of the SROCC of loss and distortion over all
        versions of a source, by the rules of `cfqa eval` (sources of constant distortion are left
        out, a constant loss counts 0); None where there is no loss, or nothing varies. The loss
        sees truth and head, which a metric of features does not. And ``useless`` as it was given.
    """
    rows: list[dict[str, Any]] = []
    for grid in read_grids(labels):
        rows += _shares(grid, _column(labels, "distortion", grid), useless.get(grid.task))
    known = {task: figures["source"] for task, figures in ceilings(labels).items()}
    return {"labels": rows, "ceilings": known, "useless": dict(useless)}


def ceilings(labels: pa.Table) -> dict[str, dict[str, float | None]]:
    """Return the SROCC of each task's loss with its distortion: ``source``, its mean over sources,
    and ``pooled``, that of all points; None where there is no loss, or nothing varies.
    """
    found: dict[str, dict[str, float | None]] = {}
    for grid in read_grids(labels):
        distortion, loss = (_column(labels, name, grid) for name in ("distortion", "loss"))
        varying = ~constant_rows(distortion)
        if np.isnan(loss).any() or not varying.any():
            found[grid.task] = {"source": None, "pooled": None}
            continue
        mean = np.nan_to_num(spearman(loss[varying], distortion[varying])).mean()
        pooled = np.nan_to_num(spearman(loss.reshape(1, -1), distortion.reshape(1, -1)))[0]
        found[grid.task] = {"source": float(mean), "pooled": float(pooled)}
    return found


def _column(labels: pa.Table, name: str, grid: Grid) -> np.ndarray:
    return np.asarray(np.asarray(labels[name].to_numpy(), np.float64)[grid.rows])


def _shares(grid: Grid, distortions: np.ndarray, whole: float | None) -> Iterator[dict[str, Any]]:
    for codec, versions in grid.codecs.items():
        distortion = distortions[:, versions]
        levels = distortion.shape[1]
        equal = (distortion[:, :, None] == distortion[:, None, :]).sum() - distortion.size
        pairs = len(distortion) * levels * (levels - 1)
        best, worst = (
            float(distortion[:, level].mean()) / whole if whole and whole > 0 else None
            for level in (0, -1)
        )
        yield {
            "task": grid.task,
            "codec": codec,
            "negative": float((distortion < 0).mean()),
            "constant": float((distortion == distortion[:, :1]).all(axis=1).mean()),
            "tied": float(equal / pairs) if pairs else None,
            "harm_best": best,
            "harm_worst": worst,
        }


def labels_text(described: Mapping[str, Any]) -> str:
    """Return what :func:`describe_labels` found as `cfqa info` prints it."""
    columns = {
        "negative": "negative",
        "constant": "constant",
        "tied": "tied",
        "harm_best": "best",
        "harm_worst": "worst, of uninformative",
    }
    rows = described["labels"]
    shown = [name for name in columns if any(row[name] is not None for row in rows)]
    cells = [[row["task"], row["codec"], *(percent(row[n], 1) for n in shown)] for row in rows]
    lines = [
        f"{task}: label ceiling {value:.3f}, the SROCC of its own loss with the distortion"
        for task, value in described["ceilings"].items()
        if value is not None
    ]
    table = table_text([["task", "codec", *(columns[name] for name in shown)], *cells], left=2)
    return "\n".join([table, *([""] if lines else []), *lines])
