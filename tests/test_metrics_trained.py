"""Metrics that are trained: on the other folds of the same task, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_dataset import CODECS, LEVELS, MemoryDataset, rows_of

from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import evaluate
from cfqa_data.eval.metrics import as_metric


class FoldedDataset(MemoryDataset):
    """Four sources per task, in folds 0, 1, 0, 1."""

    def __init__(self, folds: int = 2) -> None:
        super().__init__(4)
        numbers = [int(name.split("-")[1]) % folds for name in self.labels["source_id"].to_pylist()]
        self.labels = self.labels.append_column("fold", pa.array(numbers))


class MeanLabel:
    """Gives the mean distortion of what it was trained on, and keeps what that was."""

    lower_better = True

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __deepcopy__(self, memo: Any) -> MeanLabel:
        return self  # to see all trainings

    def fit(self, training: Any, device: str) -> Any:
        labels = training.labels
        self.seen.append(labels)
        first = labels.slice(0, 1).to_pylist()[0]
        assert training.original(first["source_id"]).ndim == 4
        training.compressed(first["source_id"], first["codec"], first["level"])
        mean = float(np.mean(labels["distortion"].to_numpy()))
        return lambda x, y: torch.full((len(y),), mean)


def test_a_metric_is_trained_on_the_other_folds_of_the_task() -> None:
    dataset, metric = FoldedDataset(), MeanLabel()
    result = evaluate(dataset, [metric, "mse"])
    assert len(metric.seen) == 4
    assert [m.name for m in result.metrics] == ["MeanLabel", "mse"]
    assert result.metrics[0].lower_better is True
    labels = dataset.labels.to_pylist()
    for row in rows_of(result.scores, metric="MeanLabel"):
        fold = int(row["source_id"].split("-")[1]) % 2
        others = [
            label["distortion"]
            for label in labels
            if label["task"] == row["task"] and label["fold"] != fold
        ]
        assert len(others) == 2 * len(CODECS) * LEVELS
        assert row["value"] == pytest.approx(np.mean(others), rel=1e-6)


def test_one_fold_can_be_trained_for_alone() -> None:
    metric = MeanLabel()
    result = evaluate(FoldedDataset(), [metric], fold=1)
    assert len(metric.seen) == 2
    assert {row["fold"] for table in metric.seen for row in table.to_pylist()} == {0}
    assert set(result.labels["source_id"].to_pylist()) == {"cls-1", "cls-3", "seg-1", "seg-3"}


def test_training_may_follow_gradients() -> None:
    class Descends:
        def fit(self, training: Any, device: str) -> Any:
            weight = torch.zeros(1, requires_grad=True)
            (weight - 3.0).square().backward()
            with torch.no_grad():
                weight -= weight.grad / 2
            return lambda x, y: weight.expand(len(y))

    result = evaluate(FoldedDataset(), [Descends()])
    assert set(result.scores["value"].to_pylist()) == {3.0}


def test_training_that_fails_leaves_the_others() -> None:
    class Fails:
        def fit(self, training: Any, device: str) -> Any:
            raise RuntimeError("no convergence")

    with pytest.warns(MetricWarning, match="no convergence"):
        result = evaluate(FoldedDataset(), [Fails(), "mse"])
    assert [metric.name for metric in result.metrics] == ["mse"]
    expected = "metric 'Fails' cannot be trained: RuntimeError: no convergence"
    assert result.failures["Fails"] == f"{expected} (cls, all folds but 0)"


def test_training_that_fails_for_one_fold_keeps_the_scores_of_the_others() -> None:
    class FailsOnce(MeanLabel):
        def fit(self, training: Any, device: str) -> Any:
            if not self.seen:
                self.seen.append(training)
                raise RuntimeError("no convergence")
            return super().fit(training, device)

    expected = r"\(cls, all folds but 0\); 40 of 160 features have no score"
    with pytest.warns(MetricWarning, match=expected):
        result = evaluate(FoldedDataset(), [FailsOnce()])
    lost = [row for row in result.scores.to_pylist() if row["value"] is None]
    assert {row["source_id"] for row in lost} == {"cls-0", "cls-2"}


def test_training_is_told_which_label_is_followed() -> None:
    class Follows:
        def fit(self, training: Any, device: str) -> Any:
            mean = float(np.mean(training.labels[training.target].to_numpy()))
            return lambda x, y: torch.full((len(y),), mean)

    for target in ("distortion", "loss"):
        dataset = FoldedDataset()
        result = evaluate(dataset, [Follows()], target=target)  # type: ignore[arg-type]
        here = [row["task"] == "cls" and row["fold"] == 1 for row in dataset.labels.to_pylist()]
        mean = np.mean(dataset.labels[target].to_numpy()[here])
        assert rows_of(result.scores, source_id="cls-0")[0]["value"] == pytest.approx(mean)


def test_training_needs_another_fold() -> None:
    with pytest.raises(MetricError, match="no other fold to train on"):
        evaluate(FoldedDataset(folds=1), [MeanLabel()])
    with pytest.raises(MetricError, match="no column 'fold'"):
        evaluate(MemoryDataset(), [MeanLabel()])


def test_used_alone_a_metric_asks_to_be_trained() -> None:
    metric = as_metric(MeanLabel())
    x = torch.ones(1, 1, 1, 2, 2)
    with pytest.raises(MetricError, match="'MeanLabel' is trained on the data: evaluate"):
        metric(x, x)
    with pytest.raises(MetricError, match="'mse' is not one that is trained"):
        as_metric("mse").fitted(MemoryDataset())
    assert float(metric.fitted(FoldedDataset())(x, x)) > 0


def test_of_a_class_one_is_made() -> None:
    assert as_metric(MeanLabel).fit is not None

    class Needs:
        def __init__(self, weights: str) -> None: ...
        def __call__(self, x: Any, y: Any) -> Any: ...

    with pytest.raises(MetricError, match=r"'Needs' cannot be made: TypeError: .*weights"):
        as_metric(Needs)
