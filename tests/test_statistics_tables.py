"""The tables of statistics from labels and scores: plain loops over scipy are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import Metric, as_metrics
from cfqa_data.eval.results import make_evaluation
from cfqa_data.eval.statistics import Statistics, statistics
from cfqa_data.eval.statistics.columns import COLUMNS
from cfqa_data.eval.statistics.mapping import map_scores
from cfqa_data.eval.text import paper_text, plain_text
from cfqa_data.format.format_1 import TASKS

CODECS = ("x265", "vvenc")
SOURCES = 6
LEVELS = 5
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "plcc": stats.pearsonr,
    "srocc": stats.spearmanr,
    "krocc": stats.kendalltau,
}


def undirected(x: Any, y: Any) -> Any:
    return y


METRICS = as_metrics(["mse", "cosine", undirected], "cpu")


def make_labels(tasks: tuple[str, ...] = ("cls", "seg")) -> pa.Table:
    """One source of each task never moves; half the pairs of levels are noticeably apart."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "task": task,
            "source_id": f"{task}-{source}",
            "codec": codec,
            "level": level,
            "distortion": 0.0
            if source == 2
            else float(TASKS[task].score.noticeable * rng.integers(0, 4) * (level + 1)),
            "loss": float(level + rng.normal()),
        }
        for task in tasks
        for codec in CODECS
        for source in range(SOURCES)
        for level in range(LEVELS)
    ]
    return pa.Table.from_pylist(rows)


def make_values(labels: pa.Table) -> np.ndarray:
    """A metric that follows, one that falls and is flat on source 1, one without direction."""
    rng = np.random.default_rng(1)
    truth, noise = labels["loss"].to_numpy(), rng.normal(size=(3, labels.num_rows))
    values = np.stack([truth + noise[0], -truth + 2 * noise[1], noise[2]], axis=1)
    values[[name.endswith("-1") for name in labels["source_id"].to_pylist()], 1] = 0.3
    return values


LABELS = make_labels()
VALUES = make_values(LABELS)


@pytest.fixture(scope="module")
def found() -> Statistics:
    return statistics(LABELS, METRICS, VALUES, draws=200)


