"""Format an evaluation as plain text: in the published layout, or with every figure's interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cfqa_data.console.text import table_text

if TYPE_CHECKING:
    from cfqa_data.eval.results import Evaluation

__all__ = ["LAYOUTS", "figure_text", "gaps", "paper_heads", "paper_text", "plain_text"]

NOTE = (
    "Signs are kept: a metric where lower is better should be positive, any other negative.\n"
    "A source with a constant label is left out; a metric that is constant on a source counts 0."
)


BETTER = {None: "?", True: "lower", False: "higher"}
"""Which scores are better, by a metric's ``lower_better``."""


def paper_heads(metrics: Sequence[str]) -> list[list[str]]:
    """Return the two rows of heads of the published table, without its last columns."""
    rows = [["codec", "task"], ["", ""]]
    for name in metrics:
        rows[0] += [name, ""]
        rows[1] += ["PLCC", "SROCC"]
    return rows


def paper_text(evaluation: Evaluation) -> str:
    """Lay the figures out as the published table: codec and task by metric, PLCC and SROCC."""
    rows = paper_heads([metric.name for metric in evaluation.metrics])
    rows[0].append("sources")
    rows[1].append("used")
    together = _together(evaluation)
    figures = evaluation.correlations.to_pylist() + together
    for codec in dict.fromkeys(row["codec"] for row in figures):
        rows += _paper_rows(codec, [row for row in figures if row["codec"] == codec])
    title = [f"Correlation with the {evaluation.target} (larger is worse), per source, averaged."]
    if together:
        points = {row["task"]: row["n_versions"] for row in together}
        counts = ", ".join(f"{n} ({task})" for task, n in points.items())
        if len(set(points.values())) == 1:
            counts = str(together[0]["n_versions"])
        title.append(f"All codecs: over the {counts} points that a source has from all of them.")
    return "\n".join([*title, "", table_text(rows, left=2, heads=2), "", *_notes(evaluation)])


def plain_text(evaluation: Evaluation) -> str:
    """Lay out every figure there is with its interval, one row per task, codec and metric."""
    rows = evaluation.correlations.to_pylist() + _together(evaluation)
    everything = evaluation.across_tasks.to_pylist()
    notes = _notes(evaluation)
    if everything and everything[0]["tasks"] > 1:
        rows += [row | {"task": "all", "codec": "all"} for row in everything]
        lacking: dict[str, list[str]] = {}
        for name, gap in gaps(evaluation).items():
            lacking.setdefault(gap, []).append(name)
        notes += [
            f"Over all tasks, not to be ranked with the others: {', '.join(names)} ({gap})."
            for gap, names in lacking.items()
        ]
    heads = ["task", "codec", "metric", "better"]
    places = [
        [row["task"], row["codec"], row["metric"], BETTER[row["lower_better"]]] for row in rows
    ]
    per_source = [
        [*heads, "PLCC", "SROCC", "KROCC", "valid", "constant", "missing", "flat", "group"]
    ]
    pooled = [[*heads, "PLCC", "SROCC", "KROCC", "points", "mapped PLCC", "RMSE", "mapping"]]
    for row, place in zip(rows, places, strict=True):
        counts = [str(row[name]) for name in ("n_valid", "n_constant", "n_missing", "n_flat")]
        group = row["srocc_group"]
        per_source.append(
            [*place, *_with_intervals(row, ""), *counts, "-" if group is None else str(group)]
        )
        rmse = "-" if row["mapped_rmse"] is None else f"{row['mapped_rmse']:.4g}"
        mapped = [figure_text(row["mapped_plcc"]), rmse, row["mapping"] or "-"]
        pooled.append([*place, *_with_intervals(row, "pooled_"), str(row["n_pooled"]), *mapped])
    parts = [
        f"Correlation with the {evaluation.target} (larger is worse), and 95% intervals over the "
        "sources.",
        "Per source, averaged; group: how many metrics have a significantly better SROCC there.",
        table_text(per_source, left=4),
        "All points of all sources together; mapped: after a fitted logistic, or else a line.",
        table_text(pooled, left=4),
        "Telling two versions of a source apart, and saying which is worse: areas under the curve.",
        table_text(_discrimination(evaluation), left=3),
        *notes,
    ]
    return "\n\n".join(parts)


