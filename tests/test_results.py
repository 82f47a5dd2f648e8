"""Stored results: provenance, files that are extended, and merged results."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from memory_dataset import FoldedDataset, InterruptAfter, MemoryDataset, rows_of
from mock_dataset import write_mock_dataset

from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import (
    Evaluation,
    Provenance,
    account,
    create_metric,
    evaluate,
    from_scores,
    read_evaluation,
)
from cfqa_data.eval.fingerprint import Fingerprint
from cfqa_data.eval.metrics import trained
from cfqa_data.eval.report.leaderboard import leaderboard

pytestmark = pytest.mark.usefixtures("quick_statistics")


def own(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y - x).abs().mean((1, 2, 3, 4))


def test_a_result_tells_where_its_scores_come_from(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    before = datetime.now(UTC).replace(microsecond=0)
    found = evaluate(FoldedDataset(), [own, "gap_mean"], precision="high", out=out)
    mine, fitted = found.provenance["own"], found.provenance["gap_mean"]
    assert (mine.package, mine.version, mine.trained_on) == (__name__, None, None)
    assert mine.source_sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert (fitted.package, fitted.options) == ("cfqa-data", {})
    source = Path(str(trained.__file__)).read_bytes()
    assert fitted.source_sha256 == hashlib.sha256(source).hexdigest()
    seen: Any = fitted.trained_on
    assert (seen.folds, seen.codecs, seen.target) == ((0, 1), ("vvenc", "x265"), "distortion")
    assert seen.originals == 8
    for record in found.provenance.values():
        assert (record.device, record.precision) == ("cpu", "high")
        assert before <= datetime.fromisoformat(record.date or "") <= datetime.now(UTC)
        assert record.seconds
        assert record.memory_bytes
        assert record.memory_bytes > 2**20
    assert read_evaluation(FoldedDataset(), out).provenance == found.provenance


def test_what_goes_on_keeps_the_record_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, dates = tmp_path / "scores.parquet", (f"day {n}" for n in range(100, 1000))
    monkeypatch.setattr(account, "now", lambda: next(dates))
    with pytest.raises(KeyboardInterrupt):
        evaluate(MemoryDataset(), ["mse"], out=out, batch=5, progress=InterruptAfter(119))
    first = evaluate(MemoryDataset(), ["mse"], out=out, batch=5).provenance["mse"]
    assert first.date == "day 123"  # of the last of 24 batches: all were done


# A file grows


def test_a_file_grows_by_what_it_lacks(tmp_path: Path) -> None:
    out = tmp_path / "week.parquet"
    monday = evaluate(MemoryDataset(), ["mse", own], out=out)
    dataset = MemoryDataset()
    friday = evaluate(dataset, ["cosine", "mse"], out=out)
    assert list(friday.columns()) == ["mse", "own", "cosine"]
    for name in ("mse", "own"):
        assert friday.columns()[name].tolist() == monday.columns()[name].tolist()
        assert friday.provenance[name] == monday.provenance[name]
    plain = evaluate(MemoryDataset(), ["mse", own, "cosine"])
    assert friday.scores.equals(plain.scores)
    assert friday.across_codecs.equals(plain.across_codecs)
    again = MemoryDataset()
    assert evaluate(again, ["mse", "cosine"], out=out).scores.equals(plain.scores)
    assert len(again.reads) <= 6  # to tell its arrays
    assert read_evaluation(out).scores.equals(plain.scores)


def test_a_changed_metric_is_replaced_by_force_and_the_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    before = evaluate(MemoryDataset(), ["mse", own], out=out)
    other = replace(create_metric("mae"), name="own")
    with pytest.raises(MetricError, match="holds scores of a 'own' with other code in "):
        evaluate(MemoryDataset(), ["mse", other], out=out)
    after = evaluate(MemoryDataset(), [other, "mse"], out=out, force=True)
    assert after.provenance["mse"] == before.provenance["mse"]
    assert after.provenance["own"].package == "cfqa-data"
    assert list(after.columns()) == ["mse", "own"]


def test_further_features_are_added_and_the_figures_are_of_those_asked_for(tmp_path: Path) -> None:
    dataset, out = FoldedDataset(), tmp_path / "scores.parquet"
    first = evaluate(dataset, ["mse", "gap_mean"], fold=0, out=out)
    second = evaluate(dataset, ["gap_mean", "cosine"], fold=1, out=out)
    assert set(second.labels["fold"].to_pylist()) == {1}
    assert list(second.columns()) == ["gap_mean", "cosine"]
    both = read_evaluation(dataset, out)
    rows = first.labels.num_rows, second.labels.num_rows
    assert both.labels.num_rows == sum(rows)
    seen: Any = both.provenance["gap_mean"].trained_on
    assert (seen.folds, seen.originals) == ((0, 1), 8)
    missing = {name: int(np.isnan(column).sum()) for name, column in both.columns().items()}
    assert missing == {"mse": rows[1], "gap_mean": 0, "cosine": rows[0]}
    assert rows_of(both.across_tasks, metric="mse")[0]["n_missing"] == 4


def test_features_that_leave_gaps_are_not_added(tmp_path: Path) -> None:
    folder, out = write_mock_dataset(tmp_path / "cfqa", sources=2), tmp_path / "scores.parquet"
    evaluate(folder, "mse", limit=1, codec="x265", out=out)
    evaluate(folder, "mse", limit=1, out=out)
    with pytest.raises(MetricError, match="holds the scores of other features; write"):
        evaluate(folder, "mse", codec="x265", out=out)
    assert read_evaluation(out).scores.equals(evaluate(folder, "mse", limit=1).scores)


# Results that are put together


class Colleagues(MemoryDataset):
    """The same recipe on another machine: features and labels differ by rounding or more."""

    def __init__(self, relative: float, rows: int = 10**9) -> None:
        super().__init__()
        loss = self.labels["loss"].to_numpy() * (
            1 + relative * (np.arange(self.labels.num_rows) < rows)
        )
        place = self.labels.column_names.index("loss")
        self.labels = self.labels.set_column(place, "loss", pa.array(loss))


def test_colleagues_pool_where_labels_agree(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.parquet", tmp_path / "theirs.parquet"
    evaluate(MemoryDataset(), ["mse", own], out=mine)
    result = evaluate(Colleagues(3e-7), ["mse", "cosine"], out=theirs)
    pooled = read_evaluation(MemoryDataset(), mine, theirs)
    assert list(pooled.columns()) == ["mse", "own", "cosine"]
    assert pooled.columns()["cosine"].tolist() == result.columns()["cosine"].tolist()
    assert pooled.labels.equals(MemoryDataset().labels)
    assert pooled.notes == {}
    assert pooled.scores.equals(read_evaluation(mine, theirs).scores)
    assert pooled.scores.equals(read_evaluation(mine).merge(read_evaluation(theirs)).scores)

    evaluate(Colleagues(3e-6, rows=7), ["cosine"], out=theirs, force=True)
    with pytest.warns(MetricWarning, match="the labels of 7 of 120 features differ") as told:
        part = read_evaluation(MemoryDataset(), mine, theirs)
    assert "cls cls-0, x265, level 0; cls cls-0, x265, level 1; " in str(told[0].message)
    assert "and 4 more" in part.notes[f"scores of {theirs}"]
    assert np.isnan(part.columns()["cosine"]).tolist() == [row < 7 for row in range(120)]
    assert pooled.part(range(7, 120), ["cosine"]).scores.equals(
        part.part(range(7, 120), ["cosine"]).scores
    )

    evaluate(Colleagues(3e-6), ["cosine"], out=theirs, force=True)
    for files in ((MemoryDataset(), mine, theirs), (mine, theirs)):
        with pytest.raises(MetricError, match="scores of another dataset; give that dataset"):
            read_evaluation(*files)


def test_two_metrics_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "v1.parquet", tmp_path / "v2.parquet"
    a = evaluate(MemoryDataset(), ["mse", own], out=first)
    other = replace(create_metric("mae"), name="own", formula="2")
    b = evaluate(MemoryDataset(), ["mse", replace(other, function=twice)], out=second)
    both = read_evaluation(first, second)
    assert list(both.columns()) == ["mse", "own", "own (v2)"]
    assert both.columns()["own (v2)"].tolist() == b.columns()["own"].tolist()
    assert both.provenance["own (v2)"] == b.provenance["own"]
    with pytest.raises(MetricError, match="two different metrics are named 'own'"):
        a.merge(b)
    assert both.scores.equals(a.merge(b, label="v2").scores)
    c = evaluate(MemoryDataset(), [replace(other, function=lambda x, y: 2 * twice(x, y))])
    three = both.merge(c, c, label="v2")
    assert list(three.columns()) == ["mse", "own", "own (v2)", "own (v2 2)"]
    assert three.columns()["own (v2 2)"].tolist() == c.columns()["own"].tolist()
    merged = a.merge(b.merge(c, label="v2"), label="v2")
    assert [*merged.columns()] == ["mse", "own", "own (v2 2)", "own (v2)"]
    assert merged.columns()["own (v2 2)"].tolist() == b.columns()["own"].tolist()
    unknown = {"own": Provenance(fingerprint=Fingerprint(None, reason="it cannot be pickled"))}
    with pytest.raises(MetricError, match="two different metrics are named 'own'"):
        a.merge(replace(b, provenance=unknown))
    path = both.write(tmp_path / "both.parquet")
    assert read_evaluation(path).scores.equals(both.scores)
    with pytest.raises(MetricError, match="already exists; write to another file"):
        both.write(path)


def twice(x: Any, y: Any) -> torch.Tensor:
    return 2 * (y.values - x.values).abs().mean((1, 2, 3, 4))


@pytest.mark.parametrize("kind", ["parquet", "csv", "table", "pandas"])
def test_scores_that_were_made_elsewhere_are_taken_in(tmp_path: Path, kind: str) -> None:
    result = evaluate(MemoryDataset(), ["mse", "cosine"])
    table = result.scores.take(np.random.default_rng(0).permutation(result.scores.num_rows))
    scores: Any = {"table": table, "pandas": table.to_pandas()}.get(kind, tmp_path / f"s.{kind}")
    if kind == "csv":
        pa.csv.write_csv(table, scores)
    elif kind == "parquet":
        pq.write_table(table.append_column("more", table["value"]), scores)
    better = {"mse": True, "cosine": False}
    record = Provenance(package="theirs", version="2.1")
    found = from_scores(scores, MemoryDataset(), lower_better=better, provenance=record)
    assert found.provenance == {"mse": record, "cosine": record}
    order = {metric.name: metric.lower_better for metric in found.metrics}
    assert order == better
    for name, column in result.columns().items():
        assert found.columns()[name].tolist() == column.tolist()
    everything = evaluate(MemoryDataset(), own).merge(found)
    assert list(everything.columns()) == ["own", *order]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["codec"]), "no column 'codec'"),
        (lambda t: t.slice(0, 0), "contains no scores"),
        (
            lambda t: pa.concat_tables([t, t.slice(3, 1)]),
            "mse of cls cls-0, x265, level 3 occurs twice",
        ),
        (lambda t: changed(t, "level", 77), "scores of cls cls-0, x265, level 77, which is not"),
        (lambda t: changed(t, "level", None), "the column 'level' has empty cells"),
        (lambda t: changed(t, "value", np.inf), "mse of cls cls-0, x265, level 0 is inf"),
        (lambda t: changed(t, "value", "x"), "not a score file"),
        (lambda _: 3, "not a score file"),
        (lambda _: "none.csv", "none.csv: cannot be read"),
        (lambda _: __file__, "not a score file"),
    ],
)
def test_what_is_no_table_of_its_scores_is_refused_in_one_line(change: Any, said: str) -> None:
    table = evaluate(MemoryDataset(), "mse").scores
    with pytest.raises(MetricError, match=re.escape(said)) as told:
        from_scores(change(table), MemoryDataset())
    assert "\n" not in str(told.value)


def changed(table: pa.Table, name: str, value: Any) -> pa.Table:
    column = [value, *table[name].to_pylist()[1:]]
    column = [str(one) for one in column] if isinstance(value, str) else column
    return table.set_column(table.column_names.index(name), name, pa.array(column))


def test_files_of_before_are_read(tmp_path: Path) -> None:
    """A file of an earlier version, without labels and provenance."""
    out, old = tmp_path / "scores.parquet", tmp_path / "old.parquet"
    result = evaluate(MemoryDataset(), ["mse"], out=out)
    table = pq.read_table(out)
    facts = json.loads(table.schema.metadata[b"cfqa"])
    record = facts.pop("provenance")["mse"]
    facts |= {"code": {"mse": record["fingerprint"]}, "keys": "0"}
    facts["settings"] = {name: record[name] for name in ("arrays", "device", "precision")}
    del facts["tasks"], facts["dataset_name"]
    plain = table.select(result.scores.column_names)
    pq.write_table(plain.replace_schema_metadata({b"cfqa": json.dumps(facts)}), old)
    again = read_evaluation(MemoryDataset(), old)
    assert again.scores.equals(result.scores)
    assert again.provenance["mse"].device == "cpu"
    assert (again.provenance["mse"].date, again.provenance["mse"].package) == (None, None)
    with pytest.raises(
        MetricError, match="written by an older version, without labels; name the dataset"
    ):
        read_evaluation(old)
    dataset = MemoryDataset()
    added = evaluate(dataset, ["mse", "cosine"], out=old)
    assert added.provenance["mse"].date is None
    assert added.columns()["mse"].tolist() == result.columns()["mse"].tolist()
    assert list(read_evaluation(old).columns()) == ["mse", "cosine"]


class SomeSources(FoldedDataset):
    """Some of a dataset's sources, with the same labels, as a smaller recipe makes them."""

    def __init__(self, sources: int = 1) -> None:
        super().__init__()
        names = self.labels["source_id"].to_pylist()
        kept = {f"{task}-{number}" for task in ("cls", "seg") for number in range(sources)}
        self.labels = self.labels.filter(pa.array([name in kept for name in names]))


