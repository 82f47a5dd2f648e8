"""The built-in metrics pass the public conformance suite; metrics that break a rule fail it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metric_samples import TRAINED

from cfqa_data.errors import MetricError
from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics import (
    INVARIANCES,
    METRICS,
    PAPER_METRICS,
    TRAINED_METRICS,
    create_metric,
    list_metrics,
)
from cfqa_data.eval.metrics.base import metric
from cfqa_data.testing.metrics import MetricSuite, transformed

LEAST_TOKENS = {
    "gap_mean": 2,
    **{name: 2 for kind in ("kernel", "geometry", "neighbours") for name in list_metrics(kind)},
    "rsa": 3,
    "cka_debiased": 4,
}


class TestBuiltIn(MetricSuite):
    tolerance = 1e-8

    @pytest.fixture(autouse=True, params=[m.name for m in (*METRICS, *TRAINED_METRICS)])
    def named(self, request: pytest.FixtureRequest) -> None:
        self.metric = request.param
        self.options = TRAINED.get(self.metric, {})

    def test_it_states_its_facts(self) -> None:
        super().test_it_states_its_facts()
        metric = create_metric(self.metric)
        assert metric.formula
        assert metric.citation
        assert metric.identity == metric.score_range[0 if metric.lower_better else 1]
        assert metric.least_tokens == LEAST_TOKENS.get(self.metric, 1)

    def test_a_score_does_not_depend_on_its_batch(self) -> None:
        self.tolerance = 1e-12
        super().test_a_score_does_not_depend_on_its_batch()

    def test_one_original_stands_for_the_whole_batch(self) -> None:
        self.tolerance = 1e-12
        super().test_one_original_stands_for_the_whole_batch()

    def test_it_is_invariant_to_nothing_else(self) -> None:
        # Several items: a score that counts neighbours may by chance not change for one of them.
        metric, (x, y) = self.make(), self.pair(batch=8)
        for kind in INVARIANCES.keys() - metric.invariances:
            assert (metric(x, transformed(y, kind)) - metric(x, y)).abs().max() > 1e-4


class TestPaper(MetricSuite):
    tolerance = 1.1e-4  # of four decimals

    @pytest.fixture(autouse=True, params=[metric.name for metric in PAPER_METRICS])
    def named(self, request: pytest.FixtureRequest) -> None:
        self.metric = request.param


def largest_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Largest absolute error."""
    return (x - y).abs().amax((1, 2, 3, 4))


largest_error.lower_better = True  # type: ignore[attr-defined]
largest_error.identity = 0.0  # type: ignore[attr-defined]


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(9, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.map((x - y).square()).mean((1, 2, 3, 4))


class Fitted:
    def fit(self, training: Any, device: str) -> Any:
        return lambda x, y: largest_error(x, y) / training.unit


class TestAFunction(MetricSuite):
    metric, differentiable = largest_error, True


class TestANetwork(MetricSuite):
    metric, dtypes = Network(), ("float32",)


def share_of_ladder(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared error, as a share of that of all versions."""
    errors = (y - x).double().square().mean((1, 2, 3, 4))
    return errors / errors.sum().clamp(min=1e-30)


share_of_ladder.scope = "ladder"  # type: ignore[attr-defined]
share_of_ladder.lower_better = True  # type: ignore[attr-defined]
share_of_ladder.score_range = (0.0, 1.0)  # type: ignore[attr-defined]


def spread(y: torch.Tensor) -> torch.Tensor:
    """Deviation of the channels over tokens."""
    return y.std(3).mean((1, 2, 3))


spread.no_reference = True  # type: ignore[attr-defined]
spread.lower_better = True  # type: ignore[attr-defined]
spread.invariances = ["translation"]  # type: ignore[attr-defined]
spread.least_tokens = 2  # type: ignore[attr-defined]


def relative_spread(y: torch.Tensor) -> torch.Tensor:
    """The same, as a difference from the mean of all versions."""
    return spread(y) - spread(y).mean()


relative_spread.no_reference = True  # type: ignore[attr-defined]
relative_spread.scope = "source"  # type: ignore[attr-defined]
relative_spread.least_tokens = 2  # type: ignore[attr-defined]


class TestOneOfAWholeLadder(MetricSuite):
    metric = share_of_ladder


class TestOneWithoutAReference(MetricSuite):
    metric = spread


class TestOneOfASourceWithoutAReference(MetricSuite):
    metric = relative_spread


class TestOneThatIsTrained(MetricSuite):
    metric, training = Fitted, SimpleNamespace(unit=2.0)


def broken(call: Any, **facts: Any) -> Any:
    """Return a suite of a function with facts, as an object whose tests can be called."""
    for name, value in facts.items():
        setattr(call, name, value)
    suite = MetricSuite()
    suite.metric = call
    return suite


calls = itertools.count()


@metric(formula="", lower_better=True, citation="")
def spoils(x: Features, y: Features) -> torch.Tensor:
    return y.values.mul_(2).abs().mean(-1).double()


@metric(formula="", lower_better=True, citation="")
def forgets_one_original(x: Features, y: Features) -> torch.Tensor:
    return (x.values - y.values).abs().mean(-1).double() / len(x)


@pytest.mark.parametrize(
    ("call", "facts", "test"),
    [
        (lambda x, y: largest_error(x, y), {"identity": 2.0, "score_range": (0, 1)}, "states"),
        (lambda x, y: largest_error(x, y), {"score_range": (0.0, 5.0)}, "within_the_range"),
        (lambda x, y: largest_error(x, y) + next(calls), {}, "same_features"),
        (lambda x, y: largest_error(x, y) / y.std(), {}, "its_batch"),
        (lambda x, y: largest_error(x, y) + len(y), {}, "its_batch"),
        (lambda x, y: largest_error(x, y), {"identity": 0.1}, "identity"),
        (lambda x, y: largest_error(x, y), {"lower_better": False}, "noise"),
        (lambda x, y: torch.ones(len(y)), {"lower_better": True}, "noise"),
        (lambda x, y: largest_error(x, y), {"invariances": ["scale"]}, "invariant"),
        (lambda x, y: largest_error(1e6 + x, 1e6 + y), {}, "every_dtype"),
        (lambda x, y: largest_error(x, y), {"least_tokens": 14}, "least_tokens"),
        (lambda x, y: largest_error(x, y) / y.std(3).amin((1, 2, 3)), {}, "do_not_vary"),
        (lambda x, y: largest_error(x, y) + torch.arange(len(y)), {"scope": "ladder"}, "its_batch"),
        (spoils, {}, "left_as_they_are"),
        (forgets_one_original, {}, "one_original"),
    ],
)
def test_what_breaks_a_promise_does_not_pass(call: Any, facts: dict[str, Any], test: str) -> None:
    suite = broken(call, **facts)
    (found,) = (name for name in dir(suite) if name.startswith("test_") and test in name)
    with pytest.raises((AssertionError, MetricError)):
        getattr(suite, found)()
