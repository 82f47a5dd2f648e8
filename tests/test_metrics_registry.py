"""Names, facts and custom metrics."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import each
from memory_dataset import MemoryDataset

from cfqa_data.errors import MetricError
from cfqa_data.eval.evaluator import DEFAULT_METRICS, evaluate
from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics import (
    FAMILIES,
    METRICS,
    PAPER_METRICS,
    TRAINED_METRICS,
    Metric,
    as_metric,
    as_metrics,
    base,
    create_metric,
    list_metrics,
)


def test_the_names_are_unique_and_in_order_of_families() -> None:
    ranks = [list(FAMILIES).index(metric.family) for metric in METRICS]
    assert ranks == sorted(ranks)
    listed = [*METRICS, *TRAINED_METRICS]
    assert list_metrics() == [metric.name for metric in listed]
    assert [create_metric(name) for name in list_metrics()] == listed
    for family in FAMILIES:
        assert list_metrics(family) == [m.name for m in listed if m.family == family]
    everything = list_metrics(paper=True)
    assert len(set(everything)) == len(everything)


def test_the_published_codes_metrics_answer_only_to_their_names() -> None:
    assert list_metrics(paper=True) == [*list_metrics(), "paper_cosine", "paper_cka"]
    assert not any("paper" in name for name in (*list_metrics(), *DEFAULT_METRICS))
    for metric in PAPER_METRICS:
        assert metric.name.startswith("paper_")
        assert metric.citation
        assert metric.formula
        assert create_metric(metric.name) == metric
    with pytest.raises(MetricError, match=r"'paper_ck': did you mean 'paper_cka'"):
        create_metric("paper_ck")
    with pytest.raises(MetricError, match=r"known: mse, mae, ") as caught:
        create_metric("ssim")
    assert "paper" not in str(caught.value)


def test_a_metric_is_declared_above_its_function() -> None:
    @base.metric(formula="of all", lower_better=False, score_range=(0.0, 0.5), citation="nobody")
    def share(x: Features, y: Features, deviation: torch.Tensor, floor: float = 0.1) -> Any:
        """Share of something."""
        return torch.full(y.shape[:4], floor, dtype=torch.float64)

    assert (share.name, share.family, share.identity) == ("share", "custom", 0.5)
    assert (share.needs, share.options, share.least_tokens) == (("deviation",), {"floor": 0.1}, 1)
    x = torch.ones(2, 1, 1, 3, 4)
    given = share.with_options(deviation=torch.ones(1, 4))
    assert given(x, x).tolist() == pytest.approx([0.1, 0.1])
    assert given.with_options(floor=0.7)(x, x).tolist() == [0.5, 0.5]  # the end of its range
    with pytest.raises(MetricError, match="metric 'share': unknown cost 'T3'"):
        base.metric(formula="", lower_better=True, citation="", cost="T3")(share.function)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(MetricError, match=r"unknown metric 'cosin': did you mean 'cosine'"):
        create_metric("cosin")


@pytest.mark.parametrize("device", ["mps", "meta", "nonsense", "cuda:999"])
def test_a_device_that_cannot_be_used_is_one_line(device: str) -> None:
    with pytest.raises(MetricError, match=f"device '{device}' cannot run the metrics: ") as caught:
        create_metric("mse", device=device)
    assert "\n" not in str(caught.value)


def test_impossible_facts_are_refused() -> None:
    facts: dict[str, Any] = {
        "name": "odd",
        "family": "signal",
        "formula": "",
        "function": lambda x, y: y,
        "lower_better": True,
        "identity": None,
        "citation": "",
    }
    with pytest.raises(MetricError, match="unknown invariance 'rotation'"):
        Metric(**facts, score_range=(0, 1), invariances=frozenset({"rotation"}))
    with pytest.raises(MetricError, match="empty score range"):
        Metric(**facts, score_range=(1, 0), invariances=frozenset())
    for wrong, message in (
        ({"score_range": 3}, "metric 'odd': score_range is two numbers, not 3"),
        ({"name": 5}, "a metric's name must be a string, not 5"),
        ({"lower_better": "yes"}, "lower_better is True, False or None, not 'yes'"),
        ({"least_tokens": 0}, "least_tokens is a number of tokens from 1, not 0"),
    ):
        with pytest.raises(MetricError, match=message):
            Metric(**{"score_range": (0, 1), "invariances": frozenset(), **facts, **wrong})


def test_listing_metrics_does_not_import_torch() -> None:
    code = (
        "import sys, cfqa_data.eval; from cfqa_data.eval.metrics import list_metrics; "
        "list_metrics(); assert not {'torch', 'scipy', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@each(
    "make",
    [
        lambda z: z.numpy(),
        lambda z: z.numpy().astype(">f4"),
        lambda z: np.asfortranarray(z.numpy()),
        lambda z: np.flip(np.flip(z.numpy(), 2).copy(), 2),
        lambda z: np.frombuffer(z.numpy().tobytes(), np.float32).reshape(z.shape),  # read-only
        lambda z: z.numpy().tolist(),
        lambda z: list(z),
        lambda z: z.bfloat16(),
        lambda z: z.numpy().astype(np.float16),
        lambda z: z.numpy().astype(np.longdouble),
        lambda z: z.numpy().astype(np.uint16),
        lambda z: z.to(torch.int8),
    ],
)
def test_features_are_tensors_or_arrays(make: Any) -> None:
    rng = np.random.default_rng(0)  # small whole numbers, which every kind of number holds
    x, y = (torch.from_numpy(rng.integers(0, 99, (2, 1, 2, 5, 4)).astype("f4")) for _ in range(2))
    metric = create_metric("cosine")
    expected = metric(x, y)
    for found in (metric(make(x), make(y)), metric(make(x), y)):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_a_single_feature_is_a_batch_of_one() -> None:
    x, y = torch.randn(1, 2, 5, 4), torch.randn(3, 1, 2, 5, 4)
    metric = create_metric("mse")
    assert metric(x, y[0]).tolist() == metric(x[None], y[:1]).tolist()
    assert metric(x.numpy(), y[0].numpy()).shape == (1,)
    assert metric(x, y).tolist() == metric(x[None], y).tolist()


@pytest.mark.parametrize(
    ("features", "what"),
    [
        (None, "an array or tensor of numbers, not NoneType"),
        ("x", "an array or tensor of numbers, not str"),
        ([[1.0], [1.0, 2.0]], "an array or tensor of numbers, not list"),
        (np.array([{}]), "an array or tensor of numbers, not object"),
        (np.ones((1, 1, 2, 2), complex), "real numbers, not torch.complex128"),
        (torch.ones((1, 1, 2, 2), dtype=torch.complex64), "not torch.complex64"),
        (
            torch.ones((1, 1, 2, 2)).to_sparse(),
            "a dense tensor of numbers, not .*sparse_coo",
        ),
        (torch.ones((1, 1, 2, 2), device="meta"), "a dense tensor of numbers, not meta"),
        (np.ma.masked_equal([[[[1, 2], [3, 4]]]], 3), "feature 0 holds NaN or Inf"),
    ],
)
def test_what_is_no_feature_is_told(features: Any, what: str) -> None:
    for x, y in ((features, torch.ones(1, 1, 2, 2)), (torch.ones(1, 1, 2, 2), features)):
        with pytest.raises(MetricError, match=f"^mse: .*{what}$"):
            create_metric("mse")(x, y)


class Half:
    """A user's metric, which is an object."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return largest_error(x, y) / 2


