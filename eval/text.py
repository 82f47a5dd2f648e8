"""Format an evaluation as text: as the published table, or with all figures and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.console.text import WIDTH, table_text

if TYPE_CHECKING:
    from cfqa_data.eval.results import Evaluation

__all__ = [
    "LAYOUTS",
    "figure_text",
    "gaps",
    "in_groups",
    "ladders_text",
    "paper_heads",
    "paper_text",
    "plain_text",
    "trained_names",
]

NOTE = (
    "Signs are raw: a metric where lower is better should be positive, any other negative.\n"
    "Sources with a constant label are left out; a metric that is constant on a source counts 0."
)

BETTER = {None: "?", True: "lower", False: "higher"}
"""``lower_better`` of a metric -> which scores are better."""

PLACE = "task=task, codec=codec, metric=metric, better=lower_better"
PER_SOURCE = (
    f"{PLACE}, PLCC=plcc, SROCC=srocc, KROCC=krocc, valid=n_valid, constant=n_constant, "
    "missing=n_missing, flat=n_flat, group=srocc_group"
)
POOLED = (
    f"{PLACE}, PLCC=pooled_plcc, SROCC=pooled_srocc, KROCC=pooled_krocc, points=n_pooled, "
    "mapped PLCC=mapped_plcc, RMSE=mapped_rmse, mapping=mapping"
)
DISCRIMINATION = (
    "task=task, metric=metric, better=lower_better, from=threshold, n different=n_different, "
    "n similar=n_similar, AUC different=auc_different, AUC worse=auc_better"
)
LEFT_OUT = (
    "task=task, codec=codec, metric=metric, better=lower_better, correct=pairs, "
    "valid=n_valid, group=pairs_group"
)
"""Columns of the text tables: header=column of the statistics."""

FORMATS = {"mapped_rmse": ".4g", "threshold": "g"}
"""Number formats of columns that are not correlations."""


def paper_heads(metrics: Sequence[str]) -> list[list[str]]:
    """Return the two header rows of the published table, without its last columns."""
    rows = [["codec", "task"], ["", ""]]
    for name in metrics:
        rows[0] += [name, ""]
        rows[1] += ["PLCC", "SROCC"]
    return rows


def paper_text(evaluation: Evaluation) -> str:
    """Format PLCC and SROCC as the published table: codec and task by metric."""
    rows = paper_heads([metric.name for metric in evaluation.metrics])
    rows[0].append("sources")
    rows[1].append("used")
    pooled = _all_codecs(evaluation)
    figures = evaluation.correlations.to_pylist() + pooled
    for codec in dict.fromkeys(row["codec"] for row in figures):
        rows += _paper_rows(codec, [row for row in figures if row["codec"] == codec])
    title = [f"Correlation with the {evaluation.target} (larger is worse), per source, averaged."]
    if pooled:
        points = {row["task"]: row["n_versions"] for row in pooled}
        counts = ", ".join(f"{n} ({task})" for task, n in points.items())
        if len(set(points.values())) == 1:
            counts = str(pooled[0]["n_versions"])
        title.append(f"All codecs: over the {counts} points of a source from all codecs, pooled.")
    parts = [
        "\n".join(title),
        _paper_table(rows),
        *_left_out(evaluation),
    ]
    return "\n\n".join([*parts, "\n".join(_notes(evaluation))])


def _paper_table(rows: list[list[str]]) -> str:
    """Format rows whose last cell counts sources; a wide table repeats it in every part."""
    text = table_text(rows, left=2, heads=2)
    if max(map(len, text.splitlines())) <= WIDTH:
        return text
    moved = [[*row[:2], row[-1], *row[2:-1]] for row in rows]
    return table_text(moved, left=3, heads=2, width=WIDTH, group=2)


def plain_text(evaluation: Evaluation) -> str:
    """Format all figures with their intervals, one row per task, codec and metric."""
    rows = evaluation.correlations.to_pylist() + _all_codecs(evaluation)
    everything = evaluation.across_tasks.to_pylist()
    notes = _notes(evaluation)
    if everything and everything[0]["tasks"] > 1:
        rows += [row | {"task": "all", "codec": "all"} for row in everything]
    parts = [
        f"Correlation with the {evaluation.target} (larger is worse), 95% confidence intervals "
        "over the sources.",
        "Per source, averaged; group: number of metrics with a significantly better SROCC.",
        _table(rows, PER_SOURCE),
        "Pooled over all sources; mapped: after a fitted logistic, or else a line.",
        _table(rows, POOLED),
        "Classifying pairs of versions of a source as different, and which is worse: area under "
        "the curve.",
        _table(evaluation.discrimination.to_pylist(), DISCRIMINATION),
        *_left_out(evaluation),
        *notes,
    ]
    return "\n\n".join(parts)


def _left_out(evaluation: Evaluation) -> list[str]:
    """Return a title and the table ``left_out``, or nothing if it has no rows."""
    rows, trained = evaluation.left_out.to_pylist(), ", ".join(trained_names(evaluation))
    title = (
        "Share of correctly ordered pairs of a version by this codec and one by another codec.\n"
        f"{trained}: trained without that codec. group: number of significantly better metrics."
    )
    return [title, _table(rows, LEFT_OUT)] if rows else []


def trained_names(evaluation: Evaluation) -> list[str]:
    """Return the names of the metrics that were also trained without each codec."""
    return list(dict.fromkeys(metric.base_name for metric in evaluation.without))


def _table(rows: Sequence[Mapping[str, Any]], columns: str) -> str:
    """Format columns of statistics; the columns up to the direction are texts."""
    header, names = zip(*(column.split("=") for column in columns.split(", ")), strict=True)
    lines = [list(header)] + [[_cell(row, name) for name in names] for row in rows]
    return table_text(lines, left=header.index("better") + 1, width=WIDTH)


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Return a figure as text, with its interval if any, such as "0.6435 [0.612, 0.668]"."""
    value = row[name]
    if name == "lower_better":
        return BETTER[value]
    if value is None or isinstance(value, str | int):
        return "-" if value is None else str(value)
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value:{FORMATS.get(name, '.4f')}}{interval}"


