"""Plot rate-distortion curves with matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.eval.features.datasets import facts_of
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.eval.curves import Curves
    from cfqa_data.format.facts import TaskFacts

__all__ = ["draw_curves"]

MARKERS = "osD^vP*X<>"

MAX_LINE = 26
"""Maximum number of characters in a line of an axis label."""


@extras("build")
def draw_curves(
    curves: Curves,
    path: Path,
    tasks: Mapping[str, TaskFacts] | None = None,
    suffix: str | None = None,
) -> None:
    """Plot curves into a file, one row of panels per task and one column per quality.

    Args:
        curves: The curves.
        path: File to write.
        tasks: Facts of the tasks by name, for the titles.
        suffix: File format: ``.svg``, ``.pdf`` or ``.png``; by default the suffix of ``path``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = curves.points.to_pylist()
    names, qualities, codecs = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "quality", "codec")
    )
    size = (1 + 3.6 * len(qualities), 0.6 + 2.8 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(qualities), squeeze=False)
    lines: dict[str, Any] = {}
    for place, axis in np.ndenumerate(axes):
        task, quality = names[place[0]], qualities[place[1]]
        facts = facts_of(task, tasks or {})
        cell = [row for row in rows if (row["task"], row["quality"]) == (task, quality)]
        for number, codec in enumerate(codecs):
            points = [row for row in cell if row["codec"] == codec and row["bpfp"]]
            if points:
                xy = ([row["bpfp"] for row in points], [row["value"] for row in points])
                marker = MARKERS[number % len(MARKERS)]
                (lines[codec],) = axis.plot(*xy, marker=marker, color=f"C{number}", markersize=4)
        if cell:
            axis.set_ylabel(label_text(_name_with_unit(quality, facts), cell[0]["better"]))
        axis.set(xscale="log", xlabel="bits per feature point", title=facts.title)
        axis.grid(alpha=0.3, which="both")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5)
    kind = (suffix or path.suffix)[1:]
    # Without dates, equal curves give equal bytes.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "cfqa"}):
        figure.savefig(path, format=kind, dpi=110, metadata=dates.get(kind))


def label_text(words: str, better: str) -> str:
    """Return an axis label, wrapped to the height of a panel."""
    return textwrap.fill(words, MAX_LINE) + f"\n({better} is better)"


def _name_with_unit(quality: str, facts: TaskFacts) -> str:
    quantity = {"score": facts.score, "loss": facts.loss}.get(quality)
    if quantity is None:
        return quality
    return f"{quantity.name} in {quantity.unit}" if quantity.unit else quantity.name
