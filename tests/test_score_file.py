"""Score files of the evaluator: resuming interrupted runs, and adding to finished files."""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from memory_dataset import FoldedDataset, InterruptAfter, MemoryDataset
from mock_dataset import write_mock_dataset
from test_evaluator_runs import among_others, late, mean_error, only_one

from cfqa_data.console.progress import Silent
from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import create_metric, evaluate, read_evaluation, scoring
from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics.base import Metric

pytestmark = pytest.mark.usefixtures("quick_statistics")


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
def test_an_interrupted_run_is_gone_on_from(tmp_path: Path, name: str) -> None:
    out, dataset = tmp_path / name, MemoryDataset()
    metrics = ["mse", mean_error]
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, metrics, out=out, batch=5, progress=InterruptAfter(50))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.unfinished"]
    read = sum(type(key) is tuple for key in dataset.reads)
    fresh = MemoryDataset()
    result = evaluate(fresh, metrics, out=out, batch=5)
    assert sum(type(key) is tuple for key in fresh.reads) <= len(fresh.versions) - 50 < read + 40
    assert result.scores.equals(evaluate(MemoryDataset(), metrics, batch=5).scores)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    written = pq.read_table(out) if out.suffix == ".parquet" else pa.csv.read_csv(out)
    assert written["value"].to_pylist() == result.scores["value"].to_pylist()
    assert written.column_names[:6] == result.scores.column_names


