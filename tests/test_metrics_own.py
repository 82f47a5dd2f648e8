"""User-defined metrics: by file, with options, for some tasks, of sources, without a reference."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import each
from memory_dataset import FoldedDataset, InterruptAfter, MemoryDataset, rows_of
from mock_dataset import write_mock_dataset

from cfqa_data.cli import main
from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import create_metric, evaluate
from cfqa_data.eval.metrics import as_metrics
from cfqa_data.eval.metrics.spec import parse_spec, split_specs

pytestmark = pytest.mark.usefixtures("quick_statistics")

OWN = """
def far(x, y, k=3, power=1.0):
    return k * (y - x).abs().pow(power).mean((1, 2, 3, 4))

def in_deviations(x, y, deviation):
    return ((y - x) / deviation[:, None]).float().square().mean((1, 2, 3, 4))

class Wide:
    def __init__(self, width: int = 1):
        self.width = width
    def __call__(self, x, y):
        return self.width * far(x, y)

def breaks(x, y):
    raise ValueError("no good")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return tmp_path / "own_metrics.py"


# Names and options.


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("mse", [("mse", {})]),
        ("mse, cosine,", [("mse", {}), ("cosine", {})]),
        ("mutual_knn:k=3,mutual_knn:k=5", [("mutual_knn", {"k": 3}), ("mutual_knn", {"k": 5})]),
        (
            "./a b.py:Mine:width=2, name=x,mse",
            [("./a b.py:Mine", {"width": 2, "name": "x"}), ("mse", {})],
        ),
        ("gap_mean:exponents=(0.2, 0.3,0.5)", [("gap_mean", {"exponents": (0.2, 0.3, 0.5)})]),
        ("own.part:f:path='a,b:c=d',on=True", [("own.part:f", {"path": "a,b:c=d", "on": True})]),
        ("C:/x.py:f:p=C:/y", [("C:/x.py:f", {"p": "C:/y"})]),
    ],
)
def test_metrics_are_named_with_options(text: str, specs: list[Any]) -> None:
    assert [parse_spec(spec) for spec in split_specs(text)] == specs


def test_variants_have_names_of_their_own() -> None:
    given = ["mutual_knn:k=3", create_metric("mutual_knn", k=5), "mutual_knn:k=10", "mse"]
    metrics = as_metrics([*given, create_metric("mutual_knn", k=7, name="seven")])
    names = ["mutual_knn:k=3", "mutual_knn:k=5", "mutual_knn", "mse", "seven"]
    assert [metric.name for metric in metrics] == names
    result = evaluate(MemoryDataset(), ["mutual_knn:k=1", "mutual_knn:k=2"])
    one, other = (
        [row["value"] for row in rows_of(result.scores, metric=f"mutual_knn:k={k}")] for k in (1, 2)
    )
    assert one != other
    assert create_metric("psnr", value_range=[8.0]).name == "psnr"
    assert create_metric(name="mse").name == "mse"  # its first argument was called so
    assert create_metric("sliced_wasserstein", seed=3, as_loss=True).metric.name.endswith("seed=3")
    assert [m.name for m in as_metrics("mse, mutual_knn:k=3")] == ["mse", "mutual_knn:k=3"]
    given = create_metric("gap_mean", exponents=[1, 0, 0])
    assert (
        given.name
        == create_metric("gap_mean:exponents=[1, 0,0]").name
        == ("gap_mean:exponents=[1,0,0]")
    )
    with pytest.raises(MetricError, match="two metrics are named 'gap_mean'; create_metric"):
        as_metrics([create_metric("gap_mean", exponents=np.eye(3)[n]) for n in (0, 1)])


def test_a_file_has_metrics_with_options_and_statistics(file: Path) -> None:
    specs = [f"{file}:far", f"{file}:far:k=6", "own_metrics:far:power=1.0", f"{file}:Wide:width=2"]
    dataset = FoldedDataset()
    result = evaluate(dataset, [*specs[:2], specs[3], f"{file}:in_deviations"])
    values = {
        m.name: np.array([r["value"] for r in rows_of(result.scores, metric=m.name)])
        for m in result.metrics
    }
    assert list(values) == ["far", "far:k=6", "Wide:width=2", "in_deviations"]
    given = [dict(record.options) for record in result.provenance.values()]
    assert given == [{"k": 3, "power": 1.0}, {"k": 6, "power": 1.0}, {"width": 2}, {}]
    for name in ("far:k=6", "Wide:width=2"):
        np.testing.assert_allclose(values[name], 2 * values["far"], rtol=1e-6)
    spread = np.concatenate([dataset.originals[f"cls-{i}"] for i in (1, 3)]).std((0, 1, 2))
    row = rows_of(dataset.labels, source_id="cls-2")[7]
    error = dataset.versions["cls-2", row["codec"], row["level"]] - dataset.originals["cls-2"]
    (score,) = (
        r["value"]
        for r in rows_of(result.scores, source_id="cls-2", codec=row["codec"], level=row["level"])
        if r["metric"] == "in_deviations"
    )
    assert score == pytest.approx(np.square(error / spread).mean(), rel=1e-5)
    assert create_metric(specs[2]).name == "far"  # the default
    x, y = torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    for asked in (create_metric("own_metrics:far", k=9), create_metric(f"{file}:Wide", width=3)):
        assert float(asked(x, y)) == 9.0


