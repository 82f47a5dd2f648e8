"""What is known of the metrics of how tokens lie to one another: measured facts, edges, ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metric_samples import pair
from twins_structure import STRUCTURE_TWINS

from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics import create_metric, list_metrics
from cfqa_data.eval.metrics.base import Metric
from cfqa_data.eval.relations import squared_distances

KERNELS = list_metrics("kernel")


def score(name: str, x: torch.Tensor, y: torch.Tensor, **options: int) -> float:
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cka", [0, 1, 1, 1]),
        ("cka_debiased", [0, 0, 0, 1]),
        ("cka_rbf", [0, 1, 1, 1]),
        ("distance_correlation", [0, 1, 1, 1]),
    ],
)
def test_few_tokens_of_a_feature_against_itself(name: str, expected: list[float]) -> None:
    for tokens, value in enumerate(expected, 1):
        x, _ = pair((1, 1, tokens, 8), batch=1)
        assert float(create_metric(name)(x, 3 * x)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, -507.0, 1e30])
def test_without_structure_there_is_none_to_keep(
    name: str, dtype: torch.dtype, value: float
) -> None:
    x = pair((1, 1, 49, 8), batch=1)[0].to(dtype)
    constant = torch.linspace(value, 3 * value, 8, dtype=dtype).expand_as(x)
    for a, b in ((x, constant), (constant, x), (constant, constant)):
        assert create_metric(name)(a, b).tolist() == [0.0]


def test_tokens_that_are_all_equally_far_apart_have_no_debiased_structure() -> None:
    corners, other = torch.eye(9), pair((1, 1, 9, 9), batch=1)[0][0, 0, 0]
    for dtype in (torch.float32, torch.float64):
        assert score("cka_debiased", corners.to(dtype), other.to(dtype)) == 0.0
    assert score("cka", corners, other) > 0.1


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e20, 1e36])
def test_scores_do_not_depend_on_the_unit(name: str, size: float) -> None:
    x, y = pair((1, 2, 20, 8))
    metric = create_metric(name)
    expected = metric(x, y).numpy()
    np.testing.assert_allclose(metric(size * x, size * y).numpy(), expected, rtol=1e-5)


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
    metrics: list[Metric] = [create_metric(name) for name in KERNELS]
    for version in versions:
        for metric in metrics:
            metric.score(original, version)
    keys = [key for owner, key in made if owner is original]
    assert len(keys) == len(set(keys)) == 5
    assert len(made) == 15