def test_facts_and_options_may_be_numpys(tmp_path: Path) -> None:
    facts = {"lower_better": np.True_, "identity": np.float32(0), "least_tokens": np.int64(2)}
    facts |= {"score_range": (np.float32(0), np.float64(9)), "differentiable": np.False_}
    mine = type("Mine", (Half,), facts | {"name": np.str_("mine")})
    metrics = [mine, create_metric("mutual_knn", k=np.int64(1))]
    found = evaluate(MemoryDataset(), metrics, out=tmp_path / "scores.parquet")
    assert (found.failures, list(found.columns())) == ({}, ["mine", "mutual_knn"])


def test_metrics_and_evaluations_can_be_pickled() -> None:
    """Metrics can be pickled, as for workers that score and for modules that contain a loss."""
    own = [as_metric(largest_error), as_metric(Half), *map(create_metric, ("gap_mean", "stack"))]
    for metric in (*METRICS, *PAPER_METRICS, *own):
        again = pickle.loads(pickle.dumps(metric))
        assert (again.name, again.fit is None) == (metric.name, metric.fit is None)
    found = evaluate(MemoryDataset(), [Half, "mse"])
    assert found.across_codecs.num_rows
    again = pickle.loads(pickle.dumps(found))
    assert again.scores.equals(found.scores)
    x, y = torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    assert [float(metric(x, y)) for metric in again.metrics] == [0.5, 1]


# Custom metrics.