@each(
    ("spec", "said"),
    [
        ("{}:far:q=3", "metric 'far': unknown option 'q': known: k, power"),
        ("{}:Wide:widht=3", "metric 'Wide': unknown option 'widht': did you mean 'width'"),
        ("{}:Wide:width=x", "metric 'Wide': option width cannot be 'x'"),
        ("mse:k=3", "metric 'mse' takes no options, got 'k'"),
        ("mutual_knn:k=", "options are NAME=VALUE, not 'k='"),
        ("{}x.py:far", "no such file: {}x.py"),
        ("{}:nothing", "'own_metrics' has no 'nothing'"),
        ("{}:wide", "'own_metrics' has no 'wide': did you mean 'Wide'?"),
        ("{}", "metric '{0}': name one of its functions, {0}:FUNCTION"),
        ("{}:k=3", "name one of its functions, {}:FUNCTION"),
    ],
)
def test_a_wrong_option_or_file_is_one_line(spec: str, said: str, file: Path) -> None:
    with pytest.raises(MetricError) as told:
        create_metric(spec.format(file))
    assert said.format(file) in str(told.value)


def test_classes_of_entry_points_take_options(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "own_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cfqa.metrics]\nwidest = own_metrics:Wide\n")
    monkeypatch.syspath_prepend(tmp_path)
    metric = create_metric("widest", width=4)
    assert metric.name == "widest:width=4"
    x, y = torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    assert float(metric(x, y)) == 12.0


# What fails.


def test_what_a_metric_raises_keeps_its_traceback(file: Path) -> None:
    def partly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 2:
            raise ValueError("no good")
        return (y - x).abs().mean((1, 2, 3, 4))

    class Untrained:
        def fit(self, training: Any, device: str) -> Any:
            raise KeyError("weights")

    with warnings.catch_warnings(record=True, action="always") as caught:
        result = evaluate(FoldedDataset(), ["mse", partly, Untrained()])
    assert set(result.errors) == set(result.failures) == {"partly", "Untrained"}
    for warning, name, line in zip(
        caught,
        result.failures,
        ('raise ValueError("no good")', 'raise KeyError("weights")'),
        strict=True,
    ):
        assert isinstance(warning.message, MetricWarning)
        assert warning.message.__cause__ is result.errors[name].__cause__
        raised = result.errors[name].__cause__
        assert isinstance(raised, Exception)
        last = traceback.extract_tb(raised.__traceback__)[-1]
        assert (last.filename, last.line) == (__file__, line)
    with pytest.raises(MetricError) as told:
        evaluate(MemoryDataset(), [f"{file}:breaks"])
    assert isinstance(told.value.__cause__, ValueError)


