"""An evaluation as plain text: the published layout, or one line per figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfqa_data.text import table_text

if TYPE_CHECKING:
    from cfqa_data.eval.evaluator import Evaluation

__all__ = ["LAYOUTS", "figure_text", "paper_text", "plain_text"]

NOTE = (
    "Signs are kept: a metric where lower is better should be positive, any other negative.\n"
    "A source with a constant label is left out; a metric that is constant on a source counts 0."
)


def paper_text(evaluation: Evaluation) -> str:
    """Lay the figures out as the published table: codec and task by metric, PLCC and SROCC."""
    metrics = [metric.name for metric in evaluation.metrics]
    rows = [["codec", "task"], ["", ""]]
    for name in metrics:
        rows[0] += [name, ""]
        rows[1] += ["PLCC", "SROCC"]
    rows[0].append("sources")
    rows[1].append("used")

    by_codec = evaluation.correlations.to_pylist()
    for codec in dict.fromkeys(row["codec"] for row in by_codec):
        rows += _paper_rows(codec, [row for row in by_codec if row["codec"] == codec])
    title = [f"Correlation with the {evaluation.target} (larger is worse), per source, averaged."]
    together = _together(evaluation)
    if together:
        rows += _paper_rows(together[0]["codec"], together)
        points = together[0]["n_pooled"] // (together[0]["n_valid"] + together[0]["n_constant"])
        title.append(f"All codecs: over the {points} points that a source has from all of them.")
    return "\n".join([*title, "", table_text(rows, left=2, heads=2), "", NOTE])


def plain_text(evaluation: Evaluation) -> str:
    """Lay out every figure there is, one row per task, codec and metric."""
    figures = ["plcc", "srocc", "pooled_plcc", "pooled_srocc"]
    counts = ["n_valid", "n_constant", "n_flat", "n_pooled"]
    rows = [["task", "codec", "metric", "better", *figures, *counts]]
    better = {None: "?", True: "lower", False: "higher"}
    for row in evaluation.correlations.to_pylist() + _together(evaluation):
        rows.append(
            [row["task"], row["codec"], row["metric"], better[row["lower_better"]]]
            + [figure_text(row[name]) for name in figures]
            + [str(row[name]) for name in counts]
        )
    title = f"Correlation with the {evaluation.target} (larger is worse)."
    return "\n".join([title, "", table_text(rows, left=4), "", NOTE])


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
        valid, constant = of_task[0]["n_valid"], of_task[0]["n_constant"]
        lines.append([*line, f"{valid} of {valid + constant}"])
    return lines


def figure_text(value: float | None) -> str:
    """Return a correlation with four decimals, or "-" where there is none."""
    return "-" if value is None else f"{value:.4f}"
