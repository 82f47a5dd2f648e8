"""Pooled correlations on resamples: scipy on the materialised resample is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cfqa_data.eval.statistics import pooled
from cfqa_data.eval.statistics.bootstrap import interval, resampled_means, source_counts
from cfqa_data.eval.statistics.correlations import coefficients
from cfqa_data.eval.statistics.pooled import concordance, pooled_coefficients

FUNCTIONS = (stats.pearsonr, stats.spearmanr, stats.kendalltau)


def sample(seed: int, sizes: list[int], distinct: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (3, n) scores, one without ties, one with many, one that follows; (n,) truth."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    truth = rng.normal(size=n) if not distinct else rng.integers(0, distinct, n).astype(float)
    scores = np.stack([rng.normal(size=n), rng.integers(0, 3, n), truth + rng.normal(size=n)])
    return scores, truth


def materialised(scores: np.ndarray, truth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The coefficients of the repeated points, by scipy and the rules for constants."""
    if len(set(truth[points])) == 1:
        return np.full((3, len(scores)), np.nan)
    return np.array(
        [
            [
                0.0 if len(set(row[points])) == 1 else function(row[points], truth[points])[0]
                for row in scores
            ]
            for function in FUNCTIONS
        ]
    )


@pytest.mark.parametrize("distinct", [0, 4, 2])
@pytest.mark.parametrize("sizes", [[5] * 8, [1, 2, 3, 9, 4], [6]])
def test_every_resample_is_scipys_of_the_repeated_sources(sizes: list[int], distinct: int) -> None:
    scores, truth = sample(len(sizes) + distinct, sizes, distinct)
    starts = np.cumsum([0, *sizes[:-1]])
    counts = source_counts(len(sizes), 12, seed=3)
    found = pooled_coefficients(scores, truth, starts, counts)
    for draw, weights in enumerate(counts.astype(int)):
        parts = [np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)]
        points = np.concatenate([np.tile(p, w) for p, w in zip(parts, weights, strict=True)])
        np.testing.assert_allclose(
            found[:, :, draw], materialised(scores, truth, points), atol=1e-12
        )


def test_draws_may_be_worked_on_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, truth = sample(0, [20] * 10)
    starts, counts = np.arange(10) * 20, source_counts(10, 30, seed=1)
    whole = pooled_coefficients(scores, truth, starts, counts)
    for numbers in (200, 999, 10**6):
        monkeypatch.setattr(pooled, "MAX_ELEMENTS", numbers)
        parts = pooled_coefficients(scores, truth, starts, counts)
        np.testing.assert_allclose(parts, whole, atol=1e-14)


def test_resamples_in_which_nothing_varies_are_seen_exactly() -> None:
    """0.1 in every point of two sources: drawn alone, they have no variance and no rounding."""
    truth = np.array([0.1, 0.1, 0.1, 0.1, 0.3, 0.7])
    scores = np.array([[0.3, 0.3, 0.5, 0.6, 0.3, 0.3]])
    counts = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 3], [1, 0, 2.0]])
    found = pooled_coefficients(scores, truth, np.array([0, 2, 4]), counts)[:, 0]
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, 2:], 0)
    assert (found[:, 0] != 0).all()


@pytest.mark.parametrize("size", [3, 130])
def test_concordance_is_the_sum_over_all_pairs(size: int) -> None:
    scores, truth = sample(5, [size] * 3, distinct=6)
    found = concordance(scores, truth, np.arange(3) * size)
    signs = np.sign(truth[:, None] - truth) * np.sign(scores[:, :, None] - scores[:, None])
    expected = signs.reshape(3, 3, size, 3, size).sum(axis=(2, 4))
    np.testing.assert_array_equal(found, expected)


