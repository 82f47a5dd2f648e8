"""Tables for papers, the list of metrics, and the leaderboard."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_dataset import FoldedDataset, MemoryDataset, rows_of
from mock_dataset import write_mock_dataset

from cfqa_data.cli import main
from cfqa_data.console.text import table_text
from cfqa_data.errors import MetricError
from cfqa_data.eval import Evaluation, Provenance, create_metric, evaluate, list_metrics
from cfqa_data.eval.report.leaderboard import (
    html_page,
    leaderboard,
    markdown_page,
    terminal_text,
)
from cfqa_data.eval.text import paper_text, plain_text

pytestmark = pytest.mark.usefixtures("quick_statistics")


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(FoldedDataset(), ["mse", "cosine", "snr_distance", "gap_mean"])


def figures(found: Evaluation, name: str = "srocc") -> dict[str, list[float]]:
    """By metric its figure per task and of all, oriented."""
    signs = {metric.name: -1 if metric.lower_better is False else 1 for metric in found.metrics}
    whole: dict[str, list[float]] = {metric: [] for metric in signs}
    for row in found.across_codecs.to_pylist() + found.across_tasks.to_pylist():
        whole[row["metric"]].append(signs[row["metric"]] * row[name])
    return whole


def test_a_table_has_a_figure_of_every_metric_and_task(found: Evaluation) -> None:
    expected = figures(found)
    frame = found.table("pandas")
    assert list(frame.columns) == ["cls", "seg", "all"]
    assert {name: row.tolist() for name, row in frame.iterrows()} == expected
    heads, *rows = csv.reader(io.StringIO(found.table("csv")))
    assert heads == ["metric", "cls", "seg", "all"]
    assert {name: [float(cell) for cell in of] for name, *of in rows} == expected
    signed = found.table("pandas", "plcc", oriented=False)
    plcc = figures(found, "plcc")
    assert signed.loc["cosine"].tolist() == [-value for value in plcc["cosine"]]
    assert signed.loc["mse"].tolist() == plcc["mse"]


@pytest.mark.parametrize("kind", ["latex", "markdown", "text"])
def test_the_best_of_each_column_stands_out(found: Evaluation, kind: str) -> None:
    expected = figures(found)
    best = [max(expected, key=lambda name: expected[name][place]) for place in range(3)]
    bold = {"latex": r"\\textbf\{(.+?)\}", "markdown": r"\*\*(.+?)\*\*", "text": r"(\S+)\*"}[kind]
    text = found.table(kind)
    for name, values in expected.items():
        shown = name.replace("_", r"\_") if kind != "text" else name
        (line,) = [
            line for line in text.splitlines() if re.match(rf"\W*{re.escape(shown)}\b", line)
        ]
        marked = [
            f"{value:.3f}" for value, first in zip(values, best, strict=True) if first == name
        ]
        assert re.findall(bold, line) == marked
        assert [f"{value:.3f}" for value in values] == re.findall(r"\d\.\d{3}", line)
    assert re.findall(bold, found.table(kind, bold_best=False)) == []


def test_a_smaller_error_is_the_best_and_an_unknown_direction_is_not(found: Evaluation) -> None:
    text = found.table("text", "mapped_rmse")
    rows = {r["metric"]: r["mapped_rmse"] for r in rows_of(found.across_codecs, task="seg")}
    best = min(rows, key=lambda name: rows[name])
    (line,) = [line for line in text.splitlines() if line.startswith(best)]
    assert f"{rows[best]:.3f}*" in line
    metrics = [replace(metric, lower_better=None) for metric in found.metrics]
    assert "*" not in found.rescored(found.labels, metrics, found.values).table("text")


def test_a_mean_over_fewer_sources_is_not_compared(found: Evaluation) -> None:
    values, rows = found.values.copy(), found.labels.to_pylist()
    first = next(row["source_id"] for row in rows[::-1] if row["task"] == "seg")
    values[[row["source_id"] == first for row in rows], 0] = np.nan
    part = found.rescored(found.labels, found.metrics, values)
    name = found.metrics[0].name
    counts = {r["metric"]: r["n_valid"] for r in rows_of(part.across_codecs, task="seg")}
    gap = f"only {counts[name]} of {counts[found.metrics[1].name]} sources of task seg"
    for kind in ("text", "latex", "markdown"):
        table = part.table(kind)
        (line,) = [line for line in table.splitlines() if re.match(rf"\W*{name}\b", line)]
        assert len(re.findall(r"\(\d\.\d{3}\)", line)) == 2  # of seg, and of all
        assert not re.search(r"\*\*\(|textbf\{\(|\)\*", line)
        assert f"{name}, {gap}" in table
    for layout in (paper_text, plain_text):
        assert f"Not ranked with the others: {name} ({gap})." in layout(part)
    assert "parentheses" not in found.table("text")


def test_names_are_text_in_latex_and_markdown(found: Evaluation) -> None:
    evil = [replace(found.metrics[0], name="a_b & 50% \\ #{x}|*y*")]
    one = found.rescored(found.labels, evil, found.values[:, :1])
    assert r"a\_b \& 50\% \textbackslash{} \#\{x\}|*y* & " in one.table("latex")
    assert r"| a\_b & 50% \\ #{x}\|\*y\* | " in one.table("markdown")


def test_what_there_is_no_table_of_is_told(found: Evaluation) -> None:
    for given, said in ((("word",), "unknown kind of table 'word'"), (("csv", "p"), "figure 'p'")):
        with pytest.raises(MetricError, match=said):
            found.table(*given)


def test_tables_of_many_metrics_fit_a_terminal(found: Evaluation) -> None:
    metrics = [replace(found.metrics[0], name=f"a_metric_of_some_{n}") for n in range(12)]
    many = found.rescored(found.labels, metrics, np.tile(found.values[:, :1], 12))
    for layout in (paper_text, plain_text):
        lines = layout(many).splitlines()
        tables = [line for line in lines if re.search(r"\d\.\d{4}|---", line)]
        assert max(map(len, tables)) <= 100
        assert {name for name in many.columns() if name in " ".join(lines)} == set(many.columns())
    assert max(map(len, many.table().splitlines())) <= 100


def test_a_table_that_is_too_wide_is_cut_between_groups() -> None:
    rows = [["at", "a", "b", "c", "d"], ["x", "1", "2", "3", "4"]]
    assert table_text(rows, width=14) == table_text(rows)
    first = table_text([row[:3] for row in rows])
    second = table_text([row[:1] + row[3:] for row in rows])
    assert table_text(rows, width=13, group=2) == f"{first}\n\n{second}"
    alone = [table_text([row[:1] + row[n : n + 1] for row in rows]) for n in range(1, 5)]
    assert table_text(rows, width=2) == "\n\n".join(alone)


def test_the_command_prints_tables_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_mock_dataset(tmp_path / "cfqa", sources=2), tmp_path / "scores.parquet"
    command = ["eval", str(folder), "--metric", "mse,cosine", "--out", str(out), "--table"]
    for kind in ("latex", "markdown", "csv"):
        assert main([*command, kind, "--figure", "krocc"]) == 0
        expected = evaluate(folder, ["mse", "cosine"]).table(kind, "krocc")
        assert capsys.readouterr().out == f"{expected}\n"
        stored = ["report", str(folder), str(out), "--table", kind, "--figure", "krocc"]
        assert main(stored) == 0
        assert capsys.readouterr().out == f"{expected}\n"
    page = tmp_path / "page.html"
    assert main(["report", str(folder), str(out), "--table", "paper", "--out", str(page)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Correlation with the distortion")
    assert said.err == f"Report: {page}\n"
    for wrong, message in (
        ([], "name a page with --out, or a --table"),
        (["--table", "csv", "--against", "mse"], "--against requires --out"),
        (["--table", "csv", "--figure", "far"], "unknown figure 'far'"),
    ):
        assert main(["report", str(folder), str(out), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "text"]) == 0
    assert f"Scores: {out}" in capsys.readouterr().out
    assert main([*command, "text", "--figure", "far"]) == 2
    capsys.readouterr()
    for kind in ("plain", "paper"):
        assert main([*command, kind, "--figure", "plcc"]) == 2
        said = capsys.readouterr()
        assert "--figure requires --table text, latex" in said.err
        assert said.out == ""


def test_the_list_of_metrics_tells_their_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    text = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line) for line in text.split("\n\n")[0].splitlines()]
    assert max(map(len, text.splitlines())) <= 100
    assert [row[0] for row in rows[2:]] == list_metrics()
    assert ["cka", "kernel", "higher", "0 to 1", "T2D", "yes", "-"] in rows
    assert ["gap_mean", "trained", "lower", "1e-09 to 2", "T2D", "yes", "labels"] in rows
    assert main(["metrics", "--family", "whitened", "--json"]) == 0
    facts = {one["name"]: one for one in json.loads(capsys.readouterr().out)["metrics"]}
    assert facts.keys() == set(list_metrics("whitened"))
    for name, one in facts.items():
        metric = create_metric(name)
        assert one["needs"] == list(metric.needs)
        assert one["differentiable"] == metric.differentiable
        assert one["citation"] == metric.citation
    assert main(["metrics", "--family", "far"]) == 2


# Leaderboards


def worse(x: Any, y: Any) -> Any:
    """Falls with the damage."""
    return -(y - x).square().mean((1, 2, 3, 4))


worse.lower_better = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def boards(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("boards") / "mine.parquet"
    found.write(path)
    dataset = FoldedDataset()
    theirs = evaluate(dataset, [worse, "cosine_p5"])
    other = evaluate(MemoryDataset(seed=3), ["mse"])
    return leaderboard(path, theirs, other)


def test_a_leaderboard_ranks_by_mean_srocc_with_ties(boards: Any, found: Evaluation) -> None:
    first, second = boards
    assert [entry.metric.name for entry in second.entries] == ["mse"]
    whole = found.merge(evaluate(FoldedDataset(), [worse, "cosine_p5"]))
    rows = {row["metric"]: row for row in whole.across_tasks.to_pylist()}
    expected = {name: values[-1] for name, values in figures(whole).items()}
    names = [entry.metric.name for entry in first.entries]
    assert names == sorted(expected, key=lambda name: -expected[name])
    for place, entry in enumerate(first.entries, 1):
        name = entry.metric.name
        assert entry.overall.value == expected[name]
        assert entry.beaten_by == rows[name]["srocc_group"]
        assert entry.rank == (1 if entry.beaten_by == 0 else place)
        assert entry.tied == (entry.beaten_by == 0)
    assert names[-1] == "worse"
    assert (first.sources, first.features, first.codecs) == (8, 160, ("x265", "vvenc"))


def test_a_leaderboard_tells_what_metrics_have_seen(boards: Any) -> None:
    trained = {entry.metric.name: entry.trained for entry in boards[0].entries}
    assert trained["mse"] == trained["cosine_p5"] == ""
    assert trained["worse"] == "not declared"
    said = "8 originals of folds 0, 1, cross-fitted; all codecs; distortion"
    assert trained["gap_mean"] == said
    for text in (terminal_text(boards), markdown_page(boards).replace("\\", ""), html_page(boards)):
        assert said in text
        assert re.search(r"data not declared: worse|not declared</td>", text)


def test_a_leaderboard_is_text_markdown_and_a_page(boards: Any) -> None:
    text, page = terminal_text(boards), html_page(boards)
    assert max(len(line) for line in text.splitlines() if "cfqa-data" in line) <= 100
    for board in boards:
        for entry in board.entries:
            shown = f"{entry.overall.value:.3f}"
            for written in (text, markdown_page(boards).replace("\\", "")):
                lines = [line for line in written.splitlines() if entry.metric.name in line]
                assert any(shown in line for line in lines)
    assert page.count('<section id="board-') == 2
    long = replace(boards[0].entries[0].metric, name="a_long<b>")
    entry = replace(boards[0].entries[0], metric=long)
    assert ">a_<wbr>long&lt;b&gt;</th>" in html_page([replace(boards[0], entries=(entry,))])
    assert page.count("<tr") == sum(2 + len(board.entries) for board in boards)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page.replace("http-equiv", ""))
    evil = replace(boards[0], name="<script>alert(1)</script>")
    assert "<script>alert" not in html_page([evil])
    assert html_page(boards) == page


def test_the_command_writes_a_leaderboard(
    found: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = found.write(tmp_path / "scores.parquet")
    for name in ("board.html", "board.md"):
        command = ["leaderboard", str(scores), "--out", str(tmp_path / name), "--target", "loss"]
        assert main(command) == 0
        assert "mean SROCC with the loss" in capsys.readouterr().out
        assert main(command) == 2
        assert "already exists; write to another file" in capsys.readouterr().err
        assert main([*command, "--force"]) == 0
    board = leaderboard(scores, target="loss")
    assert (tmp_path / "board.html").read_text(encoding="utf-8") == html_page(board)
    capsys.readouterr()
    assert main(["leaderboard", str(scores), "--target", "loss", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["leaderboards"]
    assert (told["name"], told["features"]) == (board[0].name, found.labels.num_rows)
    for entry, one in zip(board[0].entries, told["entries"], strict=True):
        assert one["metric"] == entry.metric.name
        assert one["srocc"] == entry.overall._asdict()
        assert one["by_task"].keys() == set(board[0].tasks)
    with pytest.raises(MetricError, match="name at least one score file"):
        leaderboard()


def test_a_metric_that_lacks_sources_is_not_ranked(found: Evaluation) -> None:
    values = found.values.copy()
    values[:40, 0] = np.nan
    part = replace(found.rescored(found.labels, found.metrics, values), provenance={})
    (board,) = leaderboard(part)
    last = board.entries[-1]
    assert (last.metric.name, last.rank, last.rank_text) == ("mse", None, "-")
    assert "mse: not ranked, no result on task cls" in terminal_text([board])
    assert "not ranked: no result on task cls" in html_page([board])
    assert last.provenance == Provenance()
