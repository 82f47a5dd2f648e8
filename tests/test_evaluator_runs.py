"""Evaluations: failures, batches, selections, statistics of other folds, precision."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pytest
import torch
from cases import release
from memory_dataset import CODECS, LEVELS, FoldedDataset, MemoryDataset, rows_of
from mock_dataset import write_mock_dataset

from cfqa_data import load
from cfqa_data.console.progress import Silent
from cfqa_data.errors import CfqaError, MetricError, MetricWarning
from cfqa_data.eval import create_metric, evaluate, list_metrics, read_evaluation
from cfqa_data.eval.features import Features
from cfqa_data.eval.features.reading import read_batches
from cfqa_data.eval.metrics.base import Metric
from cfqa_data.eval.originals import OriginalStatistics
from cfqa_data.eval.text import paper_text

pytestmark = pytest.mark.usefixtures("quick_statistics")


def mean_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean absolute error."""
    return (x - y).abs().mean((1, 2, 3, 4))


# Failures.


def test_a_failing_metric_does_not_lose_the_others() -> None:
    def fails_late(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if float((x - y).abs().mean()) > 0.3:
            raise ValueError("too far")
        return y.sum((1, 2, 3, 4))

    def wrong_length(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(y) + 1)

    dataset = MemoryDataset()
    errors = {k: np.abs(y - dataset.originals[k[0]]).mean() for k, y in dataset.versions.items()}
    far = sum(error > 0.3 for error in errors.values())
    assert 0 < far < len(errors)
    with pytest.warns(MetricWarning) as warned:
        result = evaluate(dataset, ["mse", fails_late, wrong_length, "cka"])
    assert [metric.name for metric in result.metrics] == ["mse", "fails_late", "cka"]
    assert set(result.failures) == {"wrong_length", "fails_late"}
    note = "Without a column, since no feature could be scored: wrong_length."
    assert note in paper_text(result).splitlines()
    unsaved = replace(result, failures={"scores.parquet": "could not be written"})
    assert "Without a column" not in paper_text(unsaved)
    assert re.fullmatch(
        r"metric 'fails_late' failed: ValueError: too far \(compressed feature cls-0, x265, level "
        rf"\d\); {far} of {len(errors)} features have no score",
        result.failures["fails_late"],
    )
    assert "returned shape (2,) for a batch of 1" in result.failures["wrong_length"]
    assert sorted(str(w.message) for w in warned) == sorted(result.failures.values())
    assert {w.filename for w in warned} == {__file__}
    for row in rows_of(result.scores, metric="fails_late"):
        error = errors[row["source_id"], row["codec"], row["level"]]
        assert (row["value"] is None) == (error > 0.3)
    assert result.scores["value"].null_count == far
    (row,) = rows_of(result.across_tasks, metric="fails_late")
    assert row["n_pooled"] == len(errors) - far
    assert row["n_missing"] > 0


@pytest.mark.parametrize("batch", [5, *release(1, None)])
def test_a_metric_that_suits_one_task_keeps_its_scores_there(batch: int | None) -> None:
    def of_seg(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).square().view(len(y), 2, 1, 4, 8).mean((1, 2, 3, 4))

    with pytest.warns(MetricWarning, match="'of_seg' failed.* 100 of 200 features have no score"):
        result = evaluate(MemoryDataset(5), [of_seg, "mse"], batch=batch)
    for row in result.scores.to_pylist():
        assert (row["value"] is None) == ((row["metric"], row["task"]) == ("of_seg", "cls"))
    one, other = rows_of(result.across_codecs, task="seg")
    assert (one["srocc"], one["n_missing"]) == (other["srocc"], 0)
    one, other = rows_of(result.across_codecs, task="cls")
    assert (one["srocc"], one["n_missing"], other["n_valid"]) == (None, 4, 4)


def test_what_nothing_can_score_is_not_read_to_the_end() -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ValueError("no good")

    dataset = MemoryDataset(9)
    with pytest.raises(MetricError, match=r"no good \(compressed feature cls-0, x265, level 0\)$"):
        evaluate(dataset, [broken])
    assert {key for key in dataset.reads if isinstance(key, str)} == {
        f"{task}-{number}" for task in ("cls", "seg") for number in range(3)
    }


# Batches.


def among_others(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared error relative to the largest of the batch."""
    errors = (y - x).square().mean((1, 2, 3, 4))
    return errors / (errors.max() + 0.5)


def to_the_first(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The distance of a version from the first one of its batch."""
    return (y - y[0]).abs().mean((1, 2, 3, 4)) + (y - x).abs().mean((1, 2, 3, 4))


def only_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared error, of one feature at a time."""
    return (y - x).square().mean().reshape(1)


def late(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Depends on the batch on seg, and on cls only in third batches, which are not checked."""
    errors = (y - x).square().mean((1, 2, 3, 4))
    return among_others(x, y) if x.shape[1] == 2 or errors.max() > 0.6 else errors


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (among_others, r"its scores depend on the batch: 0\.\d+ among 7 and 0\.\d+ alone \(compr"),
        (to_the_first, "its scores depend on the batch"),
        (only_one, r"returned shape \(1,\) for a batch of 7.* \(7 versions of cls-0 at once\)"),
        (late, r"its scores depend on the batch.* \(compressed feature seg-0"),
    ],
)
def test_a_score_that_depends_on_its_batch_is_made_alone_and_that_is_said(
    metric: Any, said: str, tmp_path: Path
) -> None:
    alone = evaluate(MemoryDataset(), ["mse", metric], batch=1)
    assert alone.notes == {}
    out = tmp_path / "scores.parquet"
    with pytest.warns(MetricWarning, match=said):
        result = evaluate(MemoryDataset(), ["mse", metric], batch=7, out=out)
    values = [r.scores["value"].to_numpy() for r in (result, alone)]
    np.testing.assert_allclose(*values, rtol=1e-6)
    assert list(result.notes) == [metric.__name__]
    assert result.notes[metric.__name__].endswith("; features are scored one at a time")
    assert result.failures == {}
    assert read_evaluation(MemoryDataset(), out).notes == result.notes


