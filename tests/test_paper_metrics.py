"""The cosine and CKA of the published code, against plain loops that reproduce its faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mock_dataset import write_mock_dataset

from cfqa_data.eval import evaluate
from cfqa_data.eval.metrics import create_metric

Array = np.ndarray
SHAPES = [(1, 1, 5, 7), (2, 1, 9, 4), (2, 4, 6, 6), (1, 2, 1, 3)]
COSINE, CKA = create_metric("paper_cosine"), create_metric("paper_cka")


def pair(shape: tuple[int, ...], noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *shape)) * rng.uniform(0.1, 3, size=shape[-1:]) + 1
    y = x + noise * rng.normal(size=x.shape)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def as_printed(value: float) -> float:
    return float(f"{value:.4f}")


def twin_cosine(x: Array, y: Array) -> float:
    views, layers = x.shape[:2]
    total = 0.0
    for n in range(views):
        for c in range(layers):
            tokens = []
            for u, v in zip(x[n, c], y[n, c], strict=True):
                tokens.append(
                    sum(
                        (a / (math.sqrt(u @ u) + 1e-8)) * (b / (math.sqrt(v @ v) + 1e-8))
                        for a, b in zip(u, v, strict=True)
                    )
                )
            total += sum(tokens) / len(tokens)
    return as_printed(total / views / layers)


def twin_cka(x: Array, y: Array) -> float:
    views, layers = x.shape[:2]
    score = 0.0
    for n in range(views):
        for c in range(layers):
            u, v = x[n, c] - x[n, c].mean(0), y[n, c] - y[n, c].mean(0)
            numerator = sum(float(a @ b) ** 2 for a in u for b in v)
            over_x = math.sqrt(sum(float(a @ b) ** 2 for a in u for b in u))
            over_y = math.sqrt(sum(float(a @ b) ** 2 for a in v for b in v))
            score = numerator / (over_x * over_y + 1e-8)  # the fault: = for +=
    return as_printed(score / views / layers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_equal_their_twins(shape: tuple[int, ...]) -> None:
    x, y = pair(shape)
    for metric, twin in ((COSINE, twin_cosine), (CKA, twin_cka)):
        expected = [twin(a.double().numpy(), b.double().numpy()) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(metric(x, y).numpy(), expected, rtol=0, atol=1e-12)


def test_cka_sees_the_last_slice_only_and_divides_it_by_their_number() -> None:
    x, y = pair((2, 4, 6, 6), noise=0)
    assert CKA(x, y).tolist() == [0.125] * 3  # perfect: 1 / 8
    elsewhere = y.clone()
    elsewhere[:, :, :-1] = 0
    elsewhere[:, 0] = 0
    assert CKA(x, elsewhere).tolist() == [0.125] * 3
    elsewhere[:, -1, -1] += torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert (CKA(x, elsewhere) < 0.125).all()


def test_cka_is_not_invariant_to_rotations_and_the_right_one_is() -> None:
    x, _ = pair((1, 1, 30, 6))
    random = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    y = x @ torch.linalg.qr(random)[0]
    assert (CKA(x, y) < 0.9).all()
    np.testing.assert_allclose(create_metric("cka")(x, y).numpy(), 1.0, atol=1e-6)


def test_rounding_makes_ties_where_the_measure_has_none() -> None:
    x, y = pair((1, 1, 12, 8), noise=1)
    faint = torch.cat([x[:1] + step * (y - x)[:1] for step in (1e-3, 2e-3, 3e-3)])
    assert COSINE(x[:1], faint).tolist() == [1.0] * 3
    assert len(set(create_metric("cosine")(x[:1], faint).tolist())) == 3


def test_a_feature_that_is_constant_over_tokens_scores_zero() -> None:
    x, _ = pair((1, 1, 5, 7))
    assert CKA(x, torch.ones_like(x)).tolist() == [0.0] * 3


def test_an_evaluation_takes_them_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write_mock_dataset(tmp_path_factory.mktemp("mock") / "cfqa", sources=2)
    found = evaluate(root, ["paper_cosine", "paper_cka"], task="seg", codec="x265")
    assert found.correlations["metric"].to_pylist() == ["paper_cosine", "paper_cka"]
    assert all(row["srocc"] < 0 for row in found.correlations.to_pylist())
