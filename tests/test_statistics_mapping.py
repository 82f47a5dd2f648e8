"""The fitted logistic: scipy's curve_fit as the oracle, its sign, and what happens if it fails."""

from __future__ import annotations

import numpy as np
import pytest
from cases import each
from scipy import optimize, stats

from cfqa_data.eval.statistics.mapping import logistic, map_scores


def oracle(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """PLCC and RMSE after scipy's curve_fit from the same start, all by plain formulas."""

    def curve(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
        return (b1 - b2) / (1 + np.exp(-(x - b3) / b4)) + b2

    falling = stats.pearsonr(scores, truth)[0] < 0
    start = [truth.max(), truth.min(), scores.mean(), scores.std() / (-4 if falling else 4)]
    fitted, _ = optimize.curve_fit(curve, scores, truth, p0=start, maxfev=5000)
    mapped = curve(scores, *fitted)
    return stats.pearsonr(mapped, truth)[0], np.sqrt(np.mean((mapped - truth) ** 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("falling", [False, True])
def test_the_fit_is_scipys(seed: int, falling: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(3, 2, 400)
    truth = logistic(scores, 5.0, 1.0, 2.5, -0.7 if falling else 0.7) + 0.3 * rng.normal(size=400)
    mapped = map_scores(scores, truth)
    plcc, rmse = oracle(scores, truth)
    assert mapped.kind == "logistic"
    assert mapped.plcc == pytest.approx(-plcc if falling else plcc, abs=1e-5)
    assert mapped.rmse == pytest.approx(rmse, rel=1e-5)
    assert abs(mapped.plcc) > abs(stats.pearsonr(scores, truth)[0])


def test_the_formula_and_an_exact_curve() -> None:
    """At x = b3 half way; far out b1 and b2; scores on a logistic are mapped onto the truth."""
    assert logistic(np.array([2.0]), 5, 1, 2, 0.3)[0] == 3
    np.testing.assert_allclose(logistic(np.array([1e9, -1e9]), 5, 1, 2, 0.3), [5, 1])
    scores = np.linspace(0, 4, 50)
    mapped = map_scores(scores, logistic(scores, 5, 1, 2, 0.3))
    assert mapped.plcc == pytest.approx(1, abs=1e-9)
    assert mapped.rmse == pytest.approx(0, abs=1e-6)


def test_sign_and_scale_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    scores = truth + rng.normal(size=200)
    up = map_scores(scores, truth)
    for other, sign in ((-scores, -1), (1e-200 * scores, 1), (7 + 1e100 * scores, 1)):
        mapped = map_scores(other, truth)
        assert mapped.plcc == pytest.approx(sign * up.plcc, rel=1e-5)
        assert mapped.rmse == pytest.approx(up.rmse, rel=1e-5)
    assert map_scores(scores, 1000 * truth).rmse == pytest.approx(1000 * up.rmse, rel=1e-5)


def test_a_truth_that_never_levels_off_is_still_fitted() -> None:
    """The exponential is a limit of logistics that no parameters reach."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    truth = np.exp(scores)
    mapped = map_scores(scores, truth)
    assert mapped.kind == "logistic"
    assert mapped.plcc > 0.999 > 0.8 > stats.pearsonr(scores, truth)[0]


def test_a_fit_that_fails_is_a_line_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=100)
    truth = scores + rng.normal(size=100)
    monkeypatch.setattr("cfqa_data.eval.statistics.mapping.MAX_EVALUATIONS", 1)
    mapped = map_scores(scores, truth)
    line = stats.linregress(scores, truth)
    errors = truth - (line.slope * scores + line.intercept)
    assert mapped.kind == "linear"
    assert mapped.plcc == pytest.approx(line.rvalue)
    assert mapped.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_points_than_parameters_are_a_line(n: int) -> None:
    scores = np.arange(float(n))
    mapped = map_scores(scores, scores**2)
    assert mapped.kind == "linear"
    assert np.isnan(mapped.plcc) == (n == 1)


def test_constants_follow_the_rules() -> None:
    """A metric that says nothing has the truth's spread for its error."""
    truth = np.array([1.0, 2.0, 4.0, 9.0, 4.0])
    flat = map_scores(np.full(5, 0.1), truth)
    assert (flat.plcc, flat.kind) == (0.0, "linear")
    assert flat.rmse == pytest.approx(truth.std())
    nothing = map_scores(truth, np.full(5, 0.1))
    assert np.isnan([nothing.plcc, nothing.rmse]).all()


@pytest.mark.parametrize("scale", [1e-318, 1e-200, 1.7e308])
def test_numbers_of_any_size_are_fitted_alike(scale: float) -> None:
    x, y = np.linspace(-1, 1, 9), np.tanh(np.linspace(-3, 3, 9)) / np.tanh(3)
    plain, found = map_scores(x, y), map_scores(scale * x, scale * y)
    assert found.plcc == pytest.approx(plain.plcc, abs=1e-4)  # a subnormal has few digits
    assert found.rmse / scale == pytest.approx(plain.rmse, abs=1e-4)
    assert found.curve(scale * x) / scale == pytest.approx(plain.curve(x), abs=1e-4)


@each("seed", range(20))
def test_hostile_scores_neither_warn_nor_do_worse_than_a_line(seed: int) -> None:
    """Outliers, steps and pure noise: least squares of a curve that contains the line's limit."""
    rng = np.random.default_rng(seed)
    truth = rng.exponential(size=60)
    scores = [rng.normal(size=60), rng.standard_cauchy(60), np.sign(truth - 1), truth**9][seed % 4]
    mapped = map_scores(scores, truth)
    r = stats.pearsonr(scores, truth)[0]
    assert mapped.rmse <= truth.std() * np.sqrt(1 - r * r) + 1e-9