def test_a_metric_that_no_two_calls_agree_on_is_told_of() -> None:
    calls: list[int] = []

    def drifts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        return (y - x).square().mean((1, 2, 3, 4)) + len(calls)

    with pytest.warns(MetricWarning, match=r"alone, then .*: the metric is not deterministic"):
        evaluate(MemoryDataset(), [drifts])


def test_a_batch_is_checked_now_and_then_and_rounding_is_no_dependence() -> None:
    sizes: list[int] = []

    def nearly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes.append(len(y))
        return 1 - torch.cosine_similarity(x, y, -1).mean((1, 2, 3)) + 1e-7 * len(y)

    assert evaluate(MemoryDataset(), [nearly], batch=5).notes == {}
    # 12 batches a task: the first, second, fourth and eighth are compared, each with two calls.
    assert (sizes.count(5), sizes.count(1)) == (24, 2 * 4 * 2)


@dataclass
class Scaled:
    """A function with parts, which has no hash."""

    factor: float

    def __call__(self, x: Features, y: Features) -> torch.Tensor:
        return self.factor * mean_error(x.values, y.values)


def test_what_is_called_needs_no_hash(tmp_path: Path) -> None:
    metric = replace(create_metric("mse"), name="scaled", function=Scaled(2.0))
    out = tmp_path / "scores.parquet"
    result = evaluate(MemoryDataset(), [metric, "mse"], out=out)
    of_mean_error = evaluate(MemoryDataset(), [mean_error, "mse"]).scores["value"].to_numpy()
    values = result.scores["value"].to_numpy()
    np.testing.assert_allclose(values[::2], 2 * of_mean_error[::2], rtol=1e-6)
    again = [replace(metric, function=Scaled(2.0)), "mse"]
    assert evaluate(MemoryDataset(), again, out=out).scores.equals(result.scores)


