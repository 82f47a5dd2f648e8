"""Files of reports and scores: what is read back, what is refused, and what is replaced."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mock_dataset import write_mock_dataset

from cfqa_data.cli import main
from cfqa_data.errors import MetricError
from cfqa_data.eval import Evaluation, evaluate, read_evaluation
from cfqa_data.eval.report import report_html
from cfqa_data.eval.score_format import KEY

pytestmark = pytest.mark.usefixtures("quick_statistics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("report") / "cfqa", sources=4)


@pytest.fixture(scope="module")
def scored(folder: Path) -> Evaluation:
    out = folder.parent / "scores.parquet"
    return evaluate(folder, ["mse", "cosine", "mae"], out=out)


# Scores read back


def test_what_is_read_back_is_what_was_found(folder: Path, scored: Evaluation) -> None:
    again = read_evaluation(str(folder), folder.parent / "scores.parquet")
    for name in ("labels", "scores", "correlations", "across_codecs", "across_tasks"):
        assert getattr(again, name).equals(getattr(scored, name)), name
    for before, after in zip(scored.metrics, again.metrics, strict=True):
        for fact in ("name", "family", "formula", "lower_better", "score_range", "citation"):
            assert getattr(after, fact) == getattr(before, fact)
    with pytest.raises(MetricError, match="only the scores of this metric were read"):
        again.metrics[0](torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2))
    again = read_evaluation(folder, folder.parent / "scores.parquet", target="loss")
    assert again.target == "loss"


@pytest.mark.parametrize("identity", [math.inf, -math.inf, math.nan, np.float32(0.5), 1, None])
def test_what_a_metric_gives_a_feature_against_itself_is_read_back(
    folder: Path, tmp_path: Path, identity: float | None
) -> None:
    def own(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).square().mean((1, 2, 3, 4))

    own.identity = identity  # type: ignore[attr-defined]
    out = tmp_path / "scores.parquet"
    evaluate(folder, own, limit=2, out=out)
    found = read_evaluation(folder, out).metrics[0].identity
    assert found == identity or (found != found and identity != identity)


def test_a_part_of_a_dataset_is_read_back(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.parquet"
    part = evaluate(folder, "mse", task="seg", limit=2, target="loss", out=out)
    again = read_evaluation(folder, out)
    assert again.target == "loss"
    assert again.correlations.equals(part.correlations)
    assert "2 of 4" in report_html(again, folder)


def spoil(path: Path, out: Path, how: str) -> None:
    """Write a modified file of scores."""
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[KEY])
    if how == "csv":
        out.write_text("task,source_id\n")
        return
    if how == "cut":
        out.write_bytes(path.read_bytes()[:-20])
        return
    if how == "missing rows":
        table = table.slice(0, table.num_rows - 3)
    elif how == "empty":
        table = table.slice(0, 0)
    elif how == "shuffled":
        table = table.take(np.arange(table.num_rows)[::-1])
    elif how == "other dataset":
        facts["dataset"] = "0" * 64
        place = table.column_names.index("mse")
        table = table.set_column(place, "mse", pa.compute.multiply(table["mse"], 1.00001))
    elif how == "range":
        facts["metrics"][0]["score_range"] = [1, 0]
    elif how == "code":
        facts["metrics"][0]["function"] = "os:system"
    elif how == "unknown fact":
        facts["metrics"][0]["more"] = 1
    elif how == "no metrics":
        facts["metrics"] = []
    elif how == "target":
        facts["target"] = "source_id"
    elif how == "source":
        place = table.column_names.index("source_id")
        table = table.set_column(place, "source_id", pa.array(["x"] * table.num_rows))
    metadata = None if how == "no facts" else {KEY: json.dumps(facts)}
    pq.write_table(table.replace_schema_metadata(metadata), out)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("csv", "not a finished score file"),
        ("cut", "not a finished score file"),
        ("no facts", "not a finished score file"),
        ("range", "not a finished score file"),
        ("unknown fact", "not a finished score file"),
        ("missing rows", "holds 1437 scores of 1440"),
        ("empty", "contains no scores"),
        ("no metrics", "contains no scores"),
        ("shuffled", "not in the order"),
        ("other dataset", "scores of another dataset"),
        ("target", "no column 'source_id' to follow"),
        ("source", "scores of cls x, x265, level 0, which is not in the dataset"),
    ],
)
def test_files_that_are_not_its_scores_are_refused_in_one_line(
    how: str,
    said: str,
    folder: Path,
    scored: Evaluation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.parquet"
    spoil(folder.parent / "scores.parquet", bad, how)
    with pytest.raises(MetricError, match=re.escape(said)):
        read_evaluation(folder, bad)
    page = tmp_path / "page.html"
    assert main(["report", str(folder), str(bad), "--out", str(page)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not page.exists()


def test_a_file_of_scores_names_no_code(folder: Path, scored: Evaluation, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    spoil(folder.parent / "scores.parquet", bad, "code")
    with pytest.raises(MetricError, match="not a finished score file"):
        read_evaluation(folder, bad)
    good = read_evaluation(folder, folder.parent / "scores.parquet")
    with pytest.raises(MetricError, match="only the scores of this metric were read"):
        good.metrics[0].function()


# The command line


def test_eval_writes_a_report_with_its_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scored = tmp_path / "out", ("<dt>scored</dt><dd>.*?</dd>", "")
    command = ["eval", str(folder), "--task", "cls", "--metric", "mse"]
    assert main([*command, "--report", str(out)]) == 0
    before = (out / "report.html").read_text()
    assert main([*command, "--report", str(out)]) == 0  # the same request
    pages = [re.sub(*scored, page) for page in (before, (out / "report.html").read_text())]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "scores.parquet"]
    assert f"Report: {out / 'report.html'}" in capsys.readouterr().out
    again = tmp_path / "again.html"
    assert main(["report", str(folder), str(out / "scores.parquet"), "-o", str(again)]) == 0
    assert again.read_bytes() == (out / "report.html").read_bytes()
    alone = tmp_path / "alone.html"
    assert main([*command, "--report", str(alone), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["target"] == "distortion"
    pages = [re.sub(*scored, page.read_text()) for page in (again, alone)]
    assert pages[0] == pages[1]


def test_a_report_by_a_relative_name_is_replaced_by_the_same_request(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", str(folder), "--task", "cls", "--codec", "x265", "--metric", "mse"]
    for names in (["--report", "rep"], ["--report", "a.html", "--out", "a.parquet"]):
        for _ in range(2):
            assert main([*command, *names]) == 0, capsys.readouterr().err
            assert f"Report: {tmp_path}" in capsys.readouterr().out


def test_reports_and_scores_are_replaced_by_force_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    command = ["eval", str(folder), "--task", "cls", "--codec", "x265", "--metric"]
    assert main([*command, "mse", "--report", str(out)]) == 0
    page.write_text("a page")
    kept = {path: path.read_bytes() for path in [page, *out.iterdir()]}
    scores, high = out / "scores.parquet", ["mse", "--precision", "high"]
    refused = f"{scores}: holds scores of 'mse' made with another device or precision;"
    capsys.readouterr()
    for words, said in (
        ([*command, *high, "--report", str(out)], refused),
        ([*command, *high, "--out", str(scores)], refused),
        ([*command, "cosine", "--report", str(page)], f"{page}: already exists;"),
        (["report", str(folder), str(scores), "--out", str(page)], f"{page}: already exists;"),
    ):
        assert main(words) == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"cfqa: {said}")
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert kept == {path: path.read_bytes() for path in kept}
    assert main([*command, *high, "--report", str(out), "--force"]) == 0
    assert main(["report", str(folder), str(scores), "--out", str(page), "--force"]) == 0
    assert page.read_bytes() == (out / "report.html").read_bytes()
    assert read_evaluation(scores).provenance["mse"].precision == "high"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["eval", "DIR", "--report", "TMP/none/page.html"], "there is no folder"),
        (["eval", "DIR", "--report", "TMP/none/out"], "there is no folder"),
        (["eval", "DIR", "--report", "TMP/a.html", "--metric", "nope"], "unknown metric 'nope'"),
        (["report", "DIR", "TMP/none.parquet", "-o", "TMP/a.html"], "no such file"),
        (["report", "DIR", "TMP/none.parquet", "-o", "TMP/a.pdf"], "must end in .html"),
        (["report", "TMP", "TMP/none.parquet", "-o", "TMP/a.html"], "not a CFQA dataset folder"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    command: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [w.replace("DIR", str(folder)).replace("TMP", str(tmp_path)) for w in command]
    assert main(command) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("report", ["page.html", "out"])
def test_a_report_that_cannot_be_made_costs_no_scores(
    folder: Path,
    scored: Evaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: str,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("cfqa_data.eval.report.page.cards", lambda *_: 1 / 0)
        command = ["eval", str(folder), "--metric", "mse", "--report", str(tmp_path / report)]
        assert main(command) == 2
    told = capsys.readouterr()
    assert "0.9" in told.out  # the tables
    kept = {"page.html": tmp_path / "page.parquet", "out": tmp_path / "out" / "scores.parquet"}
    page = tmp_path / ("out/report.html" if report == "out" else report)
    why = "the report could not be made: ZeroDivisionError: division by zero"
    (line,) = [line for line in told.err.splitlines() if line.startswith("cfqa: ")]
    assert line == f"cfqa: {page}: {why}; the scores are in {kept[report]}"
    assert not page.exists()
    again = read_evaluation(folder, kept[report])
    assert again.scores.equals(
        scored.scores.filter(pa.compute.equal(scored.scores["metric"], "mse"))
    )
    assert main(["report", str(folder), str(kept[report]), "-o", str(page)]) == 0