def largest_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Largest absolute error."""
    return (x - y).abs().amax((1, 2, 3, 4))


class WithFacts:
    name = "zero"
    lower_better = True
    score_range = (0.0, 1.0)
    least_tokens = 3

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> list[float]:
        assert x.shape == y.shape  # custom metrics never see a broadcast original
        return [0.0] * len(y)


def test_a_callable_becomes_a_metric() -> None:
    metric = as_metric(largest_error)
    assert (metric.name, metric.formula) == ("largest_error", "Largest absolute error.")
    assert metric.lower_better is None
    x, y = torch.zeros(1, 1, 1, 2, 2), torch.arange(8.0).reshape(2, 1, 1, 2, 2)
    np.testing.assert_array_equal(metric(x, y).numpy(), [3.0, 7.0])
    assert metric(x, y).dtype == torch.float64


def test_a_callable_object_brings_its_facts() -> None:
    metric = as_metric(WithFacts())
    assert (metric.name, metric.lower_better, metric.score_range) == ("zero", True, (0.0, 1.0))
    assert metric(torch.ones(1, 1, 1, 3, 2), torch.ones(3, 1, 1, 3, 2)).tolist() == [0.0] * 3
    assert metric(torch.ones(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)).isnan().all()


@pytest.mark.parametrize("invariances", [3, "scale", [["scale"]]])
def test_invariances_are_a_list_of_names(
    invariances: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithFacts, "invariances", invariances, raising=False)
    with pytest.raises(MetricError, match="metric 'zero': invariances is a list of names, not"):
        as_metric(WithFacts())


def test_a_metric_is_found_in_a_module() -> None:
    assert as_metric("cfqa_data.eval.metrics.signal:mse").name == "mse"
    for path, message in {
        "no_such_module:f": "cannot import 'no_such_module'",
        "math:no_such": "'math' has no 'no_such'",
        "math:pi": "is not callable",
        "jaccard_knn:k=0": "jaccard_knn: k must be a whole number of neighbours, at least 1",
    }.items():
        with pytest.raises(MetricError, match=message):
            as_metric(path)


@pytest.mark.parametrize("path", [":f", ".mm:one", "math:", ":"])
def test_a_module_is_named_in_full_with_its_function(path: str) -> None:
    with pytest.raises(MetricError, match=f"metric '{path}': not MODULE:FUNCTION"):
        as_metric(path)


@pytest.mark.parametrize(
    ("source", "said", "cause"),
    [
        ("def f(x, y:", "SyntaxError: ", SyntaxError),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one$", RuntimeError),
        ("raise KeyError", "KeyError$", KeyError),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such", ImportError),
        ("import sys; sys.exit('bye')", "SystemExit: bye$", SystemExit),
    ],
)
def test_a_module_that_does_not_import_is_one_line(
    source: str,
    said: str,
    cause: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "spoilt_metric.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MetricError, match=f"cannot import 'spoilt_metric': {said}") as caught:
        as_metric("spoilt_metric:f")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("name", ["statistics", "math", "sys", "this", "pytest"])
def test_a_module_that_hides_a_user_s_file_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the module has an attribute of that name."""
    file = tmp_path / f"{name}.py"
    file.write_text("def mean(x, y): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MetricError) as caught:
        as_metric(f"{name}:mean")
    whose = "that of .*pytest.*" if name == "pytest" else "the standard library's"
    told = f"metric '{name}:mean': '{name}' is {whose}, which shadows {re.escape(str(file))}"
    assert re.fullmatch(f"{told}: rename that file", str(caught.value))


def test_an_interrupt_during_the_import_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted_metric.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        as_metric("interrupted_metric:f")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: torch.ones(()), r"returned shape \(\) for a batch of 2"),
        (lambda x, y: torch.ones(len(y), 1), r"returned shape \(2, 1\) for a batch of 2"),
        (lambda x, y: torch.tensor([0.0, float("nan")]), "gave nan for item 1"),
        (lambda x, y: None, "returned NoneType"),
        (lambda x, y: np.ma.masked_equal([0, 1], 1), "gave nan for item 1"),
    ],
)
def test_a_custom_metric_that_answers_nonsense_is_named(call: object, message: str) -> None:
    metric = as_metric(call)  # type: ignore[arg-type]
    x = torch.ones(2, 1, 1, 3, 3)
    with pytest.raises(MetricError, match=rf"metric '<lambda>' {message}"):
        metric(x, x)


def test_several_metrics_need_distinct_names_and_at_least_one() -> None:
    for one in ("mse", create_metric("mse"), [create_metric("mse")]):
        assert [metric.name for metric in as_metrics(one)] == ["mse"]
    assert [metric.name for metric in as_metrics(WithFacts())] == ["zero"]
    assert [metric.name for metric in as_metrics(["cka", largest_error])] == [
        "cka",
        "largest_error",
    ]
    with pytest.raises(MetricError, match="two metrics are named 'mse'"):
        as_metrics(["mse", "mse"])
    with pytest.raises(MetricError, match="no metric was requested"):
        as_metrics([])
    with pytest.raises(MetricError, match="a name or a callable, not 3"):
        as_metric(3)  # type: ignore[arg-type]