@pytest.mark.parametrize("batch", [3, *release(1, None)])
def test_a_metric_that_changes_its_input_changes_no_other(batch: int | None) -> None:
    def overwrites(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(7.0)
        return y.sub_(x).abs().mean((1, 2, 3, 4))

    alone = evaluate(MemoryDataset(), ["mse", "cka"], batch=batch).scores
    mixed = evaluate(MemoryDataset(), [overwrites, "mse", "cka"], batch=batch).scores
    of_both = mixed.filter(pa.compute.not_equal(mixed["metric"], "overwrites"))
    assert of_both.equals(alone)


@pytest.mark.parametrize("stored", ["f2", "f4", "f8"])
def test_a_metric_sees_float32_whatever_a_dataset_gives(stored: str) -> None:
    def counts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.dtype == y.dtype == torch.float32
        return y.sum((1, 2, 3, 4))

    dataset = MemoryDataset()
    for kept in (dataset.originals, dataset.versions):
        for key, values in kept.items():
            kept[key] = values.astype(stored)  # type: ignore[index]
            kept[key].flags.writeable = False  # type: ignore[index]
    assert not evaluate(dataset, [counts], batch=1).failures


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda y: sys.exit(3), "failed: SystemExit: 3"),
        (lambda y: torch.complex(y, y).sum((1, 2, 3, 4)), "returned Tensor, not one number"),
        (lambda y: y.square().mean(), r"returned shape \(\) for a batch"),
    ],
)
def test_an_answer_that_is_none_costs_only_its_metric(
    answer: Callable[[torch.Tensor], Any], said: str
) -> None:
    def answers(x: torch.Tensor, y: torch.Tensor) -> Any:
        return answer(y)

    with pytest.warns(MetricWarning):
        result = evaluate(MemoryDataset(), ["mse", answers])
    assert [metric.name for metric in result.metrics] == ["mse"]
    assert re.search(
        said + r".*compressed feature cls-0, x265, level 0", result.failures["answers"]
    )


# Selections.


def test_a_fold_selects_its_sources() -> None:
    result = evaluate(FoldedDataset(), ["mse"], fold=1)
    assert set(result.labels["source_id"].to_pylist()) == {"cls-1", "cls-3", "seg-1", "seg-3"}
    assert result.scores.num_rows == result.labels.num_rows == 4 * len(CODECS) * LEVELS
    with pytest.raises(MetricError, match="no source is in fold 7; folds are 0, 1"):
        evaluate(FoldedDataset(), ["mse"], fold=7)
    with pytest.raises(MetricError, match="no column 'fold'"):
        evaluate(MemoryDataset(), ["mse"], fold=0)


def test_a_limit_keeps_the_first_sources_of_each_task() -> None:
    result = evaluate(FoldedDataset(), ["mse"], limit=2)
    assert list(dict.fromkeys(result.labels["source_id"].to_pylist())) == [
        *("cls-0", "cls-1", "seg-0", "seg-1")
    ]
    of_fold = evaluate(FoldedDataset(), ["mse"], limit=1, fold=1)
    assert set(of_fold.labels["source_id"].to_pylist()) == {"cls-1", "seg-1"}


