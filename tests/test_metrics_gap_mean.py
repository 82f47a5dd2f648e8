"""The trained baseline: a geometric mean of three gaps with fitted exponents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from metric_samples import pair

from cfqa_data.errors import MetricError
from cfqa_data.eval import create_metric, evaluate, list_metrics
from cfqa_data.eval.features.training import TrainingSet
from cfqa_data.eval.metrics.trained import fit_gap_mean

PARTS = ("cosine", "cosine_class", "cka")
SHAPE = (1, 1, 9, 16)

pytestmark = pytest.mark.usefixtures("quick_statistics")


class Planted:
    """Sources whose distortion is one gap or a mean of gaps, with different kinds of noise."""

    def __init__(self, exponents: tuple[float, ...], sources: int = 10) -> None:
        rng = np.random.default_rng(0)
        self.originals: dict[str, Any] = {}
        self.versions: dict[Any, Any] = {}
        keys = []
        for index in range(sources):
            source = f"cls-{index}"
            x = self.originals[source] = rng.normal(size=SHAPE).astype(np.float32)
            for level in range(12):
                noise = rng.normal(size=SHAPE) * rng.uniform(0.05, 1)
                noise[:, :, 0] *= rng.uniform(0, 3)
                noise += rng.normal(size=SHAPE[-1]) * rng.uniform(0, 1)
                self.versions[source, "x265", level] = (x + noise).astype(np.float32)
                keys.append(("cls", source, index % 2, "x265", level))
        x, y = (
            torch.from_numpy(np.stack(features))
            for features in ([self.originals[key[1]] for key in keys], [*self.versions.values()])
        )
        gaps = [1 - create_metric(name)(x, y).numpy() for name in PARTS]
        names = ("task", "source_id", "fold", "codec", "level")
        columns = zip(names, map(list, zip(*keys, strict=True)), strict=True)
        harm = np.prod([gap**power for gap, power in zip(gaps, exponents, strict=True)], axis=0)
        self.labels = pa.table({**dict(columns), "distortion": harm})

    def original(self, source_id: str) -> Any:
        return self.originals[source_id]

    def compressed(self, source_id: str, codec: str, level: int) -> Any:
        return self.versions[source_id, codec, level]


def test_it_is_the_geometric_mean_of_the_gaps() -> None:
    x, y = (batch.double() for batch in pair((2, 2, 9, 7)))
    a, b, c = (1 - create_metric(name)(x, y) for name in PARTS)
    exponents = (0.2, 0.3, 0.5)
    metric = fitted(Planted((1, 0, 0))).with_options(exponents=exponents)
    torch.testing.assert_close(metric(x, y), a**0.2 * b**0.3 * c**0.5)
    assert metric(x, x).tolist() == pytest.approx([metric.identity] * len(x), abs=1e-7)


def fitted(training: Any) -> Any:
    return create_metric("gap_mean").fitted(training)


@pytest.mark.parametrize("which", range(3), ids=PARTS)
def test_it_finds_the_gap_that_the_labels_follow(which: int) -> None:
    planted = tuple(float(place == which) for place in range(3))
    metric = fitted(Planted(planted))
    assert metric.options["exponents"] == pytest.approx(planted)
    assert metric.fit is None


def test_it_is_fitted_on_other_folds_and_beats_its_parts_where_they_are_mixed() -> None:
    dataset = Planted((0.0, 0.5, 0.5), sources=20)
    result = evaluate(dataset, ["gap_mean", *PARTS])
    srocc = {row["metric"]: row["srocc"] for row in result.correlations.to_pylist()}
    assert srocc["gap_mean"] > max(abs(srocc[name]) for name in PARTS)
    assert srocc["gap_mean"] > 0.95


def test_it_is_fitted_to_the_label_that_is_followed() -> None:
    """Each label follows another gap, and training on a label finds its gap."""
    dataset, other = Planted((1, 0, 0)), Planted((0, 0, 1))
    dataset.labels = dataset.labels.append_column("loss", other.labels["distortion"])
    for target, name in (("distortion", "cosine"), ("loss", "cka")):
        scores = evaluate(dataset, ["gap_mean", name], target=target).scores["value"].to_numpy()
        trained, alone = scores.reshape(-1, 2).T
        np.testing.assert_allclose(trained, 1 - alone, rtol=1e-9)


def test_it_is_listed_and_asks_to_be_trained() -> None:
    assert list_metrics("trained") == ["gap_mean", "stack"]
    x, y = pair((1, 1, 5, 4))
    with pytest.raises(MetricError, match="'gap_mean' must be trained first"):
        create_metric("gap_mean")(x, y)


def test_with_exponents_it_is_trained_already() -> None:
    x, y = pair((1, 1, 5, 4))
    dataset = Planted((0, 0.5, 0.5), sources=2)
    trained = fitted(dataset)
    exponents, expected = trained.options["exponents"], trained(x, y)
    for given in (exponents, list(exponents), np.array(exponents)):
        metric = create_metric("gap_mean", exponents=given)
        assert metric.fit is None
        assert metric(x, y).tolist() == expected.tolist()
    dataset.labels = dataset.labels.drop_columns(["fold"])  # nothing is trained, or held out
    alone = evaluate(dataset, create_metric("gap_mean", exponents=exponents))
    assert alone.scores.num_rows == dataset.labels.num_rows


@pytest.mark.parametrize(
    "exponents", [(1.0,), (0.5, 0.6, -0.1), (1, 1, 1), (float("nan"), 0, 1), 5, "abc", ("a", 0, 1)]
)
def test_impossible_exponents_are_refused(exponents: Any) -> None:
    x, y = pair((1, 1, 5, 4))
    with pytest.raises(MetricError, match="exponents are 3 numbers from 0 that sum to 1, not"):
        create_metric("gap_mean", exponents=exponents)(x, y)
    with pytest.raises(MetricError, match="'gap_mean' must be trained first"):
        create_metric("gap_mean", exponents=None)(x, y)


def test_nothing_to_learn_from_is_told() -> None:
    planted = Planted((1, 0, 0), sources=2)
    column = planted.labels.column_names.index("distortion")
    flat = pa.array([0.0] * planted.labels.num_rows)
    planted.labels = planted.labels.set_column(column, "distortion", flat)
    with pytest.raises(MetricError, match="no training source has a distortion that varies"):
        fit_gap_mean(TrainingSet(planted), "cpu")
    alike = Planted((1, 0, 0), sources=2)
    alike.versions = {key: alike.originals[key[0]] for key in alike.versions}
    with pytest.raises(MetricError, match="the training features are all the same"):
        fit_gap_mean(TrainingSet(alike), "cpu")
    single = Planted((1, 0, 0), sources=2)
    for arrays in (single.originals, single.versions):
        arrays.update({key: array[:, :, :1] for key, array in arrays.items()})
    with pytest.raises(MetricError, match="all training sources have too few tokens"):
        fit_gap_mean(TrainingSet(single), "cpu")
