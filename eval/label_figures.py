"""Label sanity checks: negative, constant and tied distortions, and the label ceiling."""

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
    """Compute the label sanity checks, as JSON types.

    Args:
        labels: Rows of :func:`cfqa_data.format.schema.label_schema`.
        useless: Task -> mean distortion of an uninformative feature, if known.

    Returns:
        A dictionary of three entries. ``labels`` has a row per task and codec: ``negative``, the
        share of distortions below 0 (the compressed feature scores better than its original);
        ``constant``, the share of sources with the same distortion at all levels; ``tied``, the
        share of pairs of levels of a source with the same distortion (None for a single level);
        ``harm_best`` and ``harm_worst``, the mean distortion of the first and last level as a share
        of that of an uninformative feature (None if unknown). ``ceilings`` has the label ceiling of
        each task, ``source`` of `ceilings`. ``useless`` is the argument.
    """
    rows: list[dict[str, Any]] = []
    for grid in read_grids(labels):
        rows += _shares(grid, _column(labels, "distortion", grid), useless.get(grid.task))
    per_source = {task: figures["source"] for task, figures in ceilings(labels).items()}
    return {"labels": rows, "ceilings": per_source, "useless": dict(useless)}


def ceilings(labels: pa.Table) -> dict[str, dict[str, float | None]]:
    """Return the label ceiling of each task: the SROCC of its own loss with the distortion.

    It is a practical upper bound for metrics, which see neither the ground truth nor the head.

    Returns:
        By task, ``source``, the mean SROCC over the sources, by the rules of `cfqa eval` (sources
        with constant distortion are left out, a constant loss counts as 0), and ``pooled``, the
        SROCC of all points. Both are None if there is no loss or no distortion varies.
    """
    result: dict[str, dict[str, float | None]] = {}
    for grid in read_grids(labels):
        distortion, loss = (_column(labels, name, grid) for name in ("distortion", "loss"))
        varying = ~constant_rows(distortion)
        if np.isnan(loss).any() or not varying.any():
            result[grid.task] = {"source": None, "pooled": None}
            continue
        mean = np.nan_to_num(spearman(loss[varying], distortion[varying])).mean()
        pooled = np.nan_to_num(spearman(loss.reshape(1, -1), distortion.reshape(1, -1)))[0]
        result[grid.task] = {"source": float(mean), "pooled": float(pooled)}
    return result


def _column(labels: pa.Table, name: str, grid: Grid) -> np.ndarray:
    return np.asarray(np.asarray(labels[name].to_numpy(), np.float64)[grid.rows])


def _shares(grid: Grid, distortions: np.ndarray, useless: float | None) -> Iterator[dict[str, Any]]:
    """Yield the sanity checks of each codec of a task."""
    for codec, versions in grid.codecs.items():
        distortion = distortions[:, versions]
        levels = distortion.shape[1]
        equal = (distortion[:, :, None] == distortion[:, None, :]).sum() - distortion.size
        pairs = len(distortion) * levels * (levels - 1)
        best, worst = (
            float(distortion[:, level].mean()) / useless if useless and useless > 0 else None
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
    """Format the result of :func:`describe_labels` for `cfqa info`."""
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