def test_a_label_that_is_not_there_is_named() -> None:
    dataset = MemoryDataset()
    dataset.labels = dataset.labels.drop_columns(["loss"])
    with pytest.raises(MetricError, match="no column 'loss' to follow"):
        evaluate(dataset, ["mse"], target="loss")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("distortion", np.nan, "distortion of cls-1, x265, level 3 is missing, NaN or Inf"),
        ("distortion", "bad", "labels in column 'distortion' are not numbers"),
        ("level", 4, "cls-1 has no row for codec x265, level 3; all sources need the same"),
        ("codec", None, "the labels have no column 'codec'"),
    ],
)
def test_labels_that_nothing_correlates_with_are_told_of_before_any_work(
    column: str, value: Any, message: str
) -> None:
    dataset = MemoryDataset()
    rows = dataset.labels.to_pylist()
    place = next(n for n, r in enumerate(rows) if (r["source_id"], r["level"]) == ("cls-1", 3))
    if value is None:
        dataset.labels = dataset.labels.drop_columns([column])
    else:
        values = [row[column] for row in rows]
        values = list(map(str, values)) if value == "bad" else values
        values[place] = value
        at = dataset.labels.column_names.index(column)
        dataset.labels = dataset.labels.set_column(at, column, pa.array(values))
    with pytest.raises(CfqaError, match=message):
        evaluate(dataset, ["mse"])
    assert not dataset.reads


# Statistics of other folds' originals.


def test_statistics_are_of_the_other_folds() -> None:
    dataset = FoldedDataset()
    names = ["deviation", "covariance"]
    found = OriginalStatistics(dataset, names, "cpu", Silent())
    for task in ("cls", "seg"):
        for fold in (0, 1):
            others = [dataset.originals[f"{task}-{i}"] for i in range(4) if i % 2 != fold]
            tokens = np.concatenate(others, axis=0).transpose(1, 0, 2, 3).astype(np.float64)
            given = found.of(task, fold, names)
            for layer, of_layer in enumerate(tokens):
                rows = of_layer.reshape(-1, of_layer.shape[-1])
                np.testing.assert_allclose(given["deviation"][layer], rows.std(0), rtol=1e-9)
                np.testing.assert_allclose(
                    given["covariance"][layer], np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12
                )
    alone = OriginalStatistics(dataset, ["deviation"], "cpu", Silent()).of("cls", 0, ["deviation"])
    torch.testing.assert_close(alone["deviation"], found.of("cls", 0, names)["deviation"])


def test_a_metric_gets_the_statistics_that_it_needs() -> None:
    def error_in_deviations(x: Features, y: Features, *, deviation: torch.Tensor) -> torch.Tensor:
        scaled = (y.values - x.values) / deviation[:, None]
        return scaled.square().double().mean((1, 2, 3, 4))

    metric = Metric(
        name="scaled",
        family="whitened",
        formula="",
        function=error_in_deviations,
        lower_better=True,
        score_range=(0.0, np.inf),
        identity=0.0,
        invariances=frozenset(),
        citation="",
        needs=("deviation",),
    )
    x = torch.ones(1, 1, 1, 2, 2)
    with pytest.raises(MetricError, match=r"'scaled' needs the dataset's deviation .*evaluate"):
        metric(x, x)
    dataset = FoldedDataset()
    result = evaluate(dataset, [metric])
    spread = np.concatenate([dataset.originals[f"cls-{i}"] for i in (1, 3)]).std((0, 1, 2))
    row = rows_of(result.scores, source_id="cls-2", codec="x265", level=4)[0]
    error = dataset.versions["cls-2", "x265", 4] - dataset.originals["cls-2"]
    assert row["value"] == pytest.approx(np.square(error / spread).mean(), rel=1e-5)
    for lacking, asked, message in (
        (
            FoldedDataset(folds=1),
            metric,
            "'scaled': cls: deviation is taken.* all sources are in one",
        ),
        (MemoryDataset(), metric, "'scaled': .* no column 'fold'"),
        (dataset, "psnr", "'psnr': value_range is .* only a dataset's manifest has"),
    ):
        with pytest.raises(MetricError, match=message):
            evaluate(lacking, [asked])
        with pytest.warns(MetricWarning, match=message):
            others = evaluate(lacking, ["mse", asked])
        assert [m.name for m in others.metrics] == ["mse"]
        assert others.scores.equals(evaluate(lacking, ["mse"]).scores)


