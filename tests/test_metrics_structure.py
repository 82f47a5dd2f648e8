"""Metrics of relations between tokens: measured properties, edge cases and ties."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from cases import each
from hypothesis import given
from hypothesis import strategies as st
from metric_samples import pair
from scipy.stats import rankdata
from twins_structure import STRUCTURE_TWINS

from cfqa_data.errors import MetricError
from cfqa_data.eval.features import Features
from cfqa_data.eval.features.relations import squared_distances
from cfqa_data.eval.metrics import METRICS, create_metric, list_metrics
from cfqa_data.eval.metrics.geometry import _mean_ranks

KERNELS = list_metrics("kernel")
SHAPES_APART = ["procrustes_normalized", "angular_shape"]
NEIGHBOURS = list_metrics("neighbours")


def score(name: str, x: torch.Tensor, y: torch.Tensor, **options: Any) -> float:
    """Return the score of one pair of slices (T, D)."""
    return float(create_metric(name, **options)(x[None, None, None], y[None, None, None]))


def independent(tokens: int = 257, channels: int = 1536) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(tokens, channels))) for _ in range(2))
    return x, y


# Measured facts.


def test_cka_of_independent_features_is_as_measured() -> None:
    x, y = independent()
    assert score("cka", x, y) == pytest.approx(0.855, abs=0.005)
    assert score("cka_debiased", x, y) == pytest.approx(0.0, abs=0.01)
    x, y = independent(100, 4096)
    assert score("cka", x, y) == pytest.approx(0.976, abs=0.002)
    assert score("cka_debiased", x, y) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("name", ["cka", "cka_debiased"])
def test_an_outlier_channel_left_intact_hides_the_noise(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(257, 1536))
    y = x + rng.normal(size=x.shape)
    x[:, 7] *= 500
    y[:, 7] = x[:, 7]
    assert 0.9999998 < score(name, *map(torch.from_numpy, (x, y))) < 1


@pytest.mark.parametrize("name", KERNELS)
def test_float32_at_full_size_is_as_good_as_float64(name: str) -> None:
    x, y = pair((1, 1, 300, 400), noise=0.05, batch=1)
    gap, exact = (
        1 - float(create_metric(name)(a, b)) for a, b in ((x, y), (x.double(), y.double()))
    )
    assert gap == pytest.approx(exact, rel=1e-5)


# Edges.


@each(
    ("name", "expected"),
    [
        ("cka", [1, 1, 1]),
        ("cka_debiased", [np.nan, np.nan, 1]),
        ("cka_rbf", [1, 1, 1]),
        ("distance_correlation", [1, 1, 1]),
        ("procrustes_normalized", [0, 0, 0]),
        ("angular_shape", [0, 0, 0]),
        ("rsa", [np.nan, 1, 1]),
        ("rsm_difference", [0, 0, 0]),
        ("mutual_knn", [1, 1, 1]),
        ("jaccard_knn", [1, 1, 1]),
    ],
)
def test_few_tokens_of_a_feature_against_itself(name: str, expected: list[float]) -> None:
    for tokens, value in enumerate(expected, 2):
        x, _ = pair((1, 1, tokens, 8), batch=1)
        found = float(create_metric(name)(x, 3 * x))
        assert found == pytest.approx(value, abs=1e-6, nan_ok=True)


@each(
    ("name", "expected"),
    [
        *((name, 0) for name in (*KERNELS, "rsa")),
        ("procrustes_normalized", 2),
        ("angular_shape", np.pi / 2),
        *((name, 10 / 48 if name == "mutual_knn" else 10 / 86) for name in NEIGHBOURS),
    ],
)
@each("dtype", [torch.float32, torch.float64])
@each("value", [0.0, 0.1, -507.0, 1e30])
def test_without_structure_there_is_none_to_keep(
    name: str, expected: float, dtype: torch.dtype, value: float
) -> None:
    x = pair((1, 1, 49, 8), batch=1)[0].to(dtype)
    constant = torch.linspace(value, 3 * value, 8, dtype=dtype).expand_as(x)
    for a, b in ((x, constant), (constant, x)):
        # Neighbours of a constant are a matter of chance: 10 of 48, and 10 of 86 in the union.
        assert create_metric(name)(a, b).tolist() == [pytest.approx(expected, rel=1e-9, abs=0)]
    both = 1.0 if name in NEIGHBOURS else pytest.approx(expected)
    assert create_metric(name)(constant, constant).tolist() == [both]


def test_tokens_that_are_all_equally_far_apart_have_no_debiased_structure() -> None:
    corners, other = torch.eye(9), pair((1, 1, 9, 9), batch=1)[0][0, 0, 0]
    for dtype in (torch.float32, torch.float64):
        assert score("cka_debiased", corners.to(dtype), other.to(dtype)) == 0.0
    assert score("cka", corners, other) > 0.1


@each("name", [*KERNELS, *SHAPES_APART, "rsa", "rsm_difference", "mutual_knn", "jaccard_knn"])
@each("size", [1e-36, 1e-20, 1e20, 1e36])
def test_scores_do_not_depend_on_the_unit(name: str, size: float) -> None:
    x, y = pair((1, 2, 20, 8))
    metric = create_metric(name)
    expected = metric(x, y).numpy()
    np.testing.assert_allclose(metric(size * x, size * y).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_each_feature_has_a_kernel_of_its_own(name: str) -> None:
    """A common bandwidth would make the score depend on the order of the pair and its unit."""
    x, y = (batch.double() for batch in pair((1, 2, 20, 8)))
    metric = create_metric(name)
    expected = metric(x, y).numpy()
    np.testing.assert_allclose(metric(y, x).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(metric(0.01 * x, y).numpy(), expected, rtol=1e-7)


def test_distances_of_equal_tokens_are_zero() -> None:
    rng = np.random.default_rng(3)
    tokens = torch.from_numpy(300 + rng.normal(size=(5, 64)))[torch.arange(40) % 5]
    squares = squared_distances(Features(tokens[None, None, None]))[0, 0, 0]
    equal = torch.arange(40)[:, None] % 5 == torch.arange(40) % 5
    assert ((squares == 0) == equal).all()


def test_the_kernel_of_a_feature_that_is_mostly_constant_is_its_limit() -> None:
    x, y = (z[0].double() for z in pair((1, 1, 12, 6), batch=1))
    y[..., :9, :] = y[..., :1, :]  # 36 of 66 distances are 0
    twin = STRUCTURE_TWINS["cka_rbf"](x.numpy(), y.numpy())
    assert float(create_metric("cka_rbf")(x[None], y[None])) == pytest.approx(twin, rel=1e-10)
    assert 0 < twin < 1


@pytest.mark.parametrize("tokens", [20, 40], ids=["flat", "tall"])
def test_shapes_are_the_same_wherever_they_lie(tokens: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(tokens, 30))
    turn = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    moved = torch.from_numpy(x @ turn + rng.normal(size=30))
    cloud = torch.from_numpy(x)
    energy = float(((x - x.mean(0)) ** 2).sum())
    for factor in (1.0, 3.0):
        assert score("procrustes", cloud, factor * moved) == pytest.approx(
            (factor - 1) ** 2 * energy, rel=1e-10, abs=1e-9
        )
        for name in SHAPES_APART:
            assert score(name, cloud, factor * moved) == 0.0


@each("name", ["procrustes", *SHAPES_APART])
@each("shape", [(60, 90), (90, 60)])
@each("noise", [1e-3, 1.0])
def test_shapes_that_lack_directions_keep_their_digits(
    name: str, shape: tuple[int, int], noise: float
) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(shape[0], 20)) @ rng.normal(size=(20, shape[1]))
    x[:, 5] *= 300
    y = x + noise * rng.normal(size=shape)
    y[:, 40:] = 0.7  # channels that were lost
    twin = STRUCTURE_TWINS[name](x[None, None], y[None, None])
    assert score(name, torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(twin, rel=1e-6)


def test_a_decomposition_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrices: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    x, y = pair((1, 1, 6, 4))
    with pytest.raises(MetricError, match="the singular values of a slice did not converge"):
        create_metric("procrustes")(x, y)


def test_one_decomposition_serves_all_that_compare_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, eigvalsh = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda z: calls.append(z) or eigvalsh(z))
    x, y = map(Features, pair((1, 1, 6, 4)))
    for name in ("procrustes", *SHAPES_APART):
        create_metric(name).score(x, y)
    assert len(calls) == 1


# Ties.


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_ranks_are_those_of_scipy(numbers: list[int]) -> None:
    values = torch.tensor([numbers, numbers[::-1]], dtype=torch.float64) * 0.1
    expected = [rankdata(row) - 1 for row in values.numpy()]
    means, order = _mean_ranks(values)
    ranks = torch.empty_like(means).scatter_(-1, order, means)
    np.testing.assert_array_equal(ranks.numpy(), expected)


def grid(tokens: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens on a coarse grid, many of them at equal distances or equal."""
    rng = np.random.default_rng(8)
    x = rng.integers(0, 3, size=(tokens, 3)).astype(float)
    y = np.where(rng.random(x.shape) < 0.3, rng.integers(0, 3, size=x.shape), x)
    x[-1] = y[0] = 0.0
    return x, y


