"""Conformance suite of metrics.

class TestMine(MetricSuite):
    metric = mine
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import getattr_static
from typing import Any

import numpy as np
import pytest

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics import Metric, as_metric
from cfqa_data.testing import required

__all__ = ["MetricSuite", "feature_pair", "made_statistics", "transformed"]


def feature_pair(
    shape: tuple[int, ...], seed: int = 0, noise: float = 0.3, batch: int = 3
) -> tuple[Tensor, Tensor]:
    """Return float32 originals with an offset and unequal channels, and noisy versions of them."""
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    x = rng.normal(size=full) * rng.uniform(0.1, 3, size=full[-1:]) + rng.normal(size=full[-1:])
    y = x + noise * rng.normal(size=full)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def made_statistics(metric: Metric, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return random dataset statistics that a metric needs."""
    rng = np.random.default_rng(7)
    layers, channels = shape[1], shape[3]
    mixing = rng.normal(size=(layers, channels, 2 * channels))
    statistics = {
        "value_range": rng.uniform(5, 50, layers),
        "deviation": rng.uniform(0.1, 3, (layers, channels)),
        "covariance": mixing @ mixing.transpose(0, 2, 1) / channels,
    }
    return {name: torch.from_numpy(statistics[name]) for name in metric.needs}


def transformed(y: Tensor, kind: str, seed: int = 0) -> Tensor:
    """Return features after a random transformation of a kind that `INVARIANCES` lists."""
    rng, channels = np.random.default_rng(seed), y.shape[-1]
    if kind == "orthogonal":
        rotation = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
        return y @ torch.from_numpy(rotation).to(y.dtype)
    if kind == "permutation":
        return y[..., np.roll(np.arange(channels), rng.integers(1, max(2, channels)))]
    if kind == "scale":
        return y * float(np.exp(rng.uniform(0.5, 3) * rng.choice([-1, 1])))
    assert kind == "translation"
    return y + torch.from_numpy(3 * rng.normal(size=channels)).to(y.dtype)


