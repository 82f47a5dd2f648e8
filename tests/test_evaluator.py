"""The evaluator on a dataset in memory that counts its reads; `test_cli.py` tests folders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import release
from memory_dataset import CODECS, LEVELS, TASKS, MemoryDataset, rows_of
from scipy import stats

from cfqa_data import torch_state
from cfqa_data.errors import MetricError
from cfqa_data.eval import create_metric, evaluate


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.calls.append(("start", stage, total, unit))

    def advance(self, n: int = 1) -> None:
        self.calls.append(("advance", n))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    return MemoryDataset()


def test_scores_are_the_metrics_of_each_pair(dataset: MemoryDataset) -> None:
    scores = evaluate(dataset).scores
    assert scores.column_names == ["task", "source_id", "codec", "level", "metric", "value"]
    assert scores.num_rows == 3 * dataset.labels.num_rows
    for row in scores.to_pylist()[::7]:
        x = torch.from_numpy(dataset.originals[row["source_id"]])[None]
        y = torch.from_numpy(dataset.versions[row["source_id"], row["codec"], row["level"]])[None]
        assert row["value"] == pytest.approx(float(create_metric(row["metric"])(x, y)), rel=1e-6)


def test_correlations_are_scipys_averaged_by_the_rules(dataset: MemoryDataset) -> None:
    result = evaluate(dataset)
    assert result.correlations.num_rows == len(TASKS) * len(CODECS) * 3
    for row in result.correlations.to_pylist():
        plcc, srocc, all_scores, all_labels = [], [], [], []
        where = {"task": row["task"], "codec": row["codec"]}
        for index in range(3):
            source = f"{row['task']}-{index}"
            label = [r["distortion"] for r in rows_of(dataset.labels, source_id=source, **where)]
            score = [
                r["value"]
                for r in rows_of(result.scores, source_id=source, metric=row["metric"], **where)
            ]
            all_scores += score
            all_labels += label
            if index > 0:  # source 0 has a constant label
                plcc.append(stats.pearsonr(score, label).statistic)
                srocc.append(stats.spearmanr(score, label).statistic)
        assert row["plcc"] == pytest.approx(np.mean(plcc))
        assert row["srocc"] == pytest.approx(np.mean(srocc))
        assert (row["n_valid"], row["n_constant"], row["n_flat"]) == (2, 1, 0)
        assert row["pooled_plcc"] == pytest.approx(stats.pearsonr(all_scores, all_labels).statistic)
        assert row["pooled_srocc"] == pytest.approx(
            stats.spearmanr(all_scores, all_labels).statistic
        )
        assert row["n_pooled"] == 3 * LEVELS
        assert np.sign(row["srocc"]) == (1 if row["lower_better"] else -1)


def test_across_codecs_puts_the_levels_of_all_codecs_together(dataset: MemoryDataset) -> None:
    result = evaluate(dataset, ["mse"])
    assert result.across_codecs.num_rows == len(TASKS)
    for row in result.across_codecs.to_pylist():
        srocc = [
            stats.spearmanr(
                [r["value"] for r in rows_of(result.scores, source_id=source)],
                [r["distortion"] for r in rows_of(dataset.labels, source_id=source)],
            ).statistic
            for source in (f"{row['task']}-1", f"{row['task']}-2")
        ]
        assert row["srocc"] == pytest.approx(np.mean(srocc))
        assert (row["codecs"], row["n_valid"], row["n_pooled"]) == (2, 2, 3 * 2 * LEVELS)


def test_each_feature_is_read_once() -> None:
    dataset = MemoryDataset()
    evaluate(dataset, ["mse", "cka"], batch=3)
    assert set(dataset.reads.values()) == {1}
    assert len(dataset.reads) == len(dataset.originals) + len(dataset.versions)


@pytest.mark.parametrize("batch", [3, *release(1, 1000)])
def test_the_batch_size_does_not_matter(dataset: MemoryDataset, batch: int) -> None:
    whole, parts = evaluate(dataset), evaluate(dataset, batch=batch)
    np.testing.assert_allclose(parts.scores["value"], whole.scores["value"], rtol=1e-6)


def test_the_loss_can_be_followed_instead(dataset: MemoryDataset) -> None:
    result = evaluate(dataset, ["mse"], target="loss")
    assert result.target == "loss"
    assert set(result.correlations["n_valid"].to_pylist()) == {3}
    assert min(result.correlations["srocc"].to_pylist()) > 0.9


def test_progress_counts_every_feature(dataset: MemoryDataset) -> None:
    recorder = Recorder()
    evaluate(dataset, ["mse"], batch=4, progress=recorder)
    total = dataset.labels.num_rows
    assert recorder.calls[0] == ("start", "evaluate", total, "features")
    assert recorder.calls[-1] == ("finish",)
    assert sum(call[1] for call in recorder.calls if call[0] == "advance") == total


def test_a_callable_is_a_metric_and_a_flat_one_gains_nothing(dataset: MemoryDataset) -> None:
    def useless(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape == y.shape
        assert x.dtype == torch.float32
        return torch.ones(len(y))

    result = evaluate(dataset, [useless, "mse"])
    for row in rows_of(result.correlations, metric="useless"):
        assert (row["plcc"], row["srocc"], row["n_valid"], row["n_flat"]) == (0.0, 0.0, 2, 2)
        assert row["lower_better"] is None


def test_one_metric_needs_no_list(dataset: MemoryDataset) -> None:
    def half(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full((len(y),), 0.5)

    for metric, name in ((half, "half"), (create_metric("cka"), "cka"), ("mse", "mse")):
        assert [m.name for m in evaluate(dataset, metric).metrics] == [name]


def test_labels_that_never_vary_give_null_not_a_number() -> None:
    result = evaluate(MemoryDataset(sources=1), ["mse"])
    assert result.correlations["plcc"].to_pylist() == [None] * 4
    assert result.correlations["n_valid"].to_pylist() == [0] * 4
    assert result.across_codecs["srocc"].to_pylist() == [None] * 2


# Bad input.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_name_the_feature(bad: float) -> None:
    dataset = MemoryDataset()
    dataset.versions["seg-1", "vvenc", 7][1, 0, 2, 3] = bad
    with pytest.raises(MetricError, match="seg-1, vvenc, level 7 holds NaN or Inf"):
        evaluate(dataset, ["mse"], batch=4)
    dataset.originals["cls-2"][0, 0, 0, 0] = bad
    with pytest.raises(MetricError, match="original cls-2 holds NaN or Inf"):
        evaluate(dataset, ["mse"])


def test_a_failing_metric_is_named_with_the_feature(dataset: MemoryDataset) -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full((len(y),), torch.nan)

    with pytest.raises(
        MetricError,
        match=r"'broken' gave nan for item 0 \(compressed feature cls-0, x265, level 0\)",
    ):
        evaluate(dataset, [broken])


def test_what_a_metric_raises_is_told_with_the_feature(dataset: MemoryDataset) -> None:
    def raises(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ValueError("no good\nat all")

    expected = (
        r"^metric 'raises' failed: ValueError: no good "
        r"\(compressed feature cls-0, x265, level 0\)$"
    )
    with pytest.raises(MetricError, match=expected):
        evaluate(dataset, [raises])

    def interrupts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, [interrupts])


def test_a_source_that_lacks_a_level_is_named() -> None:
    dataset = MemoryDataset()
    dataset.labels = dataset.labels.slice(1)
    with pytest.raises(MetricError, match="cls: cls-0 has no row for codec x265, level 0"):
        evaluate(dataset, ["mse"])


def test_a_row_that_is_there_twice_is_refused() -> None:
    dataset = MemoryDataset()
    dataset.labels = pa.concat_tables([dataset.labels, dataset.labels.slice(5, 2)])
    with pytest.raises(MetricError, match="labels of cls: 2 rows occur twice"):
        evaluate(dataset, ["mse"])


def test_a_missing_label_is_named() -> None:
    dataset = MemoryDataset()
    label = dataset.labels["distortion"].to_numpy().copy()
    label[12] = np.nan
    dataset.labels = dataset.labels.set_column(4, "distortion", [label])
    with pytest.raises(MetricError, match="distortion of cls-1, x265, level 2 is missing"):
        evaluate(dataset, ["mse"])


def test_impossible_arguments_are_refused(dataset: MemoryDataset) -> None:
    for arguments, message in (
        ({"batch": 0}, "batch must be at least 1"),
        ({"target": "score"}, "target is 'distortion' or 'loss'"),
        ({"metrics": 3}, "a metric must be a name or a callable, not 3"),
        ({"metrics": None}, "a metric must be a name or a callable, not None"),
        ({"metrics": ["msee"]}, "unknown metric 'msee': did you mean 'mse'"),
        ({"task": "cls"}, "only with a path"),
        ({"untrusted": True}, "only with a path"),
    ):
        with pytest.raises(MetricError, match=message):
            evaluate(dataset, **arguments)
    empty = MemoryDataset()
    empty.labels = empty.labels.slice(0, 0)
    with pytest.raises(MetricError, match="no compressed features"):
        evaluate(empty, ["mse"])


@pytest.mark.parametrize(("small", "expected"), [(10**6, 1), (0, 2)])
def test_small_features_take_one_thread(
    dataset: MemoryDataset, small: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_state, "SMALL", small)
    seen = []

    def mse(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return (x - y).square().mean(dim=(1, 2, 3, 4))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        evaluate(dataset, [mse])
        assert (seen[-1], torch.get_num_threads()) == (expected, 2)
    finally:
        torch.set_num_threads(before)