def gaps(evaluation: Evaluation) -> dict[str, str]:
    """Return the metrics whose means are over fewer sources than those of others, and which.

    Means over different sources are not comparable: one source is harder than another.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.across_codecs.to_pylist():
        tasks.setdefault(row["task"], []).append(row)
    found: dict[str, list[str]] = {}
    for task, rows in tasks.items():
        most = max(row["n_valid"] for row in rows)
        for row in rows:
            if (valid := row["n_valid"]) < most:
                gap = f"only {valid} of {most} sources of task {task}"
                found.setdefault(row["metric"], []).append(
                    gap if valid else f"no figure on task {task}"
                )
    return {name: ", ".join(of_metric) for name, of_metric in found.items()}


def _with_intervals(row: dict[str, Any], prefix: str) -> list[str]:
    """Return the three correlations of a row, each as "0.6435 [0.612, 0.668]"."""
    cells = []
    for name in ("plcc", "srocc", "krocc"):
        low, high = (row[f"{prefix}{name}_{end}"] for end in ("low", "high"))
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        cells.append(figure_text(row[prefix + name]) + interval)
    return cells


def _discrimination(evaluation: Evaluation) -> list[list[str]]:
    rows = [["task", "metric", "better", "from", "pairs apart", "alike", "different", "worse"]]
    for row in evaluation.discrimination.to_pylist():
        areas = [figure_text(row[name]) for name in ("auc_different", "auc_better")]
        counts = [str(row["n_different"]), str(row["n_similar"])]
        threshold = f"{row['threshold']:g}"
        better = BETTER[row["lower_better"]]
        rows.append([row["task"], row["metric"], better, threshold, *counts, *areas])
    return rows


LAYOUTS = {"paper": paper_text, "plain": plain_text}
"""Name of a layout -> what writes it."""


def _together(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the rows over all codecs; none where there is but one codec."""
    rows = evaluation.across_codecs.to_pylist()
    return [row | {"codec": f"all {row['codecs']}"} for row in rows if row["codecs"] > 1]


def _paper_rows(codec: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return one line per task from the rows of one codec."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        line = [codec, task]
        for row in of_task:
            line += [figure_text(row["plcc"]), figure_text(row["srocc"])]
        valid = max(row["n_valid"] for row in of_task)
        lines.append([*line, f"{valid} of {_sources(of_task[0])}"])
    return lines


def _sources(row: dict[str, Any]) -> int:
    """Return how many sources a row of figures is of, with those that are left out."""
    return int(row["n_valid"] + row["n_constant"] + row["n_missing"])


def _notes(evaluation: Evaluation) -> list[str]:
    """Return what is to be said below the tables."""
    notes = [NOTE]
    if evaluation.scores["value"].null_count:
        notes.append("A source for which a metric lacks a score is left out for that metric.")
    levels: dict[int, dict[str, None]] = {}
    for row in evaluation.correlations.to_pylist():
        levels.setdefault(row["n_versions"], {})[f"{row['codec']} ({row['task']})"] = None
    if len(levels) > 1:
        counts = "; ".join(f"{n} of {', '.join(of)}" for n, of in sorted(levels.items()))
        notes.append(f"Codecs have different numbers of levels: {counts}.")
    if "group" in evaluation.labels.column_names:
        rows = evaluation.labels.select(["task", "source_id", "group"]).to_pylist()
        groups = {(row["task"], row["source_id"]): row["group"] or row["source_id"] for row in rows}
        if len({(task, group) for (task, _), group in groups.items()}) < len(groups):
            notes.append("Sources of a group are drawn together for the intervals.")
    return [*notes, *evaluation.notes.values()]


def figure_text(value: float | None) -> str:
    """Return a correlation with four decimals, or "-" where there is none."""
    return "-" if value is None else f"{value:.4f}"