@each("name", ["rsa", "rsm_difference", *NEIGHBOURS, "cka_rbf"])
@each("k", [1, 3, 10])
def test_ties_are_those_of_the_twin(name: str, k: int) -> None:
    x, y = grid()
    metric = create_metric(name)
    options = {"k": k} if "k" in metric.options else {}
    expected = STRUCTURE_TWINS[name](x[None, None], y[None, None], **options)
    for unit in (1.0, 0.1):
        # Tenths are not exact: what ties is known up to rounding only.
        got = score(name, torch.from_numpy(unit * x), torch.from_numpy(unit * y), **options)
        assert got == pytest.approx(expected, rel=1e-10)
    assert 0 < expected < 1


@pytest.mark.parametrize("name", [*NEIGHBOURS, "rsa"])
def test_ties_do_not_depend_on_the_order_of_tokens_or_on_the_batch(name: str) -> None:
    x, y = (torch.from_numpy(0.1 * z) for z in grid(30))
    rng = np.random.default_rng(9)
    orders = torch.from_numpy(np.stack([rng.permutation(30) for _ in range(5)]))
    scores = create_metric(name)(x[orders][:, None, None], y[orders][:, None, None])
    np.testing.assert_allclose(scores.numpy(), score(name, x, y), rtol=1e-12)


