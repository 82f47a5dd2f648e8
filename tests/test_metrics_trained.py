"""Trained metrics are trained only on the other folds of the same task."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import release
from memory_dataset import CODECS, LEVELS, FoldedDataset, InterruptAfter, MemoryDataset, rows_of
from mock_dataset import write_mock_dataset
from test_evaluator import Recorder

from cfqa_data import Dataset, load
from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import create_metric, evaluate, load_metric, save_metric
from cfqa_data.eval.features.training import TrainingSet
from cfqa_data.eval.metrics import as_metric
from cfqa_data.loaders.torch import Pairs, data_loader

KEYS = ("source_id", "codec", "level")

pytestmark = pytest.mark.usefixtures("quick_statistics")


class MeanLabel:
    """Returns the mean distortion of its training data, and records that data."""

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
    with pytest.raises(MetricError, match="'MeanLabel' must be trained first: evaluate"):
        metric(x, x)
    with pytest.raises(MetricError, match="'mse' is not a trained"):
        as_metric("mse").fitted(MemoryDataset())
    assert float(metric.fitted(FoldedDataset())(x, x)) > 0


# What training gets.


def memory_set(tasks: Any = ("cls",)) -> TrainingSet:
    dataset = FoldedDataset(folds=4)
    return TrainingSet(dataset, np.flatnonzero(np.isin(dataset.labels["task"], tasks)))


def test_training_is_a_dataset_of_the_other_folds_and_gives_nothing_else(tmp_path: Path) -> None:
    """A training set gives no access to held-out originals and left-out codecs."""
    folder = load(write_mock_dataset(tmp_path / "cfqa", sources=3), "cls")
    seen: list[TrainingSet] = []

    class Looks:
        lower_better = True

        def __deepcopy__(self, memo: Any) -> Looks:
            return self

        def fit(self, training: TrainingSet, device: str) -> Any:
            seen.append(training)
            return lambda x, y: (y - x).abs().mean((1, 2, 3, 4))

    evaluate(folder, Looks(), leave_out="codec")
    every = {tuple(row.values()) for row in folder.labels.select(KEYS).to_pylist()}
    codecs = set(folder.labels["codec"].to_pylist())
    assert len(seen) == len(folder.source_ids) * (1 + len(codecs))
    for training in seen:
        assert isinstance(training, Dataset)
        inside = {tuple(row.values()) for row in training.labels.select(KEYS).to_pylist()}
        assert len(training) == len(inside) < len(every)
        assert set(training.source_ids) == {key[0] for key in inside}
        for number, key in enumerate(every - inside):
            reads = (training.compressed, training.codes, training.bitstream)
            for read in reads if number == 0 else reads[:1]:
                with pytest.raises(MetricError, match="is not in this training set"):
                    read(*key)
        for source in set(folder.source_ids) - set(training.source_ids):
            for of_source in (training.original, training.truth, training.image, training.show):
                with pytest.raises(MetricError, match=f"{source!r} is not in this training"):
                    of_source(source)
        for part in (training[:3], *training.split()):
            assert {row.label["source_id"] for row in part[::15]} <= set(part.source_ids)
            with pytest.raises(MetricError, match="not in this training set"):
                part.original(next(iter(set(folder.source_ids) - set(part.source_ids))))
    left = {frozenset(codecs - set(training.labels["codec"].to_pylist())) for training in seen}
    assert left == {frozenset(), *(frozenset([codec]) for codec in codecs)}


@pytest.mark.parametrize("workers", [0, *release(1)])
def test_loaders_take_what_training_gets(tmp_path: Path, workers: int) -> None:
    folder = load(write_mock_dataset(tmp_path / "cfqa", sources=3), "cls")
    training = TrainingSet(folder, np.flatnonzero(folder.labels["fold"].to_numpy() != 0), "loss")
    pairs = Pairs(training)
    expected = training.labels["loss"].to_pylist()
    assert [float(pair.label) for pair in pairs] == expected
    batches = list(data_loader(pairs, 7, shuffle=True, workers=workers))
    assert sum(len(batch.original) for batch in batches) == len(training) == len(expected)
    assert sorted(float(label) for batch in batches for label in batch.label) == sorted(expected)
    again = pickle.loads(pickle.dumps(training))
    assert again[0].original.tobytes() == training[0].original.tobytes()
    assert repr(again) == (
        f"<TrainingSet: features {len(expected)}, sources 2, folds 1, 2, target loss>"
    )


def test_a_fold_of_training_is_kept_for_validation() -> None:
    training = memory_set()
    assert training.folds == [0, 1, 2, 3]
    for fold, (train, validation) in ((3, training.split()), (1, training.split(1))):
        assert validation.folds == [fold]
        assert train.folds == [other for other in range(4) if other != fold]
        assert len(train) + len(validation) == len(training)
        assert {train.target, validation.target} == {training.target}
    groups = pa.array(
        ["a" if row["fold"] in (0, 3) else None for row in training.labels.to_pylist()]
    )
    grouped = FoldedDataset(folds=4)
    grouped.labels = grouped.labels.slice(0, len(training)).append_column("group", groups)
    train, validation = TrainingSet(grouped).split()
    assert (train.folds, validation.folds) == ([1, 2], [3])
    for fold in (7, None):
        alone = training.split(2)[1] if fold is None else training
        with pytest.raises(MetricError, match=r"no fold .* to validate on; folds are"):
            alone.split(fold)


def test_training_knows_the_scores_of_other_metrics_once() -> None:
    dataset = FoldedDataset()

    class OfScores:
        inputs = [create_metric("mse")]  # noqa: RUF012

        def fit(self, training: TrainingSet, device: str) -> Any:
            scores = training.scores(self.inputs)
            assert scores.shape == (len(training), 1)
            for score, pair in zip(scores[::13, 0], training[::13], strict=True):
                expected = np.square(pair.compressed - pair.original).mean()
                assert score == pytest.approx(expected, rel=1e-5)
            np.testing.assert_array_equal(training[5:].scores(self.inputs), scores[5:])
            dataset.reads.clear()
            return lambda x, y: (y - x).square().mean((1, 2, 3, 4))

    as_metric(OfScores()).fitted(dataset)
    recorder = Recorder()
    assert not evaluate(dataset, OfScores(), progress=recorder).failures
    starts = [call[1:] for call in recorder.calls if call[0] == "start"]
    assert starts == [
        ("inputs", 160, "features"),
        ("train", 4, "trainings"),
        ("evaluate", 160, "features"),
    ]


@pytest.mark.parametrize("of_folder", [False, True])
def test_training_may_evaluate_on_its_validation_fold(of_folder: bool, tmp_path: Path) -> None:
    dataset: Any = FoldedDataset(folds=4)
    if of_folder:
        dataset = load(write_mock_dataset(tmp_path / "cfqa", sources=3), "cls")
    reached: list[float] = []

    class Chooses:
        def fit(self, training: TrainingSet, device: str) -> Any:
            progress = training.progress
            found = evaluate(training.split()[1], ["mse"], target="loss", progress=progress)
            reached.extend(row["srocc"] for row in found.across_codecs.to_pylist())
            return lambda x, y: (y - x).square().mean((1, 2, 3, 4))

    assert not evaluate(dataset, Chooses()).failures
    assert len(reached) == (3 if of_folder else 8)
    assert all(value is not None for value in reached)


@pytest.mark.parametrize("target", ["distortion", "loss"])
def test_the_label_that_is_asked_for_is_trained_on_alone_too(target: str) -> None:
    class Follows:
        def fit(self, training: TrainingSet, device: str) -> Any:
            mean = float(np.mean(training.labels[training.target].to_numpy()))
            return lambda x, y: torch.full((len(y),), mean)

    x, dataset = torch.ones(1, 1, 1, 2, 2), FoldedDataset()
    found = create_metric(Follows).fitted(dataset, target)
    assert float(found(x, x)) == pytest.approx(dataset.labels[target].to_numpy().mean())
    again = create_metric(Follows).fitted(TrainingSet(dataset), target)
    assert float(again(x, x)) == float(found(x, x))
    with pytest.raises(MetricError, match="the labels have no column 'rate' to follow"):
        create_metric(Follows).fitted(dataset, "rate")


def test_training_on_fewer_sources_is_of_the_first_ones_of_each_fold(tmp_path: Path) -> None:
    dataset, metric = FoldedDataset(), MeanLabel()
    evaluate(dataset, metric, limit=1)
    assert [set(labels["source_id"].to_pylist()) for labels in metric.seen] == [
        {"cls-1"},
        {"seg-1"},
    ]
    out = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, Follows0(), limit=1, out=out, progress=InterruptAfter(15))
    result = evaluate(dataset, Follows0(), out=out)  # which does not go on from those
    assert result.scores.equals(evaluate(dataset, Follows0()).scores)


class Follows0:
    """Returns the mean label of its training data."""

    def fit(self, training: TrainingSet, device: str) -> Any:
        mean = float(np.mean(training.labels[training.target].to_numpy()))
        return lambda x, y: torch.full((len(y),), mean)


# What training finds.


class Weighted(torch.nn.Module):
    """A weighted squared error of the channels, whose fit returns the metric itself."""

    lower_better = True
    tasks = "cls"

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(channels))

    def fit(self, training: TrainingSet, device: str) -> Weighted:
        assert self.training
        assert not self.weights.any()  # each training begins anew
        with torch.no_grad():
            self.weights += training.labels[training.target].to_numpy().sum()
        return self

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return (y - x).square().mean((1, 2, 3)) @ self.weights


def test_what_training_found_is_kept_saved_and_loaded(tmp_path: Path) -> None:
    dataset, metric = FoldedDataset(), Weighted()
    out = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, [metric, "gap_mean"], out=out, progress=InterruptAfter(20))
    assert not metric.weights.any()
    result = evaluate(dataset, [metric, "gap_mean"], out=out)  # the same object goes on
    whole = evaluate(FoldedDataset(), [Weighted(), "gap_mean"])
    assert result.scores.equals(whole.scores)
    assert set(result.fitted) == {"Weighted", "gap_mean"}
    assert set(whole.fitted["Weighted"]) == {("cls", 0), ("cls", 1)}
    for (task, fold), model in whole.fitted["Weighted"].items():
        assert model.name == "Weighted"
        row = next(r for r in rows_of(dataset.labels, task=task, fold=fold) if r["level"] == 3)
        x = dataset.originals[row["source_id"]]
        y = dataset.versions[row["source_id"], row["codec"], 3]
        (scored,) = (
            r["value"]
            for r in rows_of(whole.scores, source_id=row["source_id"], codec=row["codec"], level=3)
            if r["metric"] == "Weighted"
        )
        assert float(model(x, y)) == pytest.approx(scored, rel=1e-6)
        path = save_metric(model, tmp_path / "model.safetensors")
        for of in (Weighted, Weighted(), "test_metrics_trained:Weighted"):
            loaded = load_metric(path, metric=of)
            assert torch.equal(loaded(x, y), model(x, y))
            assert loaded.trained_on == model.trained_on
            assert loaded.trained_on.folds == (1 - fold,)
            assert (loaded.name, loaded.lower_better, loaded.tasks) == ("Weighted", True, ("cls",))
    for given, message in (
        (None, "holds the state of a Weighted; give it: metric=Weighted"),
        (Weighted(3), "holds the state of a Weighted, not of this Weighted .*size mismatch"),
        (MeanLabel, "holds the state of a Weighted, not of this MeanLabel .AttributeError"),
    ):
        with pytest.raises(MetricError, match=f"model.safetensors: {message}") as told:
            load_metric(path, metric=given)
        assert "\n" not in str(told.value)
    with pytest.raises(MetricError, match=r"a model must end in \.safetensors"):
        save_metric(model, tmp_path / "model.json")
    stateless = create_metric(MeanLabel).fitted(dataset)
    with pytest.raises(MetricError, match="'MeanLabel': its function has no state to save"):
        save_metric(stateless, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MetricError, match=r"other.safetensors: not a saved trained metric"):
        load_metric(tmp_path / "other.safetensors", metric=Weighted)


def test_statistics_reach_what_was_trained_and_its_file(tmp_path: Path) -> None:
    class InDeviations(Weighted):
        needs = ("deviation",)
        tasks = ()

        def forward(self, x: Any, y: Any, deviation: Any = None) -> torch.Tensor:
            return ((y - x) / deviation[:, None]).square().mean((1, 2, 3, 4)).float()

    dataset = FoldedDataset()
    dataset.labels = dataset.labels.filter(np.array(dataset.labels["task"].to_pylist()) == "cls")
    result = evaluate(dataset, InDeviations())
    assert not result.failures
    model = result.fitted["InDeviations"]["cls", 0]
    x, y = dataset.originals["cls-0"], dataset.versions["cls-0", "x265", 5]
    loaded = load_metric(save_metric(model, tmp_path / "m.safetensors"), metric=InDeviations)
    assert torch.equal(loaded(x, y), model(x, y))


def test_what_fit_returns_is_something_that_scores() -> None:
    class Nothing:
        def fit(self, training: Any, device: str) -> Any: ...

    class Kept(MeanLabel):
        def fit(self, training: Any, device: str) -> Any:
            return self

        def __call__(self, x: Any, y: Any) -> Any:
            return y.sum((1, 2, 3, 4))

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies")

    for metric, message in (
        (Nothing(), "fit returned NoneType; it must return the scoring function, or the object"),
        (Kept(), "fit returns the object, which cannot be copied for each fold"),
    ):
        with pytest.raises(MetricError, match=message):
            create_metric(metric).fitted(FoldedDataset())


def test_of_a_class_one_is_made() -> None:
    assert as_metric(MeanLabel).fit is not None

    class Needs:
        def __init__(self, weights: str) -> None: ...
        def __call__(self, x: Any, y: Any) -> Any: ...

    with pytest.raises(MetricError, match=r"'Needs' cannot be made: TypeError: .*weights"):
        as_metric(Needs)