def gaps(evaluation: Evaluation) -> dict[str, str]:
    """Describe, by metric, where its means cover fewer sources than those of other metrics.

    Means over different sources are not comparable: one source is harder than another.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.across_codecs.to_pylist():
        tasks.setdefault(row["task"], []).append(row)
    by_metric: dict[str, list[str]] = {}
    for task, rows in tasks.items():
        most = max(row["n_valid"] for row in rows)
        for row in rows:
            if (valid := row["n_valid"]) < most:
                gap = f"only {valid} of {most} sources of task {task}"
                by_metric.setdefault(row["metric"], []).append(
                    gap if valid else f"no result on task {task}"
                )
    return {name: ", ".join(descriptions) for name, descriptions in by_metric.items()}


LAYOUTS = {"paper": paper_text, "plain": plain_text}
"""Name of a layout -> the function that formats it."""


def _all_codecs(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the rows of all codecs pooled; empty if there is only one codec."""
    rows = evaluation.across_codecs.to_pylist()
    return [row | {"codec": f"all {row['codecs']}"} for row in rows if row["codecs"] > 1]


def _paper_rows(codec: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return a line of the published table for each task, from the rows of one codec."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        valid = max(row["n_valid"] for row in of_task)
        line = [codec, task]
        for row in of_task:
            line += [figure_text(row["plcc"]), figure_text(row["srocc"])]
        lines.append([*line, f"{valid} of {_sources(of_task[0])}"])
    return lines


def _sources(row: dict[str, Any]) -> int:
    """Return the number of sources of a row, including those that are left out."""
    return int(row["n_valid"] + row["n_constant"] + row["n_missing"])


def _notes(evaluation: Evaluation) -> list[str]:
    """Return the notes below the tables."""
    notes = [NOTE]
    names = evaluation.failures.keys() - {metric.name for metric in evaluation.metrics}
    if failed := sorted(name for name in names if Path(name).suffix not in (".parquet", ".csv")):
        notes.append(f"Without a column, since no feature could be scored: {', '.join(failed)}.")
    if evaluation.scores["value"].null_count:
        notes.append("A source for which a metric lacks a score is left out for that metric.")
    by_gap: dict[str, list[str]] = {}
    for name, gap in gaps(evaluation).items():
        by_gap.setdefault(gap, []).append(name)
    notes += [
        f"Not ranked with the others: {', '.join(names)} ({gap})." for gap, names in by_gap.items()
    ]
    notes += [ladders_text(evaluation)] if ladders_text(evaluation) else []
    if in_groups(evaluation):
        notes.append("Confidence intervals resample groups of sources as a whole.")
    return [*notes, *evaluation.notes.values()]


def ladders_text(evaluation: Evaluation) -> str:
    """Describe the numbers of levels of the codecs; empty if all codecs have the same number."""
    ladders: dict[str, set[int]] = {}
    for row in evaluation.labels.select(["task", "codec", "level"]).to_pylist():
        ladders.setdefault(f"{row['codec']} ({row['task']})", set()).add(row["level"])
    levels: dict[int, list[str]] = {}
    for ladder, numbers in ladders.items():
        levels.setdefault(len(numbers), []).append(ladder)
    if len(levels) < 2:
        return ""
    counts = "; ".join(f"{n} of {', '.join(codecs)}" for n, codecs in sorted(levels.items()))
    return f"Codecs have different numbers of levels: {counts}."


def in_groups(evaluation: Evaluation) -> bool:
    """Return whether sources belong to groups, which are resampled as a whole."""
    if "group" not in evaluation.labels.column_names:
        return False
    rows = evaluation.labels.select(["task", "source_id", "group"]).to_pylist()
    groups = {(row["task"], row["source_id"]): row["group"] or row["source_id"] for row in rows}
    return len({(task, group) for (task, _), group in groups.items()}) < len(groups)


def figure_text(value: float | None) -> str:
    """Return a correlation with four decimals, or "-" if there is none."""
    return "-" if value is None else f"{value:.4f}"