# Neighbours.


@each("name", NEIGHBOURS)
def test_neighbours_of_independent_tokens_are_shared_by_chance(name: str) -> None:
    x, y = independent(200, 30)
    chance = {"mutual_knn": 10 / 199, "jaccard_knn": 10 / (2 * 199 - 10)}[name]
    assert score(name, x, y) == pytest.approx(chance, rel=0.2)


@each("name", NEIGHBOURS)
def test_there_are_at_most_half_as_many_neighbours_as_others(name: str) -> None:
    x, y = (z[0, 0, 0].double() for z in pair((1, 1, 9, 5), noise=2.0, batch=1))
    assert score(name, x, y, k=100) == score(name, x, y, k=4) < 1
    assert score(name, x, y, k=3) != score(name, x, y, k=4)


@each("name", NEIGHBOURS)
@each("k", [0, -1, 2.0, True, "3", None])
def test_a_number_of_neighbours_is_asked_for(name: str, k: Any) -> None:
    x = torch.rand(1, 1, 1, 5, 4)
    with pytest.raises(
        MetricError, match=rf"{name}: k must be a whole number .*, not {re.escape(repr(k))}"
    ):
        create_metric(name, k=k)(x, x)


# Sharing.


def test_what_belongs_to_the_original_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    once = Features.once

    def counted(self: Features, key: object, make: object) -> object:
        if key not in self._kept:
            made.append((self, key))
        return once(self, key, make)  # type: ignore[arg-type]

    monkeypatch.setattr(Features, "once", counted)
    x, y = pair((1, 1, 12, 6))
    original, versions = Features(x[:1]), [Features(y), Features(2 * y)]
    metrics = [m for m in METRICS if m.family in ("kernel", "geometry", "neighbours")]
    for version in versions:
        for metric in metrics:
            metric.score(original, version)
    keys = [key for owner, key in made if owner is original]
    assert len(keys) == len(set(keys)) == 10
    # The versions need no factors, but each its gaps from the original.
    assert len(made) == len(keys) + 2 * 5