class Rebuilt(FoldedDataset):
    """Another build of the same recipe, whose labels differ by rounding."""

    def __init__(self) -> None:
        super().__init__()
        place = self.labels.column_names.index("loss")
        loss = self.labels["loss"].to_numpy() * (1 + 3e-7)
        self.labels = self.labels.set_column(place, "loss", pa.array(loss))


def without_size(result: Evaluation) -> Evaluation:
    """An evaluation read from a file of an earlier version."""
    return replace(result, dataset_features=None)


@pytest.mark.parametrize("older", [False, True])
def test_a_dataset_that_shares_some_sources_is_another_one(older: bool, tmp_path: Path) -> None:
    results = [evaluate(dataset, ["mse"]) for dataset in (SomeSources(), FoldedDataset())]
    small, whole = map(without_size, results) if older else results
    assert not small.same_dataset(whole)
    assert not whole.same_dataset(small)
    files = [small.write(tmp_path / "small.parquet"), whole.write(tmp_path / "whole.parquet")]
    sizes = [result.labels.num_rows for result in (small, whole)]
    for order in (1, -1):
        boards = leaderboard(*files[::order])
        assert [board.features for board in boards] == sizes[::order]
        assert not any(board.notes for board in boards)
        with pytest.raises(MetricError, match="scores of another dataset; give that dataset"):
            read_evaluation(*files[::order])
    for refused in (
        lambda: read_evaluation(FoldedDataset(), files[0]),
        lambda: leaderboard(files[0], dataset=FoldedDataset()),
    ):
        with pytest.raises(MetricError, match=r"small\.parquet: scores of another"):
            refused()
    with pytest.raises(MetricError, match="holds the scores of another dataset"):
        evaluate(FoldedDataset(), ["mse"], out=files[0])