def pick(metric: str, target: str = "distortion", **where: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and truths of the label rows in question."""
    rows = [
        number
        for number, row in enumerate(LABELS.to_pylist())
        if all(row[name] == value for name, value in where.items())
    ]
    column = [m.name for m in METRICS].index(metric)
    return VALUES[rows, column], LABELS[target].to_numpy()[rows]


def per_source(function: Callable[..., Any], metric: str, **where: Any) -> tuple[list[float], int]:
    """Return the coefficients of the sources that count, and how many do not."""
    values, constant = [], 0
    for source in range(SOURCES):
        scores, truth = pick(metric, source_id=f"{where['task']}-{source}", **where)
        if len(set(truth)) == 1:
            constant += 1
        else:
            values.append(0.0 if len(set(scores)) == 1 else function(scores, truth).statistic)
    return values, constant


def test_every_table_has_its_columns_and_rows(found: Statistics) -> None:
    cells = 2 * 2 + 2 + 1
    expected = {
        "correlations": 2 * 2 * 3,
        "across_codecs": 2 * 3,
        "across_tasks": 3,
        "per_level": 2 * 2 * LEVELS * 3,
        "comparisons": cells * 3 * 1,  # one pair of metrics that have a direction
        "discrimination": 2 * 3,
        "left_out": 0,  # of trained metrics
    }
    assert {field.name for field in fields(Statistics)} == set(COLUMNS) == set(expected)
    for name, rows in expected.items():
        table = getattr(found, name)
        assert table.column_names == list(COLUMNS[name])
        assert table.num_rows == rows


@pytest.mark.parametrize("table", ["correlations", "across_codecs"])
def test_figures_of_a_cell_are_scipys(found: Statistics, table: str) -> None:
    for row in getattr(found, table).to_pylist():
        where = {name: row[name] for name in ("task", "codec") if name in row}
        scores, truth = pick(row["metric"], **where)
        for name, function in FUNCTIONS.items():
            values, constant = per_source(function, row["metric"], **where)
            assert row[name] == pytest.approx(np.mean(values), abs=1e-12)
            assert (row["n_valid"], row["n_constant"]) == (len(values), constant) == (5, 1)
            pooled = function(scores, truth).statistic
            assert row[f"pooled_{name}"] == pytest.approx(pooled, abs=1e-12)
            for figure in (name, f"pooled_{name}"):
                assert row[f"{figure}_low"] < row[figure] < row[f"{figure}_high"]
        assert row["n_flat"] == (row["metric"] == "cosine")
        assert row["n_pooled"] == len(scores)
        mapped = map_scores(scores, truth)
        assert row["mapped_plcc"] == pytest.approx(mapped.plcc, abs=1e-9)
        assert row["mapped_rmse"] == pytest.approx(mapped.rmse)
        assert row["mapping"] == mapped.kind


def test_intervals_are_those_of_the_materialised_resamples(found: Statistics) -> None:
    """Sources repeated as drawn, one resample after the other, everything by scipy."""
    from cfqa_data.eval.statistics.bootstrap import source_counts

    counts = source_counts(SOURCES, 200, 0, "seg")[1:].astype(int)
    row = next(r for r in found.correlations.to_pylist() if r["task"] == "seg")
    sources = [
        pick("mse", task="seg", codec="x265", source_id=f"seg-{source}")
        for source in range(SOURCES)
    ]
    means, pooled = [], []
    for weights in counts:
        drawn = [sources[source] for source in np.repeat(np.arange(SOURCES), weights)]
        means.append(
            np.mean([stats.spearmanr(x, y).statistic for x, y in drawn if len(set(y)) > 1])
        )
        x, y = (np.concatenate(part) for part in zip(*drawn, strict=True))
        pooled.append(stats.kendalltau(x, y).statistic)
    for name, values in (("srocc", means), ("pooled_krocc", pooled)):
        bounds = [row[f"{name}_low"], row[f"{name}_high"]]
        np.testing.assert_allclose(bounds, np.percentile(values, [2.5, 97.5]), atol=1e-12)


def test_levels_correlate_over_the_sources(found: Statistics) -> None:
    for row in found.per_level.to_pylist():
        where = {name: row[name] for name in ("task", "codec", "level")}
        scores, truth = pick(row["metric"], **where)
        assert row["n_sources"] == len(scores) == SOURCES
        for name, function in FUNCTIONS.items():
            assert row[name] == pytest.approx(function(scores, truth).statistic, abs=1e-12)


def test_tasks_together_by_their_percentiles(found: Statistics) -> None:
    for row in found.across_tasks.to_pylist():
        parts = [pick(row["metric"], task=task) for task in ("cls", "seg")]
        scores = np.concatenate([scores for scores, _ in parts])
        truth = np.concatenate([(stats.rankdata(truth) - 0.5) / len(truth) for _, truth in parts])
        for name, function in FUNCTIONS.items():
            values = [
                value
                for task in ("cls", "seg")
                for value in per_source(function, row["metric"], task=task)[0]
            ]
            assert row[name] == pytest.approx(np.mean(values), abs=1e-12)
            assert row[f"pooled_{name}"] == pytest.approx(function(scores, truth).statistic)
        assert (row["tasks"], row["n_valid"], row["n_pooled"]) == (2, 10, 120)


def test_comparisons_are_oriented_and_leave_out_what_has_no_direction(found: Statistics) -> None:
    figures = {
        (row["task"], row.get("codec", "all"), row["metric"]): row
        for table in (found.correlations, found.across_codecs)
        for row in table.to_pylist()
    } | {("all", "all", row["metric"]): row for row in found.across_tasks.to_pylist()}
    for row in found.comparisons.to_pylist():
        assert (row["metric"], row["other"]) == ("mse", "cosine")
        mse, cosine, third = (figures[row["task"], row["codec"], m.name] for m in METRICS)
        # cosine is better the higher it is: its sign is turned round, and no value made absolute.
        difference = mse[row["figure"]] + cosine[row["figure"]]
        assert row["difference"] == pytest.approx(difference, abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["p_holm"] == row["p"]
        group = f"{row['figure']}_group"
        beaten = row["p_holm"] < 0.05
        assert mse[group] == int(beaten and difference < 0)
        assert cosine[group] == int(beaten and difference > 0)
        assert third[group] is None


def test_discrimination_uses_the_tasks_threshold_for_the_target() -> None:
    for target, field in (("distortion", "score"), ("loss", "loss")):
        found = statistics(LABELS, METRICS, VALUES, target, draws=0, tables=["discrimination"])
        for row in found.discrimination.to_pylist():
            least = getattr(TASKS[row["task"]], field).noticeable
            apart = 0
            for source in range(SOURCES):
                _, truth = pick("mse", target, source_id=f"{row['task']}-{source}")
                first, second = np.triu_indices(len(truth), 1)
                apart += int((np.abs(truth[first] - truth[second]) >= least).sum())
            pairs = SOURCES * 10 * 9 // 2
            assert row["threshold"] == least
            assert (row["n_different"], row["n_similar"]) == (apart, pairs - apart)
            assert 0 < apart < pairs
            assert (row["auc_better"] is None) == (row["lower_better"] is None)


def test_the_order_of_the_rows_does_not_matter(found: Statistics) -> None:
    within = np.argsort(np.random.default_rng(0).random(LABELS.num_rows // 2))
    # Rows of a task among themselves, and the first row first: it decides the codecs' order.
    order = np.concatenate([[0], within[within > 0], within + len(within)])
    other = statistics(LABELS.take(order), METRICS, VALUES[order], draws=200)
    keys = [("task", "ascending"), ("codec", "ascending"), ("metric", "ascending")]
    one, two = (t.correlations.sort_by(keys).to_pylist() for t in (found, other))
    for before, after in zip(one, two, strict=True):
        assert after == pytest.approx(before, abs=1e-9)


def test_a_task_does_not_depend_on_the_others_nor_on_the_metrics(found: Statistics) -> None:
    rows = [n for n, task in enumerate(LABELS["task"].to_pylist()) if task == "seg"]
    alone = statistics(LABELS.take(rows), METRICS[1:2], VALUES[rows, 1:2], draws=200)
    for table in ("correlations", "across_codecs"):
        together = [
            row
            for row in getattr(found, table).to_pylist()
            if row["task"] == "seg" and row["metric"] == "cosine"
        ]
        for before, after in zip(together, getattr(alone, table).to_pylist(), strict=True):
            for name in COLUMNS[table]:
                if not name.endswith("_group"):
                    assert after[name] == pytest.approx(before[name], abs=1e-12)
    assert alone.comparisons.num_rows == 0


def test_the_seed_decides_the_intervals(found: Statistics) -> None:
    def bounds(seed: int) -> list[float]:
        result = statistics(LABELS, METRICS, VALUES, draws=200, seed=seed, tables=["across_tasks"])
        return result.across_tasks["srocc_low"].to_pylist()

    assert bounds(0) == found.across_tasks["srocc_low"].to_pylist()
    assert bounds(1) != bounds(0)


def test_only_the_tables_asked_for_have_rows() -> None:
    for wanted in COLUMNS.keys() - {"left_out"}:
        result = statistics(LABELS, METRICS, VALUES, draws=20, tables=[wanted])
        for name in COLUMNS:
            assert (getattr(result, name).num_rows > 0) == (name == wanted)
            assert getattr(result, name).column_names == list(COLUMNS[name])


def test_without_resamples_or_with_one_source_there_are_no_intervals() -> None:
    one = [n for n, name in enumerate(LABELS["source_id"].to_pylist()) if name == "cls-0"]
    for labels, values, draws in ((LABELS, VALUES, 0), (LABELS.take(one), VALUES[one], 50)):
        result = statistics(labels, METRICS, values, draws=draws)
        for row in result.correlations.to_pylist():
            assert row["srocc"] is not None
            for name in FUNCTIONS:
                ends = [row[f"{p}{name}_{e}"] for p in ("", "pooled_") for e in ("low", "high")]
                assert ends == [None] * 4
                assert row[f"{name}_group"] is None
        assert set(result.comparisons["p_holm"].to_pylist()) == {None}


def test_a_label_that_never_moves_gives_null() -> None:
    rows = [n for n, name in enumerate(LABELS["source_id"].to_pylist()) if name.endswith("-2")]
    result = statistics(LABELS.take(rows), METRICS, VALUES[rows], draws=10)
    for table in ("correlations", "across_codecs", "per_level"):
        for row in getattr(result, table).to_pylist():
            assert row["plcc"] is row["srocc"] is row["krocc"] is None
    assert set(result.correlations["mapped_rmse"].to_pylist()) == {None}
    assert set(result.discrimination["n_different"].to_pylist()) == {0}
    assert set(result.discrimination["auc_better"].to_pylist()) == {None}


def test_what_has_no_score_is_left_out_and_counted() -> None:
    """One metric lacks a point of one source, a task, and a level: plain loops are the oracle."""
    values = VALUES.copy()
    rows = LABELS.to_pylist()
    lacking = [
        row["task"] == "seg"
        or (row["source_id"], row["codec"], row["level"]) == ("cls-3", "vvenc", 1)
        or (row["task"], row["codec"], row["level"]) == ("cls", "x265", 4)
        for row in rows
    ]
    keep = ~np.array(lacking)
    values[~keep, 0] = np.nan
    result = statistics(LABELS, METRICS, values, draws=100)
    whole = statistics(LABELS, METRICS, VALUES, draws=100)
    for table in ("correlations", "across_codecs", "across_tasks", "per_level", "discrimination"):
        for before, after in zip(
            getattr(whole, table).to_pylist(), getattr(result, table).to_pylist(), strict=True
        ):
            if before["metric"] == "mse":
                continue  # the others are as they were, but for whom they are compared with
            for name in COLUMNS[table]:
                assert name.endswith("_group") or after[name] == before[name], name

    def mse(table: str, **where: Any) -> dict[str, Any]:
        where["metric"] = "mse"
        found = getattr(result, table).to_pylist()
        (row,) = (r for r in found if all(r[name] == value for name, value in where.items()))
        return row

    def points(**where: Any) -> tuple[np.ndarray, np.ndarray]:
        here = [
            n
            for n, row in enumerate(rows)
            if keep[n] and all(row[name] == value for name, value in where.items())
        ]
        return values[here, 0], LABELS["distortion"].to_numpy()[here]

    counts = ("n_valid", "n_constant", "n_missing", "n_pooled")
    vvenc = mse("correlations", task="cls", codec="vvenc")
    assert [vvenc[name] for name in counts] == [4, 1, 1, SOURCES * LEVELS - 1]
    for name, function in FUNCTIONS.items():
        each = [points(codec="vvenc", source_id=f"cls-{s}") for s in (0, 1, 4, 5)]
        expected = np.mean([function(*of).statistic for of in each])
        assert vvenc[name] == pytest.approx(expected)
        assert vvenc[f"{name}_low"] < vvenc[name] < vvenc[f"{name}_high"]
        pooled = function(*points(task="cls", codec="vvenc")).statistic
        assert vvenc[f"pooled_{name}"] == pytest.approx(pooled)
    assert vvenc["mapped_plcc"] == map_scores(*points(task="cls", codec="vvenc")).plcc
    x265 = mse("correlations", task="cls", codec="x265")
    assert [x265[name] for name in counts] == [0, 1, 5, SOURCES * (LEVELS - 1)]
    assert (x265["srocc"], x265["srocc_group"]) == (None, None)
    assert x265["pooled_srocc"] is not None
    seg = mse("across_codecs", task="seg")
    assert [seg[name] for name in counts] == [0, 1, 5, 0]
    assert (seg["pooled_plcc"], seg["mapped_rmse"], seg["mapping"]) == (None, None, None)
    assert mse("discrimination", task="seg")["n_different"] == 0
    assert [mse("across_tasks")[name] for name in counts] == [0, 2, 10, int(keep.sum())]
    level = mse("per_level", task="cls", codec="vvenc", level=1)
    expected = stats.spearmanr(*points(task="cls", codec="vvenc", level=1)).statistic
    assert (level["n_sources"], level["srocc"]) == (SOURCES - 1, pytest.approx(expected))
    assert mse("per_level", task="cls", codec="x265", level=4)["n_sources"] == 0


def test_bad_input_is_named() -> None:
    values = VALUES.copy()
    values[7, 1] = np.inf
    row = LABELS.slice(7, 1).to_pylist()[0]
    place = f"{row['source_id']}, {row['codec']}, level {row['level']}"
    missing = LABELS.set_column(4, "distortion", [[None, *LABELS["distortion"].to_pylist()[1:]]])
    for arguments, options, message in (
        ((LABELS, METRICS, values), {}, f"cosine: the score of {place} is Inf"),
        ((missing, METRICS, VALUES), {}, "the distortion of cls-0, x265, level 0 is missing"),
        ((LABELS.slice(1), METRICS, VALUES[1:]), {}, "cls-0 has no row for codec x265, level 0"),
        ((LABELS, METRICS, VALUES), {"draws": -1}, "draws must be at least 0, not -1"),
        ((LABELS, METRICS, VALUES), {"seed": -1}, "seed must be at least 0, not -1"),
        (
            (LABELS, METRICS, VALUES),
            {"tables": ["per_levels"]},
            "unknown table 'per_levels': did you mean 'per_level'",
        ),
    ):
        with pytest.raises(MetricError, match=message):
            statistics(*arguments, **options)
    twice = pa.concat_tables([LABELS, LABELS.slice(0, 1)])
    with pytest.raises(MetricError, match="1 rows occur twice"):
        statistics(twice, METRICS, np.concatenate([VALUES, VALUES[:1]]))


# As text.


def numbered(metrics: tuple[Metric, ...]) -> Any:
    return make_evaluation(LABELS, metrics, VALUES[:, : len(metrics)], "distortion", {})


def test_the_plain_layout_shows_every_figure_with_its_interval() -> None:
    evaluation = numbered(METRICS)
    text = plain_text(evaluation)
    for row in evaluation.correlations.to_pylist() + evaluation.across_tasks.to_pylist():
        for name in ("plcc", "pooled_krocc"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            assert f"{row[name]:.4f} [{low:.3f}, {high:.3f}]" in text
    blocks = text.split("\n\n")
    assert len(blocks) == 10  # wide tables are cut in two
    assert {len(line.split("  ")) > 3 for line in blocks[2].splitlines()} == {True}
    assert sum(line.startswith("all   all") for line in text.splitlines()) == 4 * 3
    assert [line.split()[-1] for line in blocks[3].splitlines() if "undirected" in line] == (
        ["-"] * 7
    )


def test_the_paper_layout_has_a_codec_and_task_a_row() -> None:
    lines = paper_text(numbered(METRICS[:2])).splitlines()
    assert lines[3].split() == ["codec", "task", "mse", "cosine", "sources"]
    expected = numbered(METRICS[:2]).correlations.to_pylist()[:2]
    figures = [f"{row[name]:.4f}" for row in expected for name in ("plcc", "srocc")]
    assert lines[6].split() == ["x265", "cls", *figures, "5", "of", "6"]