@pytest.mark.parametrize(
    "text",
    [
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_labels_may_hold_texts_of_any_kind(tmp_path: Path, text: pa.DataType) -> None:
    class Other(MemoryDataset):
        def __init__(self) -> None:
            super().__init__()
            for place, name in enumerate(self.labels.column_names[:3]):
                column = pa.array(self.labels[name].to_pylist(), text)
                self.labels = self.labels.set_column(place, name, column)

    out = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Other(), ["mse"], out=out, batch=5, progress=InterruptAfter(50))
    fresh = Other()
    result = evaluate(fresh, ["mse"], out=out, batch=5)
    assert sum(type(key) is tuple for key in fresh.reads) <= len(fresh.versions) - 50
    assert result.scores.equals(evaluate(MemoryDataset(), ["mse"], batch=5).scores)
    again = read_evaluation(Other(), out)
    assert again.scores.equals(result.scores)
    assert again.correlations.equals(result.correlations)


def unfinished(tmp_path: Path, metrics: Any, after: int = 50, **how: Any) -> Path:
    tmp_path.mkdir(exist_ok=True)
    out = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        evaluate(MemoryDataset(), metrics, out=out, progress=InterruptAfter(after), **how)
    return out


@pytest.mark.parametrize(
    ("metric", "after"),
    [
        (among_others, 50),
        (late, 70),
        pytest.param(among_others, 0, marks=pytest.mark.release),
        pytest.param(only_one, 50, marks=pytest.mark.release),
    ],
)
def test_a_run_that_goes_on_knows_what_is_scored_alone_and_why(
    metric: Any, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(MetricWarning):
        whole = evaluate(MemoryDataset(), [metric], batch=7)
    out = unfinished(tmp_path, [metric], after, batch=7)
    sizes: set[int] = set()

    def counted(metric: Metric, x: Features, y: Features) -> Any:
        sizes.add(len(y))
        return scores(metric, x, y)

    scores = scoring._scores
    monkeypatch.setattr(scoring, "_scores", counted)
    with pytest.warns(MetricWarning) as warned:
        result = evaluate(MemoryDataset(), [metric], batch=7, out=out)
    assert sizes == {1}
    assert result.scores.equals(whole.scores)
    assert result.notes == whole.notes == {metric.__name__: str(warned[0].message)}
    assert read_evaluation(MemoryDataset(), out).notes == result.notes

    out.unlink()
    unfinished(tmp_path, [metric], after, batch=7)
    other = replace(create_metric("mse"), name=metric.__name__)
    assert evaluate(MemoryDataset(), [other], batch=7, out=out, force=True).notes == {}


def test_scores_of_other_code_options_or_settings_are_not_taken_up(tmp_path: Path) -> None:
    out = unfinished(tmp_path, ["mse", mean_error])

    def mean_error_again(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 2 * mean_error(x, y)

    mean_error_again.name = "mean_error"  # type: ignore[attr-defined]
    dataset = MemoryDataset()
    result = evaluate(dataset, ["mse", mean_error_again], out=out)
    assert result.scores.equals(evaluate(MemoryDataset(), ["mse", mean_error_again]).scores)
    assert len(dataset.reads) == len(dataset.originals) + len(dataset.versions)

    out = unfinished(tmp_path / "other", ["mse"])
    dataset = MemoryDataset()
    evaluate(dataset, ["mse"], out=out, precision="high")
    assert len(dataset.reads) == len(dataset.originals) + len(dataset.versions)


def test_scores_that_other_sources_decide_are_taken_up_with_the_same_ones_only(
    tmp_path: Path,
) -> None:
    folder, out = write_mock_dataset(tmp_path / "cfqa"), tmp_path / "scores.parquet"
    metrics = ["mse", "gap_mean"]
    with pytest.raises(KeyboardInterrupt):  # trained on one codec
        evaluate(folder, metrics, codec="x265", task="cls", out=out, progress=InterruptAfter(10))
    result = evaluate(folder, metrics, task="cls", out=out)
    assert result.scores.equals(evaluate(folder, metrics, task="cls").scores)


class MeanLabel:
    """Returns the mean label of its training data."""

    def fit(self, training: Any, device: str) -> Any:
        mean = float(training.labels[training.target].to_numpy().mean())
        return lambda x, y: torch.full((len(y),), mean)


def test_trained_scores_are_taken_up_for_the_same_label_only(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    for target, same in (("distortion", True), ("loss", False)):
        with pytest.raises(KeyboardInterrupt):
            evaluate(FoldedDataset(), [MeanLabel()], out=out, progress=InterruptAfter(50))
        fresh = FoldedDataset()
        result = evaluate(fresh, [MeanLabel()], target=target, out=out)  # type: ignore[arg-type]
        again = evaluate(FoldedDataset(), [MeanLabel()], target=target)  # type: ignore[arg-type]
        assert result.scores.equals(again.scores)
        assert (len(fresh.reads) < len(fresh.originals) + len(fresh.versions)) == same
        out.unlink()


def test_scores_are_taken_up_with_the_same_arrays_only(tmp_path: Path) -> None:
    out = unfinished(tmp_path, ["mse"])
    result = evaluate(changed_arrays(), ["mse"], out=out)
    assert result.scores.equals(evaluate(changed_arrays(), ["mse"]).scores)


def test_scores_are_taken_up_with_the_same_imports_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that a metric's file imports are part of its fingerprint."""
    monkeypatch.syspath_prepend(tmp_path)
    own = "def far(x, y):\n    import runs_scale\n    return runs_scale.far(x, y)\n"
    (tmp_path / "runs_own.py").write_text(own)
    text = "def far(x, y):\n    return {} * (y - x).abs().mean((1, 2, 3, 4))\n"

    def metric(factor: str) -> Any:
        (tmp_path / "runs_scale.py").write_text(text.format(factor))
        for name in ("runs_own", "runs_scale"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return "runs_own:far"

    for factor, same in (("1.0", True), ("2.25", False)):
        out = unfinished(tmp_path / factor, [metric("1.0")])
        fresh = MemoryDataset()
        result = evaluate(fresh, [metric(factor)], out=out)
        assert result.scores.equals(evaluate(MemoryDataset(), [metric(factor)]).scores)
        whole = len(fresh.originals) + len(fresh.versions)
        assert (len(fresh.reads) < whole) == same


def test_scores_of_a_function_that_was_made_are_taken_up_with_the_same_parts_only(
    tmp_path: Path,
) -> None:
    def times(factor: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def scaled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return factor * mean_error(x, y)

        return scaled

    for factor in (1.0, 2.0):
        out = unfinished(tmp_path / str(factor), [times(1.0)])
        fresh = MemoryDataset()
        result = evaluate(fresh, [times(factor)], out=out)
        assert result.scores.equals(evaluate(MemoryDataset(), [times(factor)]).scores)
        assert (len(fresh.reads) < len(fresh.originals) + len(fresh.versions)) == (factor == 1.0)


def test_a_metric_may_be_named_like_a_column(tmp_path: Path) -> None:
    metric = replace(create_metric("mse"), name="codec")
    out = unfinished(tmp_path, [metric])
    dataset = MemoryDataset()
    result = evaluate(dataset, [metric], out=out)
    assert result.scores.equals(evaluate(MemoryDataset(), [metric]).scores)
    assert len(dataset.reads) < len(dataset.originals) + len(dataset.versions)


def test_an_unfinished_file_of_another_dataset_or_none_is_refused(tmp_path: Path) -> None:
    out = unfinished(tmp_path, ["mse"])
    beside = tmp_path / "scores.parquet.unfinished"
    folder = write_mock_dataset(tmp_path / "cfqa")
    with pytest.raises(MetricError, match="an interrupted run on another dataset; delete it"):
        evaluate(folder, ["mse"], out=out)
    with pytest.raises(MetricError, match="an interrupted run on another dataset; delete it"):
        evaluate(MemoryDataset(seed=1), ["mse"], out=out)
    table = pq.read_table(beside)
    for bad in (
        b"not Parquet",
        table.replace_schema_metadata({b"cfqa": b"[" * 2}),
        table.replace_schema_metadata({b"cfqa": json.dumps({"metrics": 3}).encode()}),
        table.drop_columns(["codec"]),
    ):
        if isinstance(bad, bytes):
            beside.write_bytes(bad)
        else:
            pq.write_table(bad, beside)
        with pytest.raises(MetricError, match="not the scores of an interrupted run; delete it"):
            evaluate(MemoryDataset(), ["mse"], out=out)


def changed_arrays() -> MemoryDataset:
    """The same labels with features of another codec."""
    dataset = MemoryDataset()
    dataset.versions = {key: y + 1e-3 for key, y in dataset.versions.items()}
    return dataset


class Scale:
    """A metric with a state."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.factor if isinstance(self.factor, float) else 1.0) * mean_error(x, y)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"metrics": ["mse", Scale(2.0)]},
            "holds scores of a 'Scale' with other options, state or training",
        ),
        ({"metrics": ["mse", Scale(threading.Lock())]}, "that may be different (the state of"),
        ({"dataset": MemoryDataset(seed=1)}, "holds the scores of another dataset"),
        ({"dataset": changed_arrays()}, "holds scores of other arrays"),
        ({"precision": "high"}, "made with another device or precision"),
        ({}, None),
        ({"target": "loss"}, None),
        ({"metrics": [Scale(1.0), "mse"]}, None),
    ],
)
def test_a_finished_file_is_replaced_by_the_same_request_or_by_force(
    changed: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    request = {"dataset": MemoryDataset(), "metrics": ["mse", Scale(1.0)], "out": out}
    evaluate(**request)
    before = out.read_bytes()
    asked: dict[str, Any] = request | {"dataset": MemoryDataset()} | changed
    if said:
        with pytest.raises(MetricError, match=re.escape(said)) as told:
            evaluate(**asked)
        assert str(told.value).startswith(f"{out}: ")
        assert "overwrite it with --force (force=True)" in str(told.value)
        assert len(asked["dataset"].reads) <= 6  # to tell its arrays
        assert out.read_bytes() == before
        assert list(tmp_path.iterdir()) == [out]
        asked["force"] = True
    result = evaluate(**asked)
    again = read_evaluation(asked["dataset"], out)
    assert again.scores.equals(result.scores)
    assert again.dataset == result.dataset


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
def test_a_file_that_another_run_put_there_meanwhile_is_not_replaced(
    name: str, force: bool, tmp_path: Path
) -> None:
    out, others = tmp_path / name, ["mse"]

    def far(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if others:
            evaluate(MemoryDataset(), [others.pop()], out=out, force=force)
        return (y - x).abs().amax((1, 2, 3, 4))

    if force:
        out.write_text("something to replace")
    if out.suffix == ".parquet":  # both are kept
        result = evaluate(MemoryDataset(), [far], out=out, force=force)
        assert set(read_evaluation(out).columns()) == {"mse", "far"}
    else:
        with pytest.warns(MetricWarning, match="does not record what was scored"):
            result = evaluate(MemoryDataset(), [far], out=out, force=force)
        assert result.failures[str(out)].startswith(f"{out}: ")
        assert set(pa.csv.read_csv(out)["metric"].to_pylist()) == {"mse"}
        kept = pq.read_table(f"{out}.unfinished")["value"]
        assert kept.to_pylist() == result.scores["value"].to_pylist()
        assert evaluate(MemoryDataset(), [far], out=out, force=True).scores.equals(result.scores)
    assert list(tmp_path.iterdir()) == [out]


def test_another_metric_that_another_run_put_there_meanwhile_is_not_replaced(
    tmp_path: Path,
) -> None:
    out, others = tmp_path / "scores.parquet", [replace(create_metric("mse"), name="far")]

    def far(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if others:
            evaluate(MemoryDataset(), [others.pop()], out=out)
        return (y - x).abs().amax((1, 2, 3, 4))

    with pytest.warns(MetricWarning, match="holds scores of a 'far' that may be different"):
        result = evaluate(MemoryDataset(), [far], out=out, force=True)
    before = read_evaluation(out).columns()["far"]
    assert before.tolist() == evaluate(MemoryDataset(), ["mse"]).columns()["mse"].tolist()
    assert evaluate(MemoryDataset(), [far], out=out, force=True).scores.equals(result.scores)
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_the_same_request_put_there_meanwhile_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"

    class Same(Silent):
        def start(self, stage: str, total: int, unit: str) -> None:
            evaluate(MemoryDataset(), ["mse"], out=out)

    result = evaluate(MemoryDataset(), ["mse"], out=out, progress=Same())
    assert result.failures == {}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_a_file_that_does_not_say_what_it_holds_is_not_replaced(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    out.write_text("something else")
    with pytest.raises(MetricError, match="exists and does not record what was scored"):
        evaluate(MemoryDataset(), ["mse"], out=out)
    assert out.read_text() == "something else"
    evaluate(MemoryDataset(), ["mse"], out=out, force=True)
    assert out.read_bytes() != b"something else"


def test_force_begins_anew_beside_an_unfinished_file_of_another_dataset(tmp_path: Path) -> None:
    out = unfinished(tmp_path, ["mse"])
    result = evaluate(MemoryDataset(seed=1), ["mse"], out=out, force=True)
    assert result.scores.equals(evaluate(MemoryDataset(seed=1), ["mse"]).scores)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
def test_a_score_that_is_missing_is_null_on_disk(name: str, tmp_path: Path) -> None:
    def of_cls(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).square().view(len(y), 1, 1, 5, 8).mean((1, 2, 3, 4))

    out = tmp_path / name
    with pytest.warns(MetricWarning):
        result = evaluate(MemoryDataset(), ["mse", of_cls], out=out)
    written = pq.read_table(out) if out.suffix == ".parquet" else pa.csv.read_csv(out)
    assert written["value"].to_pylist() == result.scores["value"].to_pylist()
    assert written["value"].null_count == 60
    if out.suffix == ".parquet":
        again = read_evaluation(MemoryDataset(), out)
        assert again.failures == result.failures
        for table in ("scores", "correlations", "across_tasks", "comparisons"):
            assert getattr(again, table).equals(getattr(result, table))
        facts = json.loads(pq.read_schema(out).metadata[b"cfqa"])
        assert set(facts["provenance"]) == {"mse", "of_cls"}
        code = facts["provenance"]["of_cls"]["fingerprint"]
        assert code["sources"].keys() >= {"test_evaluator_runs"}
        assert "not: data files" in facts["covers"]


def test_scores_are_written_by_a_known_ending(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"must end in \.parquet or \.csv"):
        evaluate(MemoryDataset(), ["mse"], out=tmp_path / "scores.xlsx")
