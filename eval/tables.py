"""Tables of one figure by metric and task, as LaTeX, Markdown, CSV, text or a data frame."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeAlias

from cfqa_data.console.text import WIDTH, table_text
from cfqa_data.errors import MetricError, MissingDependencyError, unknown_name
from cfqa_data.eval.text import gaps

if TYPE_CHECKING:
    from cfqa_data.eval.results import Evaluation

__all__ = ["FIGURES", "KINDS", "figures_table", "latex_text", "markdown_safe", "markdown_text"]

FIGURES = (
    *("srocc", "plcc", "krocc", "pooled_srocc", "pooled_plcc", "pooled_krocc"),
    *("mapped_plcc", "mapped_rmse"),
)
"""Columns of the statistics that a table can show."""

UNSIGNED = ("mapped_plcc", "mapped_rmse")
"""Figures whose sign does not depend on the direction of the metric."""

Cells: TypeAlias = Sequence[Sequence[str]]
NO_CELLS: frozenset[tuple[int, int]] = frozenset()

KINDS = ("text", "latex", "markdown", "csv", "pandas")

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}
"""Special characters of LaTeX -> their escapes."""


def figures_table(
    evaluation: Evaluation,
    kind: str = "text",
    figure: str = "srocc",
    *,
    oriented: bool = True,
    bold_best: bool = True,
) -> Any:
    """Return a table of metrics by tasks, all codecs pooled; see `Evaluation.table`."""
    for what, value, known in (("kind of table", kind, KINDS), ("figure", figure, FIGURES)):
        if value not in known:
            raise MetricError(unknown_name(what, value, known))
    rows = evaluation.across_codecs.to_pylist()
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(tasks) > 1:
        rows += [row | {"task": "all"} for row in evaluation.across_tasks.to_pylist()]
        tasks.append("all")
    numbers: dict[str, dict[str, float | None]] = {m.name: {} for m in evaluation.metrics}
    best: dict[str, tuple[float, str]] = {}
    incomplete = gaps(evaluation)
    most = {task: max(row["n_valid"] for row in rows if row["task"] == task) for task in tasks}
    fewer = {(row["metric"], row["task"]) for row in rows if row["n_valid"] < most[row["task"]]}
    fewer |= {(name, "all") for name in incomplete}
    for row in rows:
        name, task, value = row["metric"], row["task"], row[figure]
        signed = value is not None and figure not in UNSIGNED
        flipped = -value if signed and row["lower_better"] is False else value
        numbers[name][task] = flipped if oriented else value
        merit = -value if value is not None and figure == "mapped_rmse" else flipped
        directed = figure in UNSIGNED or row["lower_better"] is not None
        if merit is not None and directed and (name, task) not in fewer:
            best[task] = max(best.get(task, (merit, name)), (merit, name))
    if kind == "pandas":
        return _frame(numbers, tasks)
    if kind == "csv":
        lines = [["metric", *tasks], *([name, *row.values()] for name, row in numbers.items())]
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(lines)
        return file.getvalue().rstrip("\n")
    cells, bold = [["metric", *tasks]], set()
    for y, (name, values) in enumerate(numbers.items(), 1):
        texts = {task: "-" if values[task] is None else f"{values[task]:.3f}" for task in tasks}
        texts |= {t: f"({text})" for t, text in texts.items() if (name, t) in fewer and text != "-"}
        cells.append([name, *texts.values()])
        for x, task in enumerate(tasks, 1):
            if bold_best and task in best and best[task][1] == name:
                bold.add((y, x))
    text = {"text": plain_text, "latex": latex_text, "markdown": markdown_text}[kind](cells, bold)
    notes = [f"In parentheses, not comparable: {name}, {gap}." for name, gap in incomplete.items()]
    if not notes:
        return text
    if kind == "latex":
        return "\n".join([text, *(f"% {note}" for note in notes)])
    return "\n".join([text, "", *map(markdown_safe if kind == "markdown" else str, notes)])


def plain_text(cells: Cells, bold: Set[tuple[int, int]] = NO_CELLS) -> str:
    """Format rows of cells, the header first, as text with a star at the bold ones."""
    marked = [
        [row[0], *(f"{cell}{'*' if (y, x) in bold else ' '}" for x, cell in enumerate(row[1:], 1))]
        for y, row in enumerate(cells)
    ]
    return table_text(marked, width=WIDTH)


def latex_text(cells: Cells, bold: Set[tuple[int, int]] = NO_CELLS) -> str:
    """Format rows of cells, the header first, as a LaTeX ``tabular`` with booktabs.

    Args:
        cells: Texts of the cells.
        bold: Row and column of each bold cell.
    """

    def line(number: int, row: Sequence[str]) -> str:
        texts = [
            f"\\textbf{{{safe(cell)}}}" if (number, column) in bold else safe(cell)
            for column, cell in enumerate(row)
        ]
        return " & ".join(texts) + " \\\\"

    def safe(text: str) -> str:
        text = re.sub(r"[\\~^&%$#_{}]", lambda match: LATEX[match[0]], text)
        return re.sub(r"^-(?=\d)", "$-$", text)

    lines = [line(number, row) for number, row in enumerate(cells)]
    columns = "l" + "r" * (len(cells[0]) - 1)
    top = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", lines[0], "\\midrule"]
    return "\n".join([*top, *lines[1:], "\\bottomrule", "\\end{tabular}"])


def markdown_safe(text: str) -> str:
    """Escape the Markdown markup in a text."""
    return re.sub(r"([\\|*_`<\[])", r"\\\1", text)


def markdown_text(cells: Cells, bold: Set[tuple[int, int]] = NO_CELLS) -> str:
    """Format rows of cells, the header first, as a Markdown table; see `latex_text`."""

    def line(number: int, row: Sequence[str]) -> str:
        texts = [markdown_safe(" ".join(cell.split())) for cell in row]
        marked = [
            f"**{text}**" if (number, column) in bold else text for column, text in enumerate(texts)
        ]
        return f"| {' | '.join(marked)} |"

    rule = "|---" + "|---:" * (len(cells[0]) - 1) + "|"
    lines = [line(number, row) for number, row in enumerate(cells)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _frame(numbers: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> Any:
    try:
        import pandas
    except ModuleNotFoundError:
        message = "pandas is not installed: pip install pandas"
        raise MissingDependencyError(message, name="pandas") from None
    rows = [[values[task] for task in tasks] for values in numbers.values()]
    index = pandas.Index(list(numbers), name="metric")
    return pandas.DataFrame(rows, index=index, columns=list(tasks), dtype=float)