def test_the_value_range_is_the_widest_quantisers(tmp_path: Path) -> None:
    dataset = load(write_mock_dataset(tmp_path / "cfqa"))
    found = OriginalStatistics(dataset, ["value_range"], "cpu", Silent())
    for task, spec in dataset.manifest.tasks.items():
        tables = [codec.quantizer.values() for codec in spec.codecs.values() if codec.quantizer]
        widest = np.max([np.ptp(table, axis=1) for table in tables], axis=0)
        np.testing.assert_allclose(found.of(task, 0, ["value_range"])["value_range"], widest)


# Reading.


def test_codes_are_dequantised_to_what_the_dataset_reads(tmp_path: Path) -> None:
    dataset = load(write_mock_dataset(tmp_path / "cfqa"))
    columns = {name: dataset.labels[name].to_pylist() for name in ("source_id", "codec", "level")}
    seen = []
    # Any name but "cpu" has features sent as integers; this one is the CPU all the same.
    for batch in read_batches(dataset, range(len(dataset)), "cpu:0", size=7):
        for row, y in zip(batch.rows, batch.y.values, strict=True):
            expected = dataset.compressed(*(columns[name][row] for name in columns))
            np.testing.assert_array_equal(y.numpy(), expected)
        seen += batch.rows
    assert sorted(seen) == list(range(len(dataset)))


@pytest.mark.parametrize("path", ["cfqa", None], ids=["folder", "hub"])
def test_threads_read_ahead_only_where_answers_are_waited_for(path: str | None) -> None:
    dataset, readers = MemoryDataset(), set()
    read = dataset.compressed

    def compressed(source_id: str, codec: str, level: int) -> np.ndarray:
        readers.add(threading.current_thread() is threading.main_thread())
        return read(source_id, codec, level)

    dataset.compressed = compressed  # type: ignore[method-assign]
    dataset.path = path  # type: ignore[attr-defined]
    rows = range(dataset.labels.num_rows)
    assert sum(len(batch.rows) for batch in read_batches(dataset, rows, "cpu", 3)) == len(rows)
    assert readers == {path is not None}


# Metrics that are modules, and those of other packages.


def test_a_module_is_evaluated_in_evaluation_mode() -> None:
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = torch.nn.Dropout(0.9)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.dropout(y - x).square().mean((1, 2, 3, 4))

    result = evaluate(MemoryDataset(), [Learned(), "mse"])
    values = result.scores["value"].to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=1e-6)
    assert [metric.name for metric in result.metrics] == ["Learned", "mse"]


def test_metrics_of_installed_packages_are_listed_and_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someones_metrics.py").write_text(
        "def far(x, y):\n    return (y - x).abs().amax((1, 2, 3, 4))\n"
    )
    info = tmp_path / "someones_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cfqa.metrics]\nfarthest = someones_metrics:far\nmse = someones_metrics:far\n"
    )
    assert "farthest" not in list_metrics()
    monkeypatch.syspath_prepend(tmp_path)
    assert list_metrics()[-1] == "farthest"
    assert list_metrics("custom") == ["farthest"]
    x, y = torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    metric = create_metric("farthest")
    assert (metric.name, float(metric(x, 3 * y))) == ("farthest", 3.0)
    assert float(create_metric("mse")(x, 3 * y)) == 9.0


# Precision.


def test_the_precision_of_matrix_products_is_set_for_the_run_alone() -> None:
    seen = []

    def looks(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return y.sum((1, 2, 3, 4))

    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        evaluate(MemoryDataset(), [looks], precision=precision)  # type: ignore[arg-type]
        assert set(seen) == {precision}
        assert torch.get_float32_matmul_precision() == before
        seen.clear()
    with pytest.raises(MetricError, match="precision is 'highest' or 'high', not 'low'"):
        evaluate(MemoryDataset(), [looks], precision="low")  # type: ignore[arg-type]
