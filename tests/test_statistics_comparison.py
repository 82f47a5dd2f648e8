"""Differences between metrics, Holm's correction, and the two areas of Krasula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cfqa_data.eval.statistics.bootstrap import source_counts
from cfqa_data.eval.statistics.comparison import Differences, compare, holm, orientation
from cfqa_data.eval.statistics.discrimination import discriminate

# Holm.


def test_holm_by_hand() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 of 4: 0.005 x 4, 0.01 x 3, 0.03 x 2, then not less than that."""
    np.testing.assert_allclose(
        holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02], atol=1e-15
    )
    assert holm(np.array([0.7, 0.6])).tolist() == [1.0, 1.0]
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.01])), [0.02, np.nan, 0.02])
    assert holm(np.zeros(0)).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] * (len(p) - step) >= alpha:
            break
        rejected.add(index)
    assert set(np.flatnonzero(holm(np.array(p)) < alpha)) == rejected


# Paired differences.


def compared(values: np.ndarray, draws: int = 1000, seed: int = 0) -> Differences:
    return compare(values, source_counts(values.shape[-1], draws, seed))


def test_differences_are_paired_and_tested_like_a_paired_t_test() -> None:
    """The bootstrap's error is the plain one, up to chance and the factor sqrt((n - 1) / n)."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=50)
    values = np.stack([common, common + 0.02 + 0.1 * rng.normal(size=50), rng.normal(size=50)])
    found = compared(values, 20000)
    for row, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
        assert (found.first[row], found.second[row]) == (a, b)
        assert found.difference[row] == pytest.approx(values[a].mean() - values[b].mean())
        expected = stats.ttest_rel(values[a], values[b])
        assert found.p[row] == pytest.approx(expected.pvalue, abs=0.02)
        low, high = expected.confidence_interval()
        assert found.low[row] == pytest.approx(low, abs=0.08 * (high - low))
        assert found.high[row] == pytest.approx(high, abs=0.08 * (high - low))
    np.testing.assert_array_equal(found.p_holm, holm(found.p))


def test_many_metrics_can_still_be_told_apart() -> None:
    """300 pairs of 25 metrics and 1000 resamples: a counted p could not be below 0.6 by Holm."""
    rng = np.random.default_rng(0)
    values = 0.8 + 0.1 * rng.normal(size=100) + 0.02 * rng.normal(size=(25, 100))
    values[3] -= 0.1
    found = compared(values)
    groups = found.groups(25)
    assert groups[3] == 24
    assert groups.sum() - groups[3] <= 2


def test_equal_metrics_do_not_differ_and_true_nulls_are_seldom_rejected() -> None:
    same = np.broadcast_to(np.random.default_rng(1).normal(size=30), (2, 30))
    found = compared(same)
    assert (found.difference[0], found.p[0]) == (0.0, 1.0)
    rng = np.random.default_rng(2)
    rejected = [compared(rng.normal(size=(2, 30)), 300, seed).p[0] < 0.05 for seed in range(400)]
    assert 0.02 <= np.mean(rejected) <= 0.085


@pytest.mark.parametrize(("sources", "smallest"), [(2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_few_sources_prove_little(sources: int, smallest: float) -> None:
    values = np.stack([np.full(sources, 0.9), np.full(sources, 0.2)])
    found = compared(values)
    assert found.p[0] == pytest.approx(smallest)


def test_one_source_or_no_resample_gives_no_p() -> None:
    for values, draws in ((np.ones((2, 1)), 100), (np.ones((2, 9)), 0)):
        found = compared(values, draws)
        assert np.isnan([found.p[0], found.p_holm[0], found.low[0], found.high[0]]).all()
        assert found.groups(2).tolist() == [0, 0]


def test_a_single_metric_has_no_pairs() -> None:
    found = compared(np.random.default_rng(0).normal(size=(1, 9)))
    assert found.difference.size == found.p_holm.size == 0


def test_swapping_two_metrics_turns_the_difference_round() -> None:
    values = np.random.default_rng(0).normal(size=(2, 20))
    values[1] += 0.5
    one, other = (compared(v) for v in (values, values[::-1]))
    assert other.difference[0] == -one.difference[0]
    assert (other.low[0], other.high[0]) == pytest.approx((-one.high[0], -one.low[0]))
    assert other.p[0] == pytest.approx(one.p[0])
    assert one.groups(2).tolist()[::-1] == other.groups(2).tolist()


def test_two_metrics_are_compared_on_the_sources_of_both() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20))
    values[1, :4] = np.nan
    values[2, 3:9] = np.nan
    counts = source_counts(20, 300, 0)
    found = compare(values, counts)
    for pair, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
        common = ~np.isnan(values[[a, b]]).any(axis=0)
        alone = compare(values[[a, b]][:, common], counts[:, common])
        for name in ("difference", "low", "high", "p"):
            assert getattr(found, name)[pair] == pytest.approx(getattr(alone, name)[0]), name
    np.testing.assert_array_equal(found.p_holm, holm(found.p))
    values[2, 1:] = np.nan  # one source is left: nothing follows for that metric
    found = compare(values, counts)
    assert np.isnan(found.p_holm).tolist() == [False, True, True]
    assert found.compared(3).tolist() == [True, True, False]


def test_orientation_never_guesses() -> None:
    signs = orientation([True, False, None])
    assert signs[:2].tolist() == [1.0, -1.0]
    assert np.isnan(signs[2])


# Krasula.


def brute_force(
    scores: np.ndarray, truth: np.ndarray, sign: float, least: float
) -> tuple[float, float]:
    """Both areas of one metric by loops over pairs of pairs."""
    different, similar, signed = [], [], []
    for x, y in zip(scores, truth, strict=True):
        for i in range(len(y)):
            for j in range(i + 1, len(y)):
                if abs(y[j] - y[i]) >= least:
                    different.append(abs(x[j] - x[i]))
                    signed.append(sign * np.sign(y[j] - y[i]) * (x[j] - x[i]))
                else:
                    similar.append(abs(x[j] - x[i]))
    shares = [(d > s) + 0.5 * (d == s) for d in different for s in similar]
    apart = np.mean(shares) if shares else np.nan
    right = np.mean([(a > -b) + 0.5 * (a == -b) for a in signed for b in signed])
    return float(apart), float(right)


@pytest.mark.parametrize(("seed", "least"), [(0, 2.0), (1, 2.0), (2, 1.0), (3, 0.0)])
def test_areas_equal_brute_force(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (3, 6)).astype(float)
    scores = np.stack([truth + rng.normal(size=(3, 6)), -rng.integers(0, 3, (3, 6))])
    found = discriminate(scores, truth, np.array([1.0, -1.0]), least)
    assert (found.n_different + found.n_similar).tolist() == [3 * 15] * 2
    for metric, sign in enumerate((1.0, -1.0)):
        expected = brute_force(scores[metric], truth, sign, least)
        assert found.auc_different[metric] == pytest.approx(expected[0], nan_ok=True)
        assert found.auc_better[metric] == pytest.approx(expected[1])


def test_laws_of_the_areas() -> None:
    """Perfect, useless and wrong metrics; the order of the points does not matter."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 9, (4, 8)).astype(float)
    scores = np.stack([truth, np.ones_like(truth), -truth, rng.normal(size=truth.shape)])
    signs = np.array([1.0, 1.0, 1.0, np.nan])
    found = discriminate(scores, truth, signs, 1.0)
    lacking = scores.copy()
    lacking[0, 1, 3:] = np.nan
    kept = discriminate(lacking, truth, signs, 1.0)
    left = discriminate(truth[None, 1:2, :3], truth[1:2, :3], signs[:1], 1.0)
    for pairs in ("n_different", "n_similar"):
        whole = discriminate(truth[None, [0, 2, 3]], truth[[0, 2, 3]], signs[:1], 1.0)
        count = getattr(whole, pairs)[0] + getattr(left, pairs)[0]
        assert getattr(kept, pairs).tolist() == [count, *getattr(found, pairs)[1:]]
    np.testing.assert_array_equal(kept.auc_better[1:], found.auc_better[1:])
    assert kept.auc_better[0] == 1
    np.testing.assert_allclose(found.auc_different[:3], [1, 0.5, 1])
    np.testing.assert_allclose(found.auc_better[:3], [1, 0.5, 0])
    assert np.isnan(found.auc_better[3])
    assert 0 < found.auc_different[3] < 1
    order = rng.permutation(8)
    moved = discriminate(scores[:, :, order], truth[:, order], signs, 1.0)
    np.testing.assert_allclose(moved.auc_different, found.auc_different)
    np.testing.assert_allclose(moved.auc_better, found.auc_better)


def test_pairs_of_one_kind_have_no_area() -> None:
    truth = np.array([[0.0, 1.0, 2.0]])
    alike = discriminate(truth[None], truth, np.array([1.0]), 10.0)
    assert (alike.n_different[0], alike.n_similar[0]) == (0, 3)
    assert np.isnan([alike.auc_different[0], alike.auc_better[0]]).all()
    apart = discriminate(truth[None], truth, np.array([1.0]), 0.5)
    assert (apart.n_different[0], apart.n_similar[0]) == (3, 0)
    assert np.isnan(apart.auc_different[0])
    assert apart.auc_better[0] == 1
