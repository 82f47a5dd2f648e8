"""Degenerate, large and missing values: every metric has a finite, stated score, or an error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cases import each
from metric_samples import TRAINED, pair, ready

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import METRICS, Metric, create_metric, list_metrics

metrics = each("metric", METRICS)
TINY = [(1, 1, 1, 1), (2, 2, 1, 4), (1, 1, 5, 1), (1, 2, 2, 2), (1, 1, 3, 7)]


def degenerate(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return degenerate features, by kind."""
    x, y = (batch[0] for batch in pair(shape))
    some = x.clone()
    some[..., 0, :] = 0.0
    return {
        "varied": x,
        "noisy": y,
        "opposite": -x,
        "zero": torch.zeros_like(x),
        "constant": torch.full_like(x, 0.1),
        "equal tokens": x[..., :1, :].expand_as(x),
        "equal channels": x[..., :1].expand_as(x),
        "a zero token": some,
    }


@metrics
@each("shape", TINY)
@each("dtype", [torch.float32, torch.float64])
def test_degenerate_features_score_within_the_range(
    metric: Metric, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    features = degenerate(shape)
    pairs = list(itertools.product(features, repeat=2))
    x, y = (torch.stack([features[one[side]] for one in pairs]).to(dtype) for side in (0, 1))
    scores = ready(metric, shape)(x, y)
    low, high = metric.score_range
    within = scores.isfinite() & (scores >= low) & (scores <= high)
    if shape[2] < metric.least_tokens:
        within = scores.isnan()
    assert [one for one, good in zip(pairs, within, strict=True) if not good] == []


@metrics
@each("size", [1e4, 1e-6])
def test_large_and_small_values_neither_overflow_nor_vanish(metric: Metric, size: float) -> None:
    shape = (1, 1, 40, 96)
    metric = ready(metric, shape)
    x, y = (size * batch for batch in pair(shape))
    low, high = metric.score_range
    for z in (y, -y, torch.zeros_like(y), 1e-3 * y, torch.flip(y, (-1,))):
        scores, exact = metric(x, z), metric(x.double(), z.double())
        assert ((scores >= low) & (scores <= high)).all()
        np.testing.assert_allclose(scores.numpy(), exact.numpy(), rtol=1e-4, atol=1e-6)


@each(
    ("name", "expected"),
    [
        ("mse", 0.25),
        ("mae", 0.5),
        ("nmse", 0.25),
        ("psnr", 20 * math.log10(8)),
        ("snr_distance", 0.0),
        ("cosine", 1.0),
        ("cosine_class", 1.0),
        ("cosine_flat", 1.0),
        ("cosine_p5", 1.0),
        ("norm_error", 0.5),
        ("angle", 0.0),
        ("pearson_token", 0.0),
        ("ccc", 0.0),
        ("kl_softmax", 0.0),
        ("js_softmax", 0.0),
        ("frechet", 1.0),
        ("moments", 0.25),
    ],
)
def test_a_single_token_of_equal_channels(name: str, expected: float) -> None:
    metric = create_metric(name)
    if metric.needs:
        metric = metric.with_options(value_range=[4.0])
    x = torch.ones(1, 1, 1, 1, 4)
    np.testing.assert_allclose(metric(x, 1.5 * x).numpy(), [expected], atol=1e-7)


def of_one_token(x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    """Return what every listed metric is of one token and one layer; None where it is not defined.

    Channels do not correlate and have a variance of 4; the quantiser's range is 8.
    """
    e, cosine = y - x, x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    a, b = (z - z.mean() for z in (x, y))
    p, q = (np.exp(z) / np.exp(z).sum() for z in (x, y))
    m = (p + q) / 2
    rows = np.random.default_rng(0).normal(size=(64, len(x)))
    along = rows / np.linalg.norm(rows, axis=1, keepdims=True) @ e
    several = [name for kind in ("kernel", "geometry", "neighbours") for name in list_metrics(kind)]
    return {
        "mse": np.mean(e**2),
        "mae": np.mean(np.abs(e)),
        "nmse": e @ e / (x @ x),
        "psnr": 10 * np.log10(64 / np.mean(e**2)),
        "snr_distance": np.var(e) / np.var(x),
        **dict.fromkeys(["cosine", "cosine_class", "cosine_flat", "cosine_p5"], cosine),
        "norm_error": abs(np.linalg.norm(y) / np.linalg.norm(x) - 1),
        "angle": np.arccos(cosine),
        "pearson_token": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        "ccc": 1 - np.mean(e**2) / (x.var() + y.var() + (x.mean() - y.mean()) ** 2),
        "mse_whitened": np.mean(e**2) / 4,
        "mahalanobis": e @ e / 8,
        **dict.fromkeys([*several, "gap_mean"], None),
        "kl_softmax": np.sum(p * np.log(p / q)),
        "js_softmax": np.sum(p * np.log(p / m) + q * np.log(q / m)) / 2,
        "sliced_wasserstein": np.sqrt(np.mean(along**2)),
        "frechet": e @ e,
        "moments": np.mean(e**2),
    }


def test_a_single_token_scores_what_is_said_or_nothing() -> None:
    x, y = (batch[:1].double() for batch in pair((1, 1, 1, 6)))
    made = {"value_range": [8.0], "deviation": [[2.0] * 6], "covariance": 4 * np.eye(6)[None]}
    expected = of_one_token(*(z.numpy().ravel() for z in (x, y)))
    assert {*expected, "stack"} == {*list_metrics()}
    for name, value in expected.items():
        needs = create_metric(name).needs
        metric = create_metric(
            name, **TRAINED.get(name, {}), **{need: made[need] for need in needs}
        )
        score = float(metric(x, y))
        assert (metric.least_tokens > 1) == (value is None) == math.isnan(score), name
        assert value is None or score == pytest.approx(value, rel=1e-7), name


@each(
    ("name", "lost", "added"),
    [
        ("nmse", 1.0, 1.0),
        ("snr_distance", 1.0, 1.0),
        ("cosine", 0.0, 0.0),
        ("cosine_class", 0.0, 0.0),
        ("cosine_flat", 0.0, 0.0),
        ("cosine_p5", 0.0, 0.0),
        ("norm_error", 1.0, 1.0),
        ("angle", math.pi / 2, math.pi / 2),
        ("pearson_token", 0.0, 0.0),
    ],
)
def test_what_is_lost_and_what_is_added_to_nothing(name: str, lost: float, added: float) -> None:
    x, _ = pair((1, 2, 5, 4))
    metric, nothing = create_metric(name), torch.zeros_like(x)
    np.testing.assert_allclose(metric(x, nothing).numpy(), lost, rtol=1e-6)
    assert metric(nothing, x).tolist() == [added] * 3
    if metric.lower_better and name != "angle":
        assert metric(nothing, nothing).tolist() == [0.0] * 3


def test_ccc_of_constants_asks_whether_they_are_equal() -> None:
    x = torch.full((1, 1, 1, 7, 3), 0.1, dtype=torch.float64)
    assert create_metric("ccc")(x, x).tolist() == [1.0]
    np.testing.assert_allclose(create_metric("ccc")(x, 2 * x).numpy(), [0.0], atol=1e-12)


def test_psnr_is_capped_and_asks_for_a_range_above_zero() -> None:
    x = torch.zeros(1, 1, 2, 3, 4)
    psnr = create_metric("psnr", value_range=[1.0, 10.0])
    assert psnr(x, x).tolist() == [100.0]
    # An error of 0.1 is 20 dB below a range of 1, and 40 dB below one of 10.
    np.testing.assert_allclose(psnr(x, x + 0.1).numpy(), [30.0], rtol=1e-6)
    assert psnr(x, x + 1e-6).tolist() == [100.0]
    with pytest.raises(MetricError, match=r"value_range must be above zero, not \[1\.0, 0\.0\]"):
        create_metric("psnr", value_range=[1.0, 0.0])(x, x)


@pytest.mark.parametrize("name", ["cosine", "cosine_flat", "pearson_token"])
def test_similarities_tell_almost_perfect_reconstructions_apart(name: str) -> None:
    x, y = pair((1, 1, 65, 192), noise=1.0, batch=1)
    gaps = [1 - float(create_metric(name)(x, x + step * (y - x))) for step in (4e-4, 8e-4, 16e-4)]
    # Second order in the noise, close to float32's epsilon; the offset of cosine's norms takes 3%.
    np.testing.assert_allclose(np.array(gaps[1:]) / gaps[:-1], 4.0, rtol=0.03)
    assert 0 < gaps[0] < 2e-7


def test_angle_is_as_exact_at_its_ends_as_between() -> None:
    for exact in (1e-6, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6):
        x = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
        y = torch.tensor([math.cos(exact), math.sin(exact)]).reshape(1, 1, 1, 1, 2)
        got = float(create_metric("angle")(x, 3 * y))
        np.testing.assert_allclose(min(got, math.pi - got), min(exact, math.pi - exact), rtol=1e-3)


# Statistics of the dataset.


@pytest.mark.parametrize("metric", [m for m in METRICS if m.needs], ids=lambda m: m.name)
def test_a_statistic_is_asked_for_by_name_and_checked(metric: Metric) -> None:
    x, y = pair((1, 2, 5, 4))
    (name,) = metric.needs
    with pytest.raises(MetricError, match=rf"'{metric.name}' needs the dataset's {name} \("):
        metric(x, y)
    with pytest.raises(MetricError, match=rf"{name} has shape \(1,\), but for these features"):
        metric.with_options(**{name: [3.0]})(x, y)
    with pytest.raises(MetricError, match=f"{name} is not an array of numbers but str"):
        metric.with_options(**{name: "wide"})
    with pytest.raises(MetricError, match=f"{name} holds NaN or Inf"):
        metric.with_options(**{name: [math.nan]})