class MetricSuite:
    """Tests of a metric.

    Attributes:
        metric: Any metric that `evaluate` takes: a function, a class or an instance of one, a
            `Metric`, its name, or "module:attribute".
        options: Its options and statistics; missing statistics are random.
        training: The training part of a dataset, for a metric with a method `fit`.
        shape: (N, C, T, D) of the features.
        dtypes: Dtypes in which the metric computes, such as ("float32",) for a network. Most tests
            use the last one.
        tolerance: Absolute and relative rounding error that a score may have.
        differentiable: Whether to test gradients; they are also tested if the metric declares
            itself differentiable.
    """

    metric: Any = required("the metric, or its name")
    options: Mapping[str, Any] = {}
    training: Any = None
    shape: tuple[int, int, int, int] = (2, 2, 13, 9)
    dtypes: Sequence[str] = ("float32", "float64")
    tolerance: float = 1e-5
    differentiable: bool = False

    def make(self, device: str = "cpu", **more: Any) -> Metric:
        """Return the metric, constructed as in an evaluation."""
        metric = self._untrained(device)
        options = {**made_statistics(metric, self.shape), **self.options, **more}
        metric = metric.with_options(**options)
        return metric.fitted(self.training) if metric.fit else metric

    def _untrained(self, device: str = "cpu") -> Metric:
        assert self.metric is not None
        metric = getattr_static(self, "metric")  # a function must not be bound to the suite
        return as_metric(metric.__func__ if isinstance(metric, staticmethod) else metric, device)

    def pair(self, seed: int = 0, noise: float = 0.3, batch: int = 3) -> tuple[Tensor, Tensor]:
        """Return typical features, originals and noisy versions.

        A metric that scores all versions of an original at once gets a single original.
        """
        x, y = feature_pair(self.shape, seed, noise, batch)
        if self.wide:
            x, y = x[:1], x[:1] + (y - x)
        dtype = getattr(torch, self.dtypes[-1])
        return x.to(dtype), y.to(dtype)

    @property
    def wide(self) -> bool:
        """Whether the metric scores all versions of an original at once."""
        return self._untrained().scope != "pair"

    def check(self, metric: Metric, scores: Tensor, count: int) -> None:
        """Check that there is one finite float64 score per item, within the metric's range."""
        assert tuple(scores.shape) == (count,)
        assert scores.dtype == torch.float64
        assert scores.isfinite().all()
        low, high = metric.score_range
        assert ((scores >= low) & (scores <= high)).all()

    def close(self, scores: Tensor, expected: Tensor, least: float = 0.0) -> None:
        """Check that scores are equal up to rounding."""
        tolerance = max(self.tolerance, least)
        torch.testing.assert_close(
            scores, expected, rtol=tolerance, atol=tolerance, check_device=False
        )

    # The tests.

    def test_it_states_its_facts(self) -> None:
        metric = self.make()
        low, high = metric.score_range
        assert metric.name.isprintable()
        assert metric.identity is None or low <= metric.identity <= high

    def test_scores_are_finite_float64_within_the_range(self) -> None:
        metric = self.make()
        for seed, noise in enumerate((1e-3, 0.3, 10.0, 1e3)):
            self.check(metric, metric(*self.pair(seed, noise)), 3)

    def test_reconstructions_that_do_not_vary_have_scores(self) -> None:
        metric, (x, _) = self.make(), self.pair()
        for y in (torch.full_like(x, 0.1), torch.zeros_like(x), x[..., :1, :].expand_as(x)):
            self.check(metric, metric(x, y), len(x))

    def test_the_same_features_have_the_same_scores(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        scores = metric(x, y)
        metric(x, y + 1)
        assert torch.equal(metric(x, y), scores)
        assert torch.equal(self.make()(x, y), scores)

    def test_a_score_does_not_depend_on_its_batch(self) -> None:
        metric, (x, y) = self.make(), self.pair(batch=5)
        if self.wide:  # the score may depend on the batch, but not on its order
            self.close(metric(x, y.flip(0)).flip(0), metric(x, y))
            return
        together = metric(x, y)
        for index in range(5):
            self.close(metric(x[index], y[index]), together[index : index + 1])
        self.close(metric(x.flip(0), y.flip(0)).flip(0), together)

    def test_one_original_stands_for_the_whole_batch(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        if not self.wide:
            self.close(metric(x[:1], y), metric(x[:1].expand_as(y).clone(), y))
        elif not metric.no_reference:
            with pytest.raises(MetricError, match="x is one original"):
                metric(x.expand_as(y), y)

    def test_without_a_reference_the_original_does_not_count(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        if metric.no_reference:
            assert torch.equal(metric(y), metric(x, y))
            assert torch.equal(metric(x + 1, y), metric(x, y))
        else:
            with pytest.raises(MetricError, match="expected an array or tensor of numbers"):
                metric(y)

    def test_features_are_left_as_they_are(self) -> None:
        features = self.pair()
        copies = [batch.clone() for batch in features]
        self.make()(*features)
        assert all(map(torch.equal, features, copies))

    def test_a_feature_against_itself_scores_the_identity(self) -> None:
        metric = self.make()
        if metric.identity is None:
            return
        for dtype in self.dtypes:
            x = self.pair()[0].to(getattr(torch, dtype))
            self.close(metric(x, x), torch.full((len(x),), metric.identity, dtype=torch.float64))

    def test_more_noise_is_not_better(self) -> None:
        metric, (x, y) = self.make(), self.pair(noise=1.0, batch=12)
        if metric.lower_better is None:  # unknown for a custom metric
            return
        sign = 1 if metric.lower_better else -1
        steps = (0.0, 0.1, 0.3, 1.0, 3.0)
        versions = [x + step * (y - x) for step in steps]
        if self.wide:
            scores = metric(x, torch.cat(versions)).reshape(len(steps), -1)
        else:
            scores = torch.stack([metric(x, version) for version in versions])
        harm = sign * scores.mean(dim=1).numpy(force=True)
        assert (np.diff(harm) >= -self.tolerance).all()
        assert harm[0] < harm[-1]

    def test_what_it_is_invariant_to_leaves_the_scores(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        scores = metric(x, y)
        for kind in sorted(metric.invariances):
            self.close(metric(x, transformed(y, kind)), scores)

    def test_other_numbers_score_like_float32(self) -> None:
        metric, generator = self.make(), torch.Generator().manual_seed(0)
        x, y = torch.randint(0, 30, (2, 2, *self.shape), generator=generator).float()
        x = x[:1] if self.wide else x
        expected = metric(x, y)
        for dtype in ("int8", "uint8", "int32", "float16", "bfloat16"):  # none may wrap around
            wanted = getattr(torch, dtype)
            assert torch.equal(metric(x.to(wanted), y.to(wanted)), expected)
        assert torch.equal(metric(x.numpy(), y.numpy()), expected)

    def test_every_dtype_and_device_gives_the_same_but_for_rounding(self) -> None:
        x, y = self.pair()
        expected = self.make()(x, y)
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            metric = self.make(device)
            for dtype in self.dtypes:
                scores = metric(x.to(getattr(torch, dtype)), y.to(getattr(torch, dtype)))
                assert scores.device.type == device
                self.close(scores.cpu(), expected, 1e-5)

    def test_it_has_scores_from_its_least_tokens_on(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        least = metric.least_tokens
        assert least <= self.shape[2]
        self.check(metric, metric(x[..., :least, :], y[..., :least, :]), 3)
        if least > 1:
            x, y = x[..., : least - 1, :], y[..., : least - 1, :]
            for originals in (x, x[:1]):
                scores = metric(originals, y)
                assert scores.dtype == torch.float64
                assert scores.isnan().tolist() == [True] * 3
            with pytest.raises(MetricError, match="is undefined for fewer than"):
                metric.score(Features(x), Features(y))

    def test_a_feature_with_nan_or_infinity_is_named(self) -> None:
        metric = self.make()
        for index, side in enumerate(("original", "compressed")):
            for bad in (math.nan, math.inf, -math.inf):
                features = self.pair()
                last = len(features[index]) - 1
                features[index][last, 0, 0, 0, -1] = bad
                with pytest.raises(MetricError, match=f"the {side} feature {last} holds NaN or"):
                    metric(*features)

    def test_gradients_go_through_if_they_are_to(self) -> None:
        metric, (x, y) = self.make(), self.pair()
        if not (self.differentiable or metric.differentiable):
            return
        metric(x, y.requires_grad_()).sum().backward()
        assert y.grad is not None
        assert y.grad.isfinite().all()
        assert y.grad.abs().sum() > 0

    def test_unknown_options_are_one_line_errors(self) -> None:
        with pytest.raises(MetricError, match="no_such_option") as caught:
            self.make(no_such_option=1)
        assert "\n" not in str(caught.value)