def test_debug_prints_the_traceback(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_mock_dataset(tmp_path / "cfqa")
    command = ["eval", str(folder), "--task", "cls", "--max-sources", "1", "--metric"]
    for metrics, more in (
        ("mse,{}:breaks", []),
        ("mse,{}:breaks", ["--debug"]),
        ("{}:breaks", ["--debug"]),
    ):
        assert main([*command, metrics.format(file), *more]) == 2
        told = capsys.readouterr().err
        assert "cfqa: metric 'breaks' failed: ValueError: no good" in told.splitlines()[-1]
        assert ('in breaks\n    raise ValueError("no good")' in told) == bool(more)


# Kinds.


def of_cls(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert x.shape[1] == 1
    return (y - x).abs().mean((1, 2, 3, 4))


of_cls.tasks = ["cls", "other"]  # type: ignore[attr-defined]


def test_a_metric_is_for_the_tasks_that_it_names() -> None:
    result = evaluate(MemoryDataset(), [of_cls, "mse"])
    assert result.failures == {}
    why = "undefined for tasks other than cls, other: no score of 60 of 120 features"
    assert result.notes == {"of_cls": f"metric 'of_cls' is {why}"}
    for row in rows_of(result.scores, metric="of_cls"):
        assert (row["value"] is None) == (row["task"] == "seg")
    seg = MemoryDataset()
    seg.labels = seg.labels.filter(np.array(seg.labels["task"].to_pylist()) == "seg")
    with pytest.raises(MetricError, match="'of_cls' is undefined for tasks other than cls"):
        evaluate(seg, of_cls)


def share(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    errors = (y - x).square().mean((1, 2, 3, 4))
    return errors / errors.sum()


@pytest.mark.parametrize(("scope", "count"), [("ladder", 10), ("source", 20)])
def test_a_metric_sees_a_whole_ladder_or_source(scope: str, count: int, tmp_path: Path) -> None:
    sizes: list[int] = []

    def whole(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes.append(len(y))
        return share(x, y)

    whole.scope = scope  # type: ignore[attr-defined]
    dataset, out = MemoryDataset(), tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, ["mse", whole, "cka"], batch=3, out=out, progress=InterruptAfter(50))
    result = evaluate(dataset, ["mse", whole, "cka"], batch=3, out=out)
    assert set(sizes) == {count}
    assert set(result.notes) == set(result.failures) == set()
    alone = evaluate(MemoryDataset(), ["mse", "cka"]).scores["value"].to_numpy()
    values = result.scores["value"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(values[:, [0, 2]].ravel(), alone, rtol=1e-6)
    keys = result.labels.select(["source_id", "codec"]).to_pylist()
    for place, key in enumerate(keys):
        group = [
            n
            for n, other in enumerate(keys)
            if other["source_id"] == key["source_id"]
            and (scope == "source" or other["codec"] == key["codec"])
        ]
        expected = values[place, 0] / values[group, 0].sum()
        assert values[place, 1] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(MetricError, match="x is one original and y are its versions, not 2"):
        create_metric(whole)(torch.ones(2, 1, 1, 2, 2), torch.ones(2, 1, 1, 2, 2))


def test_scores_of_other_versions_are_not_gone_on_from(tmp_path: Path) -> None:
    folder, out = write_mock_dataset(tmp_path / "cfqa"), tmp_path / "scores.parquet"

    def whole(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return share(x, y)

    whole.scope = "source"  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, whole, codec="x265", task="cls", out=out, progress=InterruptAfter(10))
    result = evaluate(folder, whole, task="cls", out=out)
    assert result.scores.equals(evaluate(folder, whole, task="cls").scores)


def test_the_order_of_versions_tells_nothing_of_their_levels() -> None:
    def place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(y))

    place.scope, place.lower_better = "source", True  # type: ignore[attr-defined]
    result = evaluate(MemoryDataset(9), [place], target="loss")
    for row in result.across_codecs.to_pylist():
        assert abs(row["srocc"]) < 0.3


def test_a_failure_of_a_whole_ladder_costs_that_ladder() -> None:
    def fails(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if float((y - x).square().mean()) > 0.2:
            raise ValueError("too far")
        return share(x, y)

    fails.scope = "ladder"  # type: ignore[attr-defined]
    message = r"too far \(10 versions of cls-0 at once\); 60 of 120 features have no score"
    with pytest.warns(MetricWarning, match=message):
        result = evaluate(MemoryDataset(), ["mse", fails])
    for row in rows_of(result.scores, metric="fails"):
        assert (row["value"] is None) == (row["codec"] == "vvenc")


def test_a_metric_without_a_reference_gets_what_is_compressed_alone() -> None:
    def spread(y: torch.Tensor, power: int = 2) -> torch.Tensor:
        return y.abs().pow(power).mean((1, 2, 3, 4))

    spread.no_reference = True  # type: ignore[attr-defined]
    dataset = MemoryDataset()
    result = evaluate(dataset, ["mse", spread])
    assert set(result.notes) == set(result.failures) == set()
    for row in rows_of(result.scores, metric="spread")[::7]:
        y = dataset.versions[row["source_id"], row["codec"], row["level"]]
        assert row["value"] == pytest.approx(np.square(y).mean(), rel=1e-5)
        assert float(create_metric(spread)(y)) == pytest.approx(row["value"], rel=1e-6)

    class Trained:
        no_reference = True

        def fit(self, training: Any, device: str) -> Any:
            return spread

    trained = evaluate(FoldedDataset(), Trained())
    assert not trained.failures


@each(
    ("facts", "said"),
    [
        ({"scope": "task"}, "unknown scope 'task': known: pair, ladder, source"),
        ({"no_reference": "yes"}, "no_reference is True or False, not 'yes'"),
        ({"tasks": 3}, "tasks is a list of names, not 3"),
        ({"needs": [3]}, r"needs is a list of names, not \[3\]"),
        ({"needs": "mean"}, "unknown statistic 'mean'"),
        ({"inputs": ["mse"]}, "inputs is a list of `Metric`s, not"),
    ],
)
def test_impossible_facts_are_told(facts: dict[str, Any], said: str) -> None:
    def metric(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y.sum((1, 2, 3, 4))

    for name, value in facts.items():
        setattr(metric, name, value)
    with pytest.raises(MetricError, match=f"metric 'metric': {said}"):
        create_metric(metric)
