"""Metrics as losses: gradients are correct, finite at degenerate features, and train a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import each
from metric_samples import TRAINED, pair, ready

from cfqa_data import create_metric
from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import METRICS, TRAINED_METRICS, Metric, as_metric
from cfqa_data.eval.metrics.loss import MetricLoss

LISTED = (*METRICS, *TRAINED_METRICS)
losses = each("metric", [metric for metric in LISTED if metric.differentiable])


def made(metric: Metric, shape: tuple[int, ...]) -> Metric:
    return ready(metric, shape).with_options(**TRAINED.get(metric.name, {}))


def test_only_what_counts_or_ranks_has_no_gradient() -> None:
    lacking = {metric.name for metric in LISTED if not metric.differentiable}
    assert lacking == {"rsa", "mutual_knn", "jaccard_knn", "stack"}


@losses
@each("shape", [(1, 2, 7, 4), (2, 1, 5, 8)])  # more tokens than channels, and fewer
def test_gradients_are_those_of_differences(metric: Metric, shape: tuple[int, ...]) -> None:
    x, y = (batch.double().requires_grad_() for batch in pair(shape, batch=2))
    assert torch.autograd.gradcheck(made(metric, shape), (x, y), fast_mode=True)


@pytest.mark.parametrize("name", ["cka", "cka_debiased"])
def test_an_original_alone_gets_its_gradients(name: str) -> None:
    x, y = (batch.double() for batch in pair((1, 1, 520, 260), batch=1))
    metric, x = create_metric(name), x.requires_grad_()
    metric(x, y).sum().backward()
    expected = x.grad
    x.grad = None
    metric(x, y.clone().requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, expected)


@losses
def test_gradients_are_finite_where_something_is_zero(metric: Metric) -> None:
    shape = (1, 2, 7, 4)
    metric, x = made(metric, shape), pair(shape, batch=1)[0]
    zero_token = x.clone()
    zero_token[..., 0, :] = 0.0
    starts = torch.cat([x, zero_token, torch.full_like(x, 0.1), x[..., :1, :].expand_as(x)])
    for original in (x, torch.ones_like(x)):
        features = original.clone().requires_grad_(), starts.clone().requires_grad_()
        metric(*features).sum().backward()
        for batch in features:
            assert batch.grad is not None
            assert batch.grad.isfinite().all()


@losses
def test_a_training_loop_lowers_the_loss(metric: Metric) -> None:
    shape = (1, 2, 7, 4)
    x, y = pair(shape, noise=1.0)
    loss = MetricLoss(made(metric, shape))
    repair = torch.zeros(1, *shape, requires_grad=True)
    optimizer = torch.optim.Adam([repair], lr=0.03)
    course = []
    for _ in range(8):
        optimizer.zero_grad()
        found = loss(x[:1], y[:1] + repair)
        found.backward()
        optimizer.step()
        course.append(found.item())
    assert 0.0 <= course[-1] < course[0]


def test_a_loss_is_the_score_or_what_it_lacks() -> None:
    x, y = pair((1, 1, 5, 7))
    for name, sign in (("mse", 1.0), ("cosine", -1.0)):
        scores = create_metric(name)(x, y)
        each_one = create_metric(name, as_loss=True, reduction="none")(x, y)
        assert torch.equal(each_one, scores if sign > 0 else 1.0 - scores)
        assert create_metric(name, as_loss=True)(x, y) == each_one.mean()
        assert create_metric(name, as_loss=True, reduction="sum")(x, y) == each_one.sum()

    def likeness(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -(x - y).square().mean((1, 2, 3, 4))

    likeness.differentiable, likeness.lower_better = True, False  # type: ignore[attr-defined]
    mine = MetricLoss(as_metric(likeness), "none")
    torch.testing.assert_close(mine(x, y), create_metric("mse")(x, y))


@each(
    ("make", "why"),
    [
        (
            lambda: create_metric("rsa", as_loss=True),
            "'rsa' cannot be a loss: it is not declared differentiable",
        ),
        (lambda: create_metric("mse", as_loss=True, reduction="max"), "mean, sum, none, not 'max'"),
        (lambda: create_metric("mse", as_loss=True, k=1), "'mse' takes no options, got 'k'"),
        (lambda: create_metric("mse", reduction="sum"), "'mse' takes no options, got 'reduction'"),
        (lambda: create_metric("cka", as_loss=True)(*pair((1, 1, 1, 4))), "fewer than 2 tokens"),
        (lambda: MetricLoss(Metric("m", "custom", "", max, differentiable=True)), "lower_bett"),
        (lambda: Metric("m", "custom", "", max, differentiable=None), "is True or False, not None"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_loss_is_told(make: Any, why: str) -> None:
    with pytest.raises(MetricError, match=why):
        make()
