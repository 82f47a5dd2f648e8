"""Rate-distortion curves and BD-rates, against an interpolation implemented here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from mock_dataset import toy_recipe_dict, write_mock_dataset

from cfqa_data import MetricError, create_metric, evaluate, load
from cfqa_data.cli import main
from cfqa_data.eval.curve_figure import draw_curves, label_text
from cfqa_data.eval.curves import bd_rate, curves
from cfqa_data.eval.statistics.bootstrap import source_counts
from cfqa_data.format.facts import Score, TaskFacts
from cfqa_data.recipe.load import Recipe

ANCHOR = np.array([[0.1, 0.2, 0.5, 1.1, 2.0], [30.0, 33.5, 36.0, 37.0, 37.2]])
OTHER = np.array([[0.08, 0.25, 0.4, 1.5], [29.0, 34.5, 35.5, 38.0]])


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the derivatives of the piecewise cubic: Fritsch and Butland's, Moler's at the ends."""
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    inner = []
    for n in range(1, len(h)):
        a, b = 2 * h[n] + h[n - 1], h[n] + 2 * h[n - 1]
        inner.append(0.0 if d[n - 1] * d[n] <= 0 else (a + b) / (a / d[n - 1] + b / d[n]))

    def end(h0: float, h1: float, d0: float, d1: float) -> float:
        slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        if np.sign(slope) != np.sign(d0):
            return 0.0
        return 3 * d0 if np.sign(d0) != np.sign(d1) and abs(slope) > 3 * abs(d0) else slope

    return np.array([end(*h[:2], *d[:2]), *inner, end(*h[:-3:-1], *d[:-3:-1])])


def mean_log_rate(rates: np.ndarray, qualities: np.ndarray, low: float, high: float) -> float:
    """Average the interpolated logarithm of the rate, by the midpoints of many small steps."""
    x, y = qualities, np.log(rates)
    m = slopes(x, y)
    steps = 200_000
    at = low + (np.arange(steps) + 0.5) * (high - low) / steps
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    h = x[k + 1] - x[k]
    t = (at - x[k]) / h
    value = (1 + 2 * t) * (1 - t) ** 2 * y[k] + t * (1 - t) ** 2 * h * m[k]
    value += t**2 * (3 - 2 * t) * y[k + 1] + t**2 * (t - 1) * h * m[k + 1]
    return float(value.mean())


def test_bd_rate_is_the_mean_difference_of_the_interpolated_logarithms() -> None:
    low, high = 30.0, 37.2
    difference = mean_log_rate(*OTHER, low, high) - mean_log_rate(*ANCHOR, low, high)
    assert bd_rate(*ANCHOR, *OTHER) == pytest.approx(100 * np.expm1(difference), rel=1e-7)


@given(st.floats(0.01, 100), st.floats(0.1, 10), st.floats(-50, 50), st.permutations(range(5)))
def test_laws_of_bd_rate(factor: float, scale: float, offset: float, order: list[int]) -> None:
    rates, qualities = ANCHOR[:, order]
    assert bd_rate(*ANCHOR, rates * factor, qualities) == pytest.approx(100 * (factor - 1))
    both = bd_rate(*ANCHOR, *OTHER), bd_rate(*OTHER, *ANCHOR)
    assert (1 + both[0] / 100) * (1 + both[1] / 100) == pytest.approx(1)
    moved = scale * ANCHOR[1] + offset, scale * OTHER[1] + offset
    assert bd_rate(ANCHOR[0], moved[0], OTHER[0], moved[1]) == pytest.approx(both[0])


def test_points_that_a_cheaper_one_reaches_do_not_count() -> None:
    more = np.array([[0.3, 0.5, 3.0, 1.0], [33.0, 36.0, 37.2, np.nan]])
    assert bd_rate(*np.hstack([ANCHOR, more]), *OTHER) == bd_rate(*ANCHOR, *OTHER)


@pytest.mark.parametrize(
    ("rates", "qualities", "why"),
    [
        ([1, 2], [38.0, 39.0], "do not overlap"),
        ([1, 2], [36.0, 35.0], "the codec has only 1 point at which more bits"),
        ([0, 2], [31.0, 35.0], "a rate of 0 is not positive"),
    ],
)
def test_what_has_no_bd_rate(rates: list[float], qualities: list[float], why: str) -> None:
    with pytest.raises(MetricError, match=why):
        bd_rate(*ANCHOR, rates, qualities)


def test_points_are_pairs() -> None:
    with pytest.raises(MetricError, match="one rate and one quality per point"):
        bd_rate(*ANCHOR, [1, 2, 3], [30, 31])


class Rows:
    """Return a dataset: `half` needs half the bits of `anchor`, `short` has three levels."""

    def __init__(self, sources: int = 4) -> None:
        rows = []
        for n in range(sources):
            for codec, levels in (("anchor", 5), ("half", 5), ("short", 3)):
                for level in range(levels):
                    rate = 2.0 ** (1 - level) * (1 + 0.1 * n) * (0.5 if codec == "half" else 1)
                    loss, mse = (
                        0.1 * level + 0.01 * n,
                        0.5 * level if codec != "short" else 9 + level,
                    )
                    key = {"task": "t", "source_id": f"s{n}", "codec": codec, "level": level}
                    values = {"bpfp": rate, "score": -loss, "loss": loss, "mse": mse}
                    rows.append({**key, **values, "group": f"g{n // 2}"})
        self.labels = pa.Table.from_pylist(rows)


