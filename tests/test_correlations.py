"""Correlations of rows, with scipy as oracle; rules for constants; published examples."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from cfqa_data.eval.statistics.bootstrap import resampled_means
from cfqa_data.eval.statistics.correlations import (
    average_ranks,
    coefficients,
    constant_rows,
    kendall,
    pearson,
    spearman,
)

# Few distinct values make ties and constant rows common.
tied = arrays(np.float64, (4, 10), elements=st.integers(-2, 2).map(float))
smooth = arrays(np.float64, (4, 10), elements=st.floats(-1e6, 1e6, allow_subnormal=False, width=32))


@given(tied | smooth)
def test_ranks_equal_scipys(values: np.ndarray) -> None:
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values, axis=1))


def scipy_rows(function: object, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of (nearly) constant rows
        return np.array([function(a, b).statistic for a, b in zip(x, y, strict=True)])  # type: ignore[operator]


@given(tied, tied)
def test_coefficients_equal_scipys_on_ties_and_constant_rows(x: np.ndarray, y: np.ndarray) -> None:
    np.testing.assert_allclose(pearson(x, y), scipy_rows(stats.pearsonr, x, y), atol=1e-12)
    np.testing.assert_allclose(spearman(x, y), scipy_rows(stats.spearmanr, x, y), atol=1e-12)
    np.testing.assert_allclose(kendall(x, y), scipy_rows(stats.kendalltau, x, y), atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-12, 12), st.floats(-3, 3))
def test_coefficients_equal_scipys_on_real_numbers(seed: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = 10**scale * (rng.normal(size=(4, 10)) + 10**offset)
    y = rng.uniform(-1, 1, size=(4, 1)) * x + 10**scale * rng.normal(size=(4, 10))
    np.testing.assert_allclose(pearson(x, y), scipy_rows(stats.pearsonr, x, y), atol=1e-11)
    np.testing.assert_allclose(spearman(x, y), scipy_rows(stats.spearmanr, x, y), atol=1e-12)
    np.testing.assert_allclose(kendall(x, y), scipy_rows(stats.kendalltau, x, y), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_ranks_outgrow_no_score_s_precision(dtype: type) -> None:
    """Ranks that are cast back to float16, as in some of SciPy's functions, end at 2048."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    scores = (truth + rng.normal(size=4000)).astype(dtype)
    expected = stats.spearmanr(scores.astype(np.float64), truth).statistic
    assert spearman(scores[None], truth[None])[0] == pytest.approx(expected, abs=1e-12)


def means(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """PLCC, SROCC and KROCC per source, averaged over the sources by the rules."""
    per_source = coefficients(scores[None], label)[:, 0]
    return resampled_means(per_source, np.ones((1, len(label))))[:, 0]


@given(tied, tied)
def test_sign_follows_the_metric_and_rank_correlation_ignores_its_scale(
    x: np.ndarray, y: np.ndarray
) -> None:
    up = means(x, y)
    np.testing.assert_allclose(means(-x, y), -up, atol=1e-12)
    np.testing.assert_allclose(means(np.exp(x), y)[1:], up[1:], atol=1e-12)
    np.testing.assert_allclose(means(5 * x + 3, y)[0], up[0], atol=1e-12)


def test_a_worked_example_with_ties() -> None:
    """Spearman's formula with ties, worked by hand: ranks (1, 2.5, 2.5, 4) against (2, 1, 3, 4)."""
    x = np.array([[10.0, 20.0, 20.0, 30.0]])
    y = np.array([[0.2, 0.1, 0.3, 0.9]])
    np.testing.assert_array_equal(average_ranks(x), [[1, 2.5, 2.5, 4]])
    assert spearman(x, y)[0] == pytest.approx(3.0 / np.sqrt(4.5 * 5.0), abs=1e-15)


def test_anscombes_quartet() -> None:
    """Published: r = 0.816 in all four sets (Anscombe, The American Statistician, 1973)."""
    x123 = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    x = np.array([x123, x123, x123, [8] * 7 + [19] + [8] * 3], dtype=float)
    y = np.array(
        [
            [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
            [9.14, 8.14, 8.74, 8.77, 9.26, 8.10, 6.13, 3.10, 9.13, 7.26, 4.74],
            [7.46, 6.77, 12.74, 7.11, 7.81, 8.84, 6.08, 5.39, 8.15, 6.42, 5.73],
            [6.58, 5.76, 7.71, 8.84, 8.47, 7.04, 5.25, 12.50, 5.56, 7.91, 6.89],
        ]
    )
    np.testing.assert_allclose(
        pearson(x, y), [0.81642052, 0.81623651, 0.81628674, 0.81652144], atol=5e-9
    )


def test_rows_of_many_points_are_counted_without_overflow() -> None:
    x, y = np.random.default_rng(0).integers(0, 40, (2, 3, 300)).astype(float)
    np.testing.assert_allclose(kendall(x, y), scipy_rows(stats.kendalltau, x, y), atol=1e-12)


# The rules for constants.

LABEL = np.array([[0.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 5.0]])


def test_a_source_with_a_constant_label_is_left_out_whatever_the_metric() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 4.0], [9.0, 1.0, 5.0, 2.0], [0.0, 0.0, 3.0, 5.0]])
    found = coefficients(np.stack([scores, np.roll(scores, 1, axis=0)]), LABEL)
    assert found.shape == (3, 2, 3)
    assert np.isnan(found[:, :, 1]).all()
    assert not np.isnan(found[:, :, [0, 2]]).any()
    np.testing.assert_allclose(found[:, 0, [0, 2]], 1)
    np.testing.assert_allclose(means(scores, LABEL), 1)


def test_a_constant_metric_counts_as_zero_where_the_label_varies() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 4.0], [7.0, 7.0, 7.0, 7.0], [7.0, 7.0, 7.0, 7.0]])
    np.testing.assert_array_equal(coefficients(scores[None], LABEL)[:, 0, 2], 0)
    np.testing.assert_allclose(means(scores, LABEL), 0.5)
    assert constant_rows(scores).tolist() == [False, True, True]


def test_nothing_varies_gives_nan() -> None:
    assert np.isnan(means(LABEL[:1], np.ones((1, 4)))).all()


def test_a_constant_that_does_not_add_up_exactly_is_still_constant() -> None:
    """0.1 added ten times is not 1: a variance of 1e-34 must not become a correlation of 1."""
    scores = np.full((1, 10), 0.1)
    assert np.isnan(pearson(scores, np.arange(10.0)[None])).all()
    np.testing.assert_array_equal(means(scores, np.arange(10.0)[None]), 0)
    assert np.isnan(means(np.arange(10.0)[None], scores)).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150, 1.7e308])
def test_very_small_and_very_large_scores_keep_their_correlation(scale: float) -> None:
    label = np.array([[0.0, 1.0, 2.0, 4.0, 3.0]])
    scores = np.array([[-5.0, -2.0, -4.0, 5.0, 4.0]]) / 5  # differences of the largest overflow
    np.testing.assert_allclose(means(scale * scores, label), means(scores, label))
