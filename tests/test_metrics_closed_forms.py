"""Whitened and distributional metrics with known values, and inputs that they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metric_samples import pair

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import create_metric, whitened

MIXING = np.random.default_rng(0).normal(size=(6, 6))


def test_deviations_have_a_floor() -> None:
    x = torch.zeros(1, 1, 4, 1, 4)
    # Median square 2.5; median 0 and mean square 1; nothing varies; an outlier.
    deviation = [[0.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 2.0], [0.0] * 4, [2.0, 2.0, 2.0, 500.0]]
    units = [[2.5**0.5] * 2 + [2.0] * 2, [1.0] * 3 + [2.0], [1.0] * 4, [2.0] * 3 + [500.0]]
    metric = create_metric("mse_whitened", deviation=deviation)
    np.testing.assert_allclose(metric(x, x + 1).numpy(), np.mean(np.power(units, -2.0)), rtol=1e-6)
    tenth = np.mean(np.power([0.1 * 2.5**0.5, 1.0, 2.0, 2.0], -2.0))
    alone = create_metric("mse_whitened", deviation=deviation[:1], floor=0.1)
    np.testing.assert_allclose(alone(x[:, :, :1], x[:, :, :1] + 1).numpy(), [tenth], rtol=1e-6)


@pytest.mark.parametrize("name", ["mse_whitened", "mahalanobis"])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 500.0])
def test_constant_and_outlier_channels_do_not_carry_a_whitened_score(
    name: str, scale: float
) -> None:
    """Errors in four such channels of forty have at most their share of the total."""
    scales = torch.ones(40, dtype=torch.float64)
    scales[:4] = scale
    statistics = {"deviation": scales[None], "covariance": scales.square().diag()[None]}
    plain = create_metric(name)
    metric = plain.with_options(**{plain.needs[0]: statistics[plain.needs[0]]})
    x, (_, y) = torch.zeros(3, 1, 1, 9, 40), pair((1, 1, 9, 40))
    whole = y - y.mean(-2, keepdim=True)
    part = whole.clone()
    part[..., 4:] = 0
    share = metric(x, part) / metric(x, whole)
    mean_squares = part.square().mean((1, 2, 3, 4)) / whole.square().mean((1, 2, 3, 4))
    assert (share <= 2 * mean_squares.double() + 1e-9).all()


def test_mahalanobis_of_white_noise_is_the_number_of_channels() -> None:
    x, mixing = torch.zeros(1, 1, 1, 4000, 6), torch.from_numpy(MIXING).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) @ mixing
    metric = create_metric("mahalanobis", covariance=(MIXING.T @ MIXING)[None], shrinkage=0.0)
    np.testing.assert_allclose(metric(x, noise).numpy(), [6.0], rtol=0.05)


def test_the_factor_of_a_covariance_is_made_once_and_goes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    factor = whitened._factor
    monkeypatch.setattr(whitened, "_factor", lambda *given: made.append(1) or factor(*given))
    x, y = pair((1, 2, 5, 4))
    before = len(whitened._results())
    covariance = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    metric = create_metric("mahalanobis", covariance=covariance)
    first = metric(x, y)
    assert metric(x, y).tolist() == first.tolist()
    assert len(made) == 1
    assert not metric.with_options(shrinkage=0.5)(x, y).equal(first)
    metric(x.double(), y.double())
    assert len(made) == 3
    assert len(whitened._results()) == before + 1
    del metric, covariance
    assert len(whitened._results()) == before


def test_a_covariance_that_has_no_inverse_is_refused() -> None:
    x, y = pair((1, 2, 5, 4))
    covariance = torch.zeros(2, 4, 4)
    covariance[0] = torch.eye(4)
    covariance[1, 0, 0] = 1.0
    message = "covariance of layer 1 with a shrinkage of 0 is not positive definite"
    with pytest.raises(MetricError, match=message):
        create_metric("mahalanobis", covariance=covariance, shrinkage=0.0)(x, y)
    assert create_metric("mahalanobis", covariance=covariance)(x, y).isfinite().all()
    nothing = create_metric("mahalanobis", covariance=0 * covariance, shrinkage=1.0)
    np.testing.assert_allclose(
        nothing(x, y).numpy(), (y - x).double().square().sum(-1).mean((1, 2, 3)).numpy(), rtol=1e-5
    )


# Distributions.


@pytest.mark.parametrize("size", [1.0, 1e3, 1e4])
def test_divergences_of_two_channels_have_a_closed_form(size: float) -> None:
    x = torch.tensor([0.0, size], dtype=torch.float64).reshape(1, 1, 1, 1, 2)
    kl, js = (float(create_metric(f"{name}_softmax")(x, -x)) for name in ("kl", "js"))
    p = 1 / (1 + math.exp(-min(size, 700)))
    np.testing.assert_allclose(kl, size * (2 * p - 1), rtol=1e-9)
    entropy = -p * math.log(p) - ((1 - p) * math.log(1 - p) if p < 1 else 0.0)
    np.testing.assert_allclose(js, math.log(2) - entropy, rtol=1e-9)


def test_distances_of_shifted_tokens_are_the_shift() -> None:
    x, _ = pair((1, 1, 9, 4))
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0])
    np.testing.assert_allclose(create_metric("frechet")(x, x + shift).numpy(), 25.0, rtol=1e-5)
    np.testing.assert_allclose(create_metric("moments")(x, x + shift).numpy(), 6.25, rtol=1e-5)
    # Along a direction u the tokens move by <shift, u>, whose mean square is |shift|^2 / D.
    many = create_metric("sliced_wasserstein", projections=20000)
    np.testing.assert_allclose(many(x, x + shift).numpy(), 2.5, rtol=0.02)


@pytest.mark.parametrize("shape", [(1, 1, 6, 9), (1, 1, 9, 6)], ids=str)
def test_frechet_of_independent_channels_adds_up_their_spreads(shape: tuple[int, ...]) -> None:
    tokens, channels = shape[2:]
    rank = min(tokens - 1, channels)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(tokens, tokens)))[0]
    basis = np.linalg.qr(np.concatenate([np.ones((tokens, 1)), basis], axis=1))[0][:, 1 : rank + 1]
    x = torch.zeros(1, *shape, dtype=torch.float64)
    x[..., :rank] = torch.from_numpy(basis * tokens**0.5 * np.arange(1, rank + 1))
    # Standard deviations 1, 2, 3, ... and thrice those: (3s - s)^2 each.
    expected = 4 * sum(s**2 for s in range(1, rank + 1))
    np.testing.assert_allclose(create_metric("frechet")(x, 3 * x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["sliced_wasserstein", "frechet", "moments"])
def test_the_order_of_the_tokens_does_not_count(name: str) -> None:
    x, y = (batch.double() for batch in pair((1, 2, 9, 4)))
    metric = create_metric(name)
    shuffled = y[..., torch.randperm(9, generator=torch.Generator().manual_seed(0)), :]
    np.testing.assert_allclose(metric(x, shuffled).numpy(), metric(x, y).numpy(), rtol=1e-10)


def test_directions_are_drawn_by_their_seed() -> None:
    x, y = pair((1, 1, 9, 4))
    scores = [create_metric("sliced_wasserstein", seed=seed)(x, y) for seed in (0, 0, 1)]
    assert scores[0].equal(scores[1])
    assert not scores[0].equal(scores[2])
    for wrong in ({"projections": 0}, {"seed": -1}):
        with pytest.raises(MetricError, match="projections must be at least 1 and seed at least 0"):
            create_metric("sliced_wasserstein", **wrong)(x, y)