def test_curves_average_over_sources_and_compare_with_the_anchor() -> None:
    found = curves(Rows(), ["loss", "mse"], anchor="anchor", draws=50)
    point = found.points.to_pylist()[1]
    assert point == {
        "task": "t",
        "codec": "anchor",
        "level": 1,
        "parameter": None,
        "sources": 4,
        "bpfp": pytest.approx(1.15),
        "quality": "loss",
        "better": "lower",
        "value": pytest.approx(0.115),
    }
    half, short, _, elsewhere = found.bd_rates.to_pylist()
    for row, value in ((half, -50), (short, 0)):
        assert [row[key] for key in ("bd_rate", "low", "high")] == [pytest.approx(value)] * 3
    assert (short["points"], short["anchor_points"]) == (3, 5)
    assert (short["from"], short["to"]) == (pytest.approx(0.215), pytest.approx(0.015))
    assert elsewhere["bd_rate"] is None
    assert elsewhere["note"] == "the quality ranges of the curves do not overlap"


def test_intervals_draw_whole_groups() -> None:
    """If the two sources of a group are equal, the mean of every resample of groups is the same."""
    rows = Rows(2)
    varied = np.array(rows.labels["bpfp"]) * np.where(np.arange(26) % 13 < 5, 1, 1.5)
    noisy = rows.labels.set_column(4, "bpfp", pa.array(varied * np.linspace(1, 2, 26)))
    rows.labels = noisy
    (row, _) = curves(rows, ["loss"], anchor="anchor", draws=50).bd_rates.to_pylist()
    assert row["low"] == row["high"] == pytest.approx(row["bd_rate"])
    rows.labels = noisy.drop_columns("group")
    (row, _) = curves(rows, ["loss"], anchor="anchor", draws=50).bd_rates.to_pylist()
    assert row["low"] < row["high"]


def test_a_task_without_the_anchor_says_so_and_one_without_a_quality_has_no_curves() -> None:
    rows = Rows()
    others = [{**row, "task": "u"} for row in rows.labels.to_pylist() if row["codec"] == "short"]
    rows.labels = pa.Table.from_pylist([*rows.labels.to_pylist(), *others])
    found = curves(rows, "loss", anchor="half", draws=2).bd_rates.to_pylist()
    assert [(row["task"], row["codec"]) for row in found] == [
        ("t", "anchor"),
        ("t", "short"),
        ("u", "short"),
    ]
    assert (found[2]["bd_rate"], found[2]["note"]) == (None, "the task has no codec half")
    rows.tasks = {name: TaskFacts(name, name, Score("rank", True), loss=None) for name in "tu"}
    with pytest.raises(MetricError, match="no task has a loss to plot"):
        curves(rows, "loss")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two tasks and two codecs."""
    data = toy_recipe_dict()
    del data["tasks"]["seg"]
    for task in data["tasks"].values():
        task["codecs"] = {codec: task["codecs"][codec] for codec in ("x265", "vvenc")}
    return write_mock_dataset(tmp_path / "mock", recipe=Recipe.from_dict(data))


def test_a_metric_of_an_evaluation_is_a_quality(folder: Path) -> None:
    dataset = load(folder)
    task = dataset.labels["task"][0].as_py()

    def undirected(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).mean((1, 2, 3, 4))

    evaluation = evaluate(dataset, ["mae", undirected])
    with pytest.raises(MetricError, match="'undirected' cannot be plotted: whether lower is"):
        curves(dataset, ["mae", "undirected"], evaluation=evaluation)
    found = curves(dataset, ["mae", "mse"], anchor="x265", evaluation=evaluation, draws=2)
    rows = [r for r in found.points.to_pylist() if r["task"] == task and r["codec"] == "vvenc"]
    first = [row["value"] for row in rows if row["quality"] == "mae" and row["level"] == 0]
    sources = load(dataset.path, task).source_ids
    pairs = [(dataset.original(s), dataset.compressed(s, "vvenc", 0)) for s in sources]
    expected = np.mean([np.abs(x.astype(float) - y).mean() for x, y in pairs])
    assert first == [pytest.approx(expected)]
    assert create_metric("mae").lower_better
    assert {row["better"] for row in rows} == {"lower"}


def test_texts_beside_axes_are_not_longer_than_these_are_high() -> None:
    words = "negative log-likelihood per token of the caption in nats"
    lines = label_text(words, "lower").splitlines()
    assert " ".join(lines) == f"{words} (lower is better)"
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")  # one task, one quality
    axis = figure.subplots()
    axis.set_ylabel("\n".join(lines))
    figure.draw_without_rendering()
    assert axis.yaxis.label.get_window_extent().height < axis.get_window_extent().height


def test_the_command_writes_points_and_a_figure(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "cfqa_data.eval.statistics.grids.source_counts",
        lambda n, _, *more: source_counts(n, 20, *more),
    )
    command = ["curves", str(folder), "--anchor", "x265"]
    assert main([*command, "--out", "c.csv", "--figure", "c.svg"]) == 0
    text = capsys.readouterr().out
    assert "BD-rate relative to x265" in text
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    lines = Path("c.csv").read_text().splitlines()
    assert len(lines) == 1 + len(data["points"])
    assert lines[0].replace('"', "").split(",") == list(data["points"][0])
    found = curves(folder, anchor="x265")
    draw_curves(
        found, tmp_path / "again.svg", {t: e.facts for t, e in load(folder).manifest.tasks.items()}
    )
    assert Path("again.svg").read_bytes() == Path("c.svg").read_bytes()


def test_bad_names_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, why in (
        (["--anchor", "h264"], "'h264'"),
        (["--quality", "lpips"], "'lpips'"),
        (["--out", "points.txt"], ".csv"),
        (["--figure", "curves.doc"], ".svg"),
    ):
        assert main(["curves", str(folder), *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert why in line
