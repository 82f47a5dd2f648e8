"""Every metric against a brute-force float64 twin, and against the laws it declares."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_samples import devices, outliers, pair, ready
from twins_structure import STRUCTURE_TWINS
from twins_tokens import TOKEN_TWINS

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import METRICS, Metric, create_metric

Array = np.ndarray
SHAPES = [(1, 1, 5, 7), (2, 1, 9, 4), (2, 4, 6, 6), (1, 2, 1, 3)]
metrics = pytest.mark.parametrize("metric", METRICS, ids=[metric.name for metric in METRICS])


TWINS = TOKEN_TWINS | STRUCTURE_TWINS


def test_every_metric_has_a_twin() -> None:
    assert set(TWINS) == {metric.name for metric in METRICS}


@metrics
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_brute_force_twin(metric: Metric, shape: tuple[int, ...]) -> None:
    metric = ready(metric, shape)
    options = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in metric.options.items()
    }
    x, y = (batch.double() for batch in pair(shape))
    expected = [
        TWINS[metric.name](a.numpy(), b.numpy(), **options) for a, b in zip(x, y, strict=True)
    ]
    if shape[2] < metric.least_tokens:
        expected = [math.nan] * 3
    scores = metric(x, y)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-11, atol=1e-13)


@metrics
def test_a_feature_against_itself_scores_the_identity_value(metric: Metric) -> None:
    metric = ready(metric, (2, 4, 6, 5))
    x, _ = pair((2, 4, 6, 5))
    assert metric.identity is not None
    for z, tolerance in ((x, 1e-6), (x.double(), 1e-8)):
        np.testing.assert_allclose(metric(z, z).numpy(), metric.identity, rtol=0, atol=tolerance)


@metrics
@pytest.mark.parametrize("shape", [(1, 1, 12, 8), (1, 1, 8, 12)], ids=str)
def test_growing_noise_moves_the_score_in_the_declared_direction(
    metric: Metric, shape: tuple[int, ...]
) -> None:
    metric = ready(metric, shape)
    x, y = pair(shape, noise=1.0, batch=20)
    means = [float(metric(x, x + step * (y - x)).mean()) for step in (0.0, 0.1, 0.3, 1.0, 3.0)]
    steps = np.diff(means)
    assert (steps > 0).all() if metric.lower_better else (steps < 0).all()


@metrics
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(1e-3, 1e3))
def test_scores_stay_in_the_declared_range(metric: Metric, seed: int, noise: float) -> None:
    metric = ready(metric, (2, 1, 4, 3))
    scores = metric(*pair((2, 1, 4, 3), seed, noise))
    low, high = metric.score_range
    assert ((scores >= low) & (scores <= high)).all()


@metrics
@devices
@pytest.mark.parametrize("sample", [pair, outliers])
def test_float32_gives_the_score_of_float64(
    metric: Metric, device: str, sample: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    metric = ready(metric, (2, 2, 40, 24))
    x, y = sample((2, 2, 40, 24), noise=0.1)
    exact = metric(x.double(), y.double())
    scores = metric.to(device)(x, y).cpu()
    np.testing.assert_allclose(scores.numpy(), exact.numpy(), rtol=1e-5, atol=1e-7)


@metrics
def test_a_score_does_not_depend_on_its_batch(metric: Metric) -> None:
    metric = ready(metric, (2, 2, 17, 11))
    x, y = (batch.double() for batch in pair((2, 2, 17, 11), batch=9))
    together = metric(x, y)
    alone = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=1e-12)


@metrics
def test_one_original_stands_for_the_whole_batch(metric: Metric) -> None:
    metric = ready(metric, (2, 2, 7, 11))
    x, y = (batch.double() for batch in pair((2, 2, 7, 11), batch=4))
    x = x[:1]
    np.testing.assert_allclose(metric(x, y).numpy(), metric(x.expand_as(y), y).numpy(), rtol=1e-12)


# Invariances: the declared ones hold, the others are visibly broken.


def transformed(y: torch.Tensor, kind: str, rng: np.random.Generator) -> torch.Tensor:
    channels = y.shape[-1]
    if kind == "orthogonal":
        return y @ torch.from_numpy(np.linalg.qr(rng.normal(size=(channels, channels)))[0])
    if kind == "permutation":
        return y[..., torch.from_numpy(np.roll(np.arange(channels), rng.integers(1, channels)))]
    if kind == "scale":
        return y * float(np.exp(rng.uniform(0.5, 5) * rng.choice([-1, 1])))
    assert kind == "translation"
    return y + torch.from_numpy(3 * rng.normal(size=channels))


@metrics
@pytest.mark.parametrize("kind", ["orthogonal", "permutation", "scale", "translation"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_declared_invariances_hold_and_no_others(metric: Metric, kind: str, seed: int) -> None:
    metric = ready(metric, (2, 1, 6, 5))
    # Several items: a score that counts neighbours may by chance not change for one of them.
    x, y = (tensor.double() for tensor in pair((2, 1, 6, 5), seed, batch=8))
    changed = metric(x, transformed(y, kind, np.random.default_rng(seed)))
    gap = float((changed - metric(x, y)).abs().max())
    if kind in metric.invariances:
        assert gap < 1e-6
    else:
        assert gap > 1e-4


# Edges.


@metrics
def test_a_constant_reconstruction_has_a_finite_score(metric: Metric) -> None:
    metric = ready(metric, (2, 4, 65, 8))
    x, _ = pair((2, 4, 65, 8))
    constant = torch.full_like(x, 0.1)  # 0.1: a sum of equal terms that does not divide back
    assert torch.isfinite(metric(x, constant)).all()
    assert torch.isfinite(metric(constant, x)).all()
    assert torch.isfinite(metric(x, torch.zeros_like(x))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 49, 8), (1, 1, 7, 64)], ids=str)
def test_cka_of_a_constant_reconstruction_is_exactly_zero(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, _ = pair(shape)
    x = x.to(dtype)
    cka = create_metric("cka")
    for value in (0.1, -507.0, 1e30, 0.0):
        token = torch.linspace(value, 3 * value, shape[-1], dtype=dtype)
        assert (cka(x, token.expand_as(x)) == 0).all()


def test_cosine_of_a_zero_token_is_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).reshape(1, 1, 1, 2, 2)
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).reshape(1, 1, 1, 2, 2)
    np.testing.assert_allclose(create_metric("cosine")(x, y).numpy(), [0.5], atol=1e-8)


def test_mse_keeps_its_digits_at_small_noise_and_large_offset() -> None:
    x = torch.full((1, 1, 1, 64, 32), 500.0)
    y = x + 2.0**-10  # exact in float32
    assert float(create_metric("mse")(x, y)) == 2.0**-20


def test_cka_tells_almost_perfect_reconstructions_apart() -> None:
    x, y = pair((1, 1, 65, 192), noise=1.0, batch=1)
    gaps = [1 - float(create_metric("cka")(x, x + step * (y - x))) for step in (1e-4, 2e-4, 4e-4)]
    # Second order in the noise, far below float32's epsilon of 1.2e-7.
    np.testing.assert_allclose(np.array(gaps[1:]) / gaps[:-1], 4.0, rtol=0.05)
    assert 0 < gaps[0] < 1e-7


def test_biased_cka_of_independent_features_is_as_measured() -> None:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(1, 1, 1, 257, 1536))) for _ in range(2))
    np.testing.assert_allclose(create_metric("cka")(x, y).numpy(), [0.855], atol=0.005)


@metrics
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["original", "compressed"])
def test_nan_and_inf_are_refused_and_the_item_is_named(
    metric: Metric, bad: float, side: str
) -> None:
    x, y = pair((1, 2, 5, 4))
    (x if side == "original" else y)[1, 0, 1, 2, 3] = bad
    with pytest.raises(MetricError, match=f"{metric.name}: the {side} feature 1 holds NaN or Inf"):
        metric(x, y)


@pytest.mark.parametrize(
    ("x_shape", "y_shape", "message"),
    [
        ((1, 5, 4), (1, 5, 4), "features are .N, C, T, D., or batches"),
        ((2, 1, 1, 5, 4), (2, 1, 1, 5, 3), "different shapes"),
        ((2, 1, 1, 5, 4), (3, 1, 1, 5, 4), "different shapes"),
        ((0, 1, 1, 5, 4), (0, 1, 1, 5, 4), "empty batch"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        create_metric("mse")(torch.ones(x_shape), torch.ones(y_shape))