@given(st.integers(0, 2**32 - 1))
def test_laws_of_pooled_coefficients(seed: int) -> None:
    """Monotone maps, signs, and the order of the sources."""
    scores, truth = sample(seed, [4] * 5, distinct=8)
    starts, counts = np.arange(5) * 4, source_counts(5, 6, seed)
    found = pooled_coefficients(scores, truth, starts, counts)
    np.testing.assert_allclose(
        pooled_coefficients(-scores, truth, starts, counts), -found, atol=1e-12
    )
    curved = pooled_coefficients(np.exp(scores), truth**3, starts, counts)
    np.testing.assert_allclose(curved[1:], found[1:], atol=1e-12)
    order = np.random.default_rng(seed).permutation(5)
    moved = (np.arange(20).reshape(5, 4)[order]).ravel()
    permuted = pooled_coefficients(scores[:, moved], truth[moved], starts, counts[:, order])
    np.testing.assert_allclose(permuted, found, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e150, 5e307])
def test_scale_does_not_matter(scale: float) -> None:
    scores, truth = sample(1, [4] * 5)
    starts, counts = np.arange(5) * 4, source_counts(5, 6, 0)
    found = pooled_coefficients(scale * scores, truth, starts, counts)
    np.testing.assert_allclose(found, pooled_coefficients(scores, truth, starts, counts))


# The resamples, and the means and intervals over them.


def test_resamples_draw_as_many_sources_and_depend_on_seed_and_stream() -> None:
    counts = source_counts(7, 2000, seed=5, stream="cls")
    assert counts.shape == (2001, 7)
    np.testing.assert_array_equal(counts[0], 1)
    np.testing.assert_array_equal(counts.sum(axis=1), 7)
    # Each count is binomial(7, 1 / 7): mean 1, variance 6 / 7.
    np.testing.assert_allclose(counts[1:].mean(axis=0), 1, atol=0.07)
    np.testing.assert_allclose(counts[1:].var(axis=0), 6 / 7, atol=0.1)
    np.testing.assert_array_equal(counts, source_counts(7, 2000, seed=5, stream="cls"))
    for other in ((6, "cls"), (5, "seg")):
        assert (counts != source_counts(7, 2000, *other)).any()
    np.testing.assert_array_equal(source_counts(7, 0, 0), np.ones((1, 7)))


def test_means_on_resamples_are_those_of_the_repeated_sources() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 4))
    truth[2] = 1.0  # left out wherever it is drawn
    scores = rng.normal(size=(2, 6, 4))
    scores[1, 4] = 0.5
    counts = source_counts(6, 15, seed=1)
    found = resampled_means(coefficients(scores, truth), counts)
    for draw, weights in enumerate(counts.astype(int)):
        repeated = np.repeat(np.arange(6), weights)
        expected = np.nanmean(coefficients(scores[:, repeated], truth[repeated]), axis=2)
        np.testing.assert_allclose(found[:, :, draw], expected, atol=1e-14)


def test_a_resample_of_left_out_sources_has_no_mean_and_no_part_in_the_interval() -> None:
    values = np.array([[np.nan, 0.5, 0.7]])
    counts = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0], [0, 0, 3.0]])
    means = resampled_means(values, counts)
    np.testing.assert_allclose(means, [[0.6, np.nan, 0.5, 0.7]])
    low, high = interval(means)
    np.testing.assert_allclose([low[0], high[0]], [0.505, 0.695])


def test_interval_is_that_of_scipys_bootstrap() -> None:
    """scipy.stats.bootstrap over source numbers, in its own random draws: the bounds agree."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=80)
    low, high = interval(resampled_means(values, source_counts(80, 4000, 0)))
    theirs = stats.bootstrap(
        (np.arange(80),),
        lambda rows, axis: values[rows].mean(axis=axis),
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    np.testing.assert_allclose([low, high], theirs, atol=0.02)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """300 experiments of 40 sources; 95% +- 1.3% for exact intervals, a little less for these."""
    rng = np.random.default_rng(2)
    counts = source_counts(40, 400, 0)
    low, high = interval(resampled_means(rng.uniform(-1, 1, (300, 40)), counts))
    assert 0.91 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_no_resamples_no_interval() -> None:
    low, high = interval(np.ones((2, 3, 1)))
    assert low.shape == high.shape == (2, 3)
    assert np.isnan([low, high]).all()
