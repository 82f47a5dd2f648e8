"""Every metric against a brute-force float64 twin, and known values of some."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import each
from metric_samples import devices, outliers, pair, ready
from twins_structure import STRUCTURE_TWINS
from twins_tokens import TOKEN_TWINS

from cfqa_data.errors import MetricError
from cfqa_data.eval.features import Features, batch, order, products, relations
from cfqa_data.eval.metrics import METRICS, Metric, create_metric

Array = np.ndarray
SHAPES = [(1, 1, 5, 7), (2, 1, 9, 4), (2, 4, 6, 6), (1, 2, 1, 3)]
metrics = each("metric", METRICS)


TWINS = TOKEN_TWINS | STRUCTURE_TWINS


def test_every_metric_has_a_twin() -> None:
    assert set(TWINS) == {metric.name for metric in METRICS}


@metrics
@each("shape", SHAPES)
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
def test_slices_score_one_by_one_as_together(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = ready(metric, (2, 3, 9, 4))
    x, y = (z.double() for z in pair((2, 3, 9, 4)))
    together = metric(x[:1], y)
    monkeypatch.setattr(relations, "CPU_GROUP", 1)
    np.testing.assert_allclose(metric(x[:1], y).numpy(), together.numpy(), rtol=1e-11, atol=1e-13)


@metrics
@devices
@each("sample", [pair, outliers])
def test_float32_gives_the_score_of_float64(
    metric: Metric, device: str, sample: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    metric = ready(metric, (2, 2, 40, 24))
    x, y = sample((2, 2, 40, 24), noise=0.1)
    exact = metric(x.double(), y.double())
    scores = metric.to(device)(x, y).cpu()
    np.testing.assert_allclose(scores.numpy(), exact.numpy(), rtol=1e-5, atol=1e-7)


# Edges.


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


@pytest.mark.parametrize("name", ["cosine", "angle"])
def test_a_zero_token_among_many_values_is_as_among_few(name: str) -> None:
    x, y = pair((1, 1, 300, 512), batch=1)
    for original, compressed in ((x, y), (y, x)):
        original[..., 7, :] = 0
        exact = create_metric(name)(original.double(), compressed.double())
        scores = create_metric(name)(original, compressed)
        np.testing.assert_allclose(scores.numpy(), exact.numpy(), rtol=1e-5)


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


# What many values are scored by, with fewer passes over them.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each(
    ("scale", "offset", "noise"),
    [(1, 0, 1e-3), (1, 30, 1e-2), (3, 0, 1e-3), (1, 0, 1e-7), (1, 1e4, 1), (1e15, 0, 1e-2)],
)
def test_many_values_score_as_few_do(
    scale: float, offset: float, noise: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(1, 1, 1, 600, 256, generator=generator, dtype=dtype) for _ in range(2))
    x[..., :5] += offset
    x, y = 2 * x, scale * 2 * (x + noise * e)
    y[..., 7, :] = y[..., 8, :]
    names = ["mse", "cosine", "cka", "cka_debiased", "distance_correlation", "procrustes"]
    names += ["moments", "frechet", "rsm_difference", "mutual_knn"]
    fast = [float(create_metric(name)(x, y)) for name in names]
    with monkeypatch.context() as few:
        few.setattr(batch, "MANY", 2**60)
        slow = [float(create_metric(name)(x, y)) for name in names]
    assert fast == pytest.approx(slow, rel=1e-6 if dtype == torch.float32 else 1e-12)
    if scale <= 3 and noise == 1e-3:
        rounding = 1e-3 if dtype == torch.float32 else 1e-6
        assert [1 - s for s in fast[1:5]] == pytest.approx([1 - s for s in slow[1:5]], rel=rounding)


def test_cosines_of_tokens_of_very_different_lengths_are_products() -> None:
    x, y = (z.double() for z in pair((1, 1, 40, 4000), batch=1))
    x[..., 3, :] *= 1e-4
    y[..., 3, :] *= 1e-4
    expected = TWINS["rsm_difference"](x[0].numpy(), y[0].numpy())
    assert float(create_metric("rsm_difference")(x, y)) == pytest.approx(expected, rel=1e-12)


def test_cka_does_not_depend_on_whether_cka_debiased_is_scored_too() -> None:
    x, y = (Features(z) for z in pair((1, 2, 520, 256), batch=1))
    plain, debiased = (create_metric(name) for name in ("cka", "cka_debiased"))
    alone = plain.score(x, y)
    scores = debiased.score(x, y)
    again = Features(y.values)
    assert plain.score(x, again).equal(alone)
    assert debiased.score(x, again).equal(scores)


@pytest.mark.parametrize("rows", [190, 257, 530])
def test_products_in_blocks_are_those_of_whole_matrices(rows: int) -> None:
    z, middle = (torch.randn(2, rows, n, dtype=torch.float64) for n in (30, rows))
    upper, middle = middle[:1].triu(), middle + middle.mT
    assert products.gram(z).allclose(z @ z.mT)
    assert products.gram(z, out=torch.empty_like(middle)).allclose(z @ z.mT)
    assert products.upper_product(upper, z).allclose(upper @ z)
    assert products.product_upper(z.mT, upper).allclose(z.mT @ upper)
    congruent = products.congruent(upper, middle).triu()
    assert congruent.allclose((upper @ middle @ upper.mT).triu())


@each("ties", [False, True])
def test_numbers_are_put_into_order(ties: bool) -> None:
    rng = np.random.default_rng(0)
    numbers = 1 + 1e-12 * rng.random((2, 3000)) if ties else rng.random((2, 3000))
    numbers[:, :7] = [0.0, 5e-324, 1e-300, 1e300, -0.0, numbers[0, 9], np.inf]
    ordered, places = order.ascending(torch.from_numpy(numbers))
    assert ordered.numpy().tolist() == np.sort(numbers).tolist()
    assert np.take_along_axis(numbers, places.numpy(), 1).tolist() == ordered.tolist()
    assert all(len(set(row)) == 3000 for row in places.tolist())


@pytest.mark.parametrize("value", [0.0, 1.0 / 3.0])
def test_many_values_that_are_equal_have_no_structure(value: float) -> None:
    x, _ = pair((1, 1, 600, 256), batch=1)
    for a, b in ((x, torch.full_like(x, value)), (torch.full_like(x, value), x)):
        assert float(create_metric("cka")(a, b)) == 0
        assert float(create_metric("cka_debiased")(a, b)) == 0
        assert 0 <= float(create_metric("cosine")(a, a + 0 * b)) <= 1
