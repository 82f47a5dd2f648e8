"""The stack: boosted trees over cheap metrics, evaluated without the library that trained them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from metric_samples import TRAINED, pair
from test_metrics_gap_mean import Planted

from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import create_metric, evaluate, load_metric, read_evaluation, save_metric
from cfqa_data.eval.metrics import forest
from cfqa_data.eval.metrics.forest import Forest, fit_forest
from cfqa_data.eval.metrics.stack import INPUTS
from cfqa_data.eval.report import report_html
from cfqa_data.eval.report.leaderboard import leaderboard

pytestmark = pytest.mark.usefixtures("quick_statistics")


def test_a_forest_predicts_what_its_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import ensemble

    rng, models = np.random.default_rng(0), []

    class Kept(ensemble.HistGradientBoostingRegressor):  # type: ignore[misc]
        def fit(self, *data: Any) -> Any:
            models.append(self)
            return super().fit(*data)

    monkeypatch.setattr(ensemble, "HistGradientBoostingRegressor", Kept)
    values = rng.normal(size=(600, 3))
    target = values[:, 0] + np.abs(values[:, 1]) + 0.1 * rng.normal(size=600)
    grown = fit_forest(values, target, "abc", max_iter=20, max_depth=3, min_samples_leaf=20)
    others = 2 * rng.normal(size=(500, 3))
    np.testing.assert_allclose(grown.predict(others), models[0].predict(others), rtol=1e-12)
    again = Forest.from_dict(json.loads(json.dumps(grown.to_dict())))
    assert (again.predict(others) == grown.predict(others)).all()
    assert np.argmax(grown.gains) == 0
    assert sum(grown.gains) == pytest.approx(1)
    for place in range(3):  # it rises with each input
        assert (grown.predict(others + 0.5 * np.eye(3)[place]) >= grown.predict(others)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ["mse"]},
        {"gains": [1]},
        {"start": "x"},
        {"trees": {}},
        *({"trees": {name: [[99, 0, 0]]}} for name in ("input", "left", "right")),
        {"trees": {"left": [[1, 0, 2]]}},  # round in a circle
        {"trees": {"value": [[0.0, 1.0]]}},
        {"trees": {"threshold": [[float("inf"), 0, 0]]}},
    ],
)
def test_what_is_no_forest_is_refused(change: dict[str, Any]) -> None:
    facts = TRAINED["stack"]["forest"].to_dict()
    facts["trees"] = {name: rows[:1] for name, rows in facts["trees"].items()}
    if trees := change.get("trees"):
        change = {"trees": facts["trees"] | trees}
    facts["trees"]["input"] = [[14, 0, 0]]
    with pytest.raises(MetricError, match="not the facts of a forest"):
        Forest.from_dict(facts | change)


def test_it_is_trained_on_other_folds_explained_and_saved(tmp_path: Path) -> None:
    dataset = Planted((1.0, 0.0, 0.0), sources=12)
    result = evaluate(dataset, ["stack", "mse"])
    srocc = {row["metric"]: row["srocc"] for row in result.correlations.to_pylist()}
    assert srocc["stack"] > 0.9
    assert result.notes["stack"].startswith("weights of metric 'stack' for cls: ")
    metric = create_metric("stack").fitted(dataset)
    assert sum(metric.weights.values()) == pytest.approx(1)
    x, y = pair((1, 1, 9, 16))
    loaded = load_metric(save_metric(metric, tmp_path / "stack.json"))
    assert loaded(x[0], y[0]).tolist() == metric(x, y)[:1].tolist()
    assert (loaded.weights, loaded.fit) == (metric.weights, None)
    seen: Any = loaded.trained_on
    assert (seen.folds, seen.originals, seen.target) == ((0, 1), 12, "distortion")
    assert seen.codecs == tuple(sorted(dataset.labels["codec"].unique().to_pylist()))
    scored = evaluate(dataset, [loaded], out=tmp_path / "scores.parquet")
    assert "before this evaluation" in report_html(scored)
    (entry,) = leaderboard(scored)[0].entries
    assert (
        entry.trained
        == "12 originals of folds 0, 1, before this evaluation; all codecs; distortion"
    )
    for found in (scored, read_evaluation(dataset, tmp_path / "scores.parquet")):
        record = found.provenance["stack"]
        assert (record.trained_on, record.trained_before) == (None, seen)
        assert record.options == {}
    facts = json.loads((tmp_path / "stack.json").read_text())
    del facts["trained_on"]  # as of files written before it was kept
    (tmp_path / "old.json").write_text(json.dumps(facts))
    assert load_metric(tmp_path / "old.json").trained_on is None
    assert metric(x, x).tolist() == [0.0] * 3
    again = create_metric("stack").fitted(dataset)
    assert again.options["forest"].to_dict() == metric.options["forest"].to_dict()


def test_sources_of_a_group_are_not_trained_on_for_each_other() -> None:
    dataset, seen = Planted((1.0, 0.0, 0.0), sources=6), []

    class Looks:
        def fit(self, training: Any, device: str) -> Any:
            seen.append(set(training.labels["source_id"].to_pylist()))
            return lambda x, y: torch.zeros(len(y))

    groups = [
        "a" if row["source_id"] in ("cls-0", "cls-1") else None
        for row in dataset.labels.to_pylist()
    ]
    dataset.labels = dataset.labels.append_column("group", pa.array(groups))
    evaluate(dataset, Looks())
    assert seen == [{"cls-3", "cls-5"}, {"cls-2", "cls-4"}]


def test_what_is_not_a_saved_metric_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metric.json"
    for metric in (create_metric("mse"), create_metric("stack")):
        with pytest.raises(MetricError, match="has nothing to save"):
            save_metric(metric, path)
    with pytest.raises(MetricError, match="cannot be read"):
        load_metric(path)
    good = create_metric("gap_mean", **TRAINED["gap_mean"])
    save_metric(good, path)
    assert load_metric(path).options == {"exponents": [0.2, 0.3, 0.5]}
    save_metric(create_metric("gap_mean", exponents=(0.2, 0.3, 0.5), name="mine"), path)
    assert load_metric(path).name == "mine"
    facts = json.loads(path.read_text())
    path.write_bytes(b"PAR1\xff")
    with pytest.raises(MetricError, match=r"not a saved trained metric \(it is not text\)"):
        load_metric(path)
    for wrong in (
        {},
        [],
        facts | {"metric": "mse"},
        facts | {"options": {"exponents": {}}},
        facts | {"trained_on": 3},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(MetricError, match="not a saved trained metric"):
            load_metric(path)


def test_without_scikit_learn_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*arguments: Any, **options: Any) -> Any:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr("cfqa_data.eval.metrics.stack.fit_forest", forest.extras()(absent))
    with pytest.warns(MetricWarning, match="pip install 'cfqa-data"):
        result = evaluate(Planted((1.0, 0.0, 0.0), sources=4), ["stack", "mse"])
    assert [metric.name for metric in result.metrics] == ["mse"]


def test_a_single_token_has_no_gap_of_relations() -> None:
    assert [one.name for one in INPUTS if one.least_tokens > 1] == ["cka"]
    x, y = pair((1, 1, 1, 16))
    scores = create_metric("stack", **TRAINED["stack"])(x, y)
    assert (scores > 0).all()
    with pytest.raises(MetricError, match="forest is what training finds"):
        create_metric("stack", forest={})(x, y)