def test_parts_of_one_dataset_are_put_together(tmp_path: Path) -> None:
    """One source of each task, one task, and everything, of two builds."""
    part = evaluate(Rebuilt(), [own], limit=1, fold=0)
    one_task = evaluate(FoldedDataset(), ["mse"])
    rows = np.flatnonzero(np.array(one_task.labels["task"].to_pylist()) == "cls")
    one_task = one_task.part(rows, ["mse"])
    whole = evaluate(Rebuilt(), ["cosine"])
    assert part.same_dataset(one_task)
    assert one_task.same_dataset(part)
    boards = [leaderboard(*found) for found in permutations([part, one_task, whole])]
    for (board,) in boards:
        assert (board.features, board.notes) == (whole.labels.num_rows, ())
        assert {entry.metric.name for entry in board.entries} == {"own", "mse", "cosine"}
    pooled = one_task.merge(whole, label="whole")
    (note,) = pooled.notes.values()
    counts = len(whole.labels) - len(rows), len(whole.labels)
    assert "{} of {} features are not scored in the other file".format(*counts) in note
    assert not np.isnan(pooled.columns()["cosine"]).any()
    assert read_evaluation(FoldedDataset(), part.write(tmp_path / "part.parquet")).notes == {}


def test_time_per_feature_is_of_what_was_scored(tmp_path: Path) -> None:
    dataset, out = FoldedDataset(), tmp_path / "scores.parquet"
    first = evaluate(dataset, ["mse", "gap_mean"], fold=0, out=out).provenance
    both = evaluate(dataset, ["mse", "gap_mean"], out=out).provenance
    rows = dataset.labels.num_rows
    assert [record.features for record in both.values()] == [rows, rows]
    assert 0 < (first["mse"].features or 0) < rows
    mine, fitted = both["mse"], both["gap_mean"]
    assert mine.training_seconds == 0
    assert mine.milliseconds == 1000 * (mine.seconds or 0) / rows
    known: Any = replace(fitted, seconds=3.0, training_seconds=1.0, features=10)
    assert 0 < (fitted.training_seconds or 0) < (fitted.seconds or 0)
    assert known.milliseconds == 200
    assert replace(known, features=None).milliseconds is None
    (board,) = leaderboard(read_evaluation(out).part(range(40), ["mse"]))
    assert board.entries[0].provenance.milliseconds == mine.milliseconds
