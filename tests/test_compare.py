"""Comparison of metrics with a baseline; the oracle is a plain bootstrap with scipy."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_dataset import MemoryDataset
from mock_dataset import write_mock_dataset
from scipy import stats

from cfqa_data.cli import main
from cfqa_data.errors import MetricError
from cfqa_data.eval import Evaluation, evaluate
from cfqa_data.eval.statistics.bootstrap import source_counts
from cfqa_data.eval.statistics.comparison import holm

pytestmark = pytest.mark.usefixtures("quick_statistics")

DRAWS = 24
FUNCTIONS = {"plcc": stats.pearsonr, "srocc": stats.spearmanr, "krocc": stats.kendalltau}


def undirected(x: Any, y: Any) -> Any:
    return (y - x).abs().mean((1, 2, 3, 4))


@cache
def scored() -> Evaluation:
    """Source 3 of seg has no score of mae, so mae is compared on the other sources."""
    evaluation = evaluate(MemoryDataset(5), ["mse", "mae", "cosine", undirected])
    rows = evaluation.scores.to_pylist()
    lacks = {"task": "seg", "source_id": "seg-3", "level": 2, "metric": "mae"}
    values = [None if lacks.items() <= row.items() else row["value"] for row in rows]
    place = evaluation.scores.column_names.index("value")
    object.__setattr__(evaluation, "scores", evaluation.scores.set_column(place, "value", [values]))
    return evaluation


@cache
def found() -> list[dict[str, Any]]:
    table = scored().compare(["mae", "mse"], "cosine", draws=DRAWS).table
    return list(table.to_pylist())


@cache
def rows() -> list[dict[str, Any]]:
    """Return the labels with the oriented score of each metric."""
    labels, scores = scored().labels.to_pylist(), iter(scored().scores["value"].to_pylist())
    signs = {"cosine": -1.0}
    for label in labels:
        for metric in scored().metrics:
            label[metric.name] = signs.get(metric.name, 1.0) * (next(scores) or np.nan)
    return labels


def points(metric: str, **where: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the oriented scores and the truth of each source."""
    of = [one for one in rows() if where.items() <= one.items()]
    return {
        source: tuple(
            np.array([one[name] for one in of if one["source_id"] == source])
            for name in (metric, "distortion")
        )
        for source in sorted({one["source_id"] for one in of})
    }


def row(**where: Any) -> dict[str, Any]:
    (only,) = (one for one in found() if where.items() <= one.items())
    return only


def differences(metric: str, figure: str, task: str, **where: Any) -> np.ndarray:
    """Return the difference on the data and on each resample, computed point by point."""
    function = FUNCTIONS[figure.removeprefix("pooled_")]
    of = [points(one, task=task, **where) for one in (metric, "cosine")]
    sources = list(of[0])
    per_source = not figure.startswith("pooled_") and "level" not in where
    made = []
    for counts in source_counts(len(sources), DRAWS, 0, task):
        pair = []
        for each in of:
            known = [~np.isnan(of[0][name][0] + of[1][name][0]) for name in sources]
            drawn = [n for n, count in enumerate(counts) for _ in range(int(count))]
            if per_source:
                whole = [n for n in drawn if known[n].all() and np.ptp(each[sources[n]][1])]
                each_of = [function(*each[sources[n]]).statistic for n in whole]
                pair.append(np.mean(each_of) if each_of else np.nan)
            else:
                x, y = (
                    np.concatenate([each[sources[n]][part][known[n]] for n in drawn])
                    for part in (0, 1)
                )
                few = len(set(y)) < 2
                pair.append(np.nan if few else function(x, y).statistic)
        made.append(pair[0] - pair[1])
    return np.array(made)


@pytest.mark.parametrize("metric", ["mse", "mae"])
@pytest.mark.parametrize(
    ("view", "where"),
    [
        ("task", {"task": "seg"}),
        ("codec", {"task": "seg", "codec": "vvenc"}),
        ("level", {"task": "seg", "codec": "x265", "level": 2}),
    ],
)
def test_a_difference_its_interval_and_p_are_those_of_a_bootstrap_by_hand(
    metric: str, view: str, where: dict[str, Any]
) -> None:
    figures = ("plcc",) if view == "level" else ("krocc", "pooled_srocc")
    for figure in figures:
        one = row(view=view, figure=figure, metric=metric, other="cosine", **where)
        expected = differences(metric, figure, **where)
        assert one["difference"] == pytest.approx(expected[0], abs=1e-12)
        assert one["difference"] == pytest.approx(one["value"] - one["other_value"], abs=1e-12)
        drawn = expected[1:][~np.isnan(expected[1:])]
        ends = np.percentile(drawn, [2.5, 97.5])
        assert [one["low"], one["high"]] == pytest.approx(ends, abs=1e-12)
        pooled = view == "level" or figure.startswith("pooled")
        sources = 5 - (metric == "mae" and (view == "level" or not pooled)) - (not pooled)
        assert one["n_sources"] == sources
        t = abs(expected[0]) / np.std(drawn, ddof=1)
        p = max(2 * stats.t.sf(t, sources - 1), 2.0 ** (1 - sources))
        assert one["p"] == pytest.approx(p, abs=1e-9)


def test_what_is_looked_at_together_is_corrected_together() -> None:
    views = {"all": 1, "task": 2, "codec": 4, "level": 40}
    for view, cells in views.items():
        for figure in FUNCTIONS if view == "level" else (*FUNCTIONS, "pooled_srocc"):
            family = [r for r in found() if (r["view"], r["figure"]) == (view, figure)]
            assert len(family) == 2 * cells
            p = np.array([np.nan if r["p"] is None else r["p"] for r in family])
            corrected = [r["p_holm"] for r in family]
            assert corrected == pytest.approx(
                [None if np.isnan(h) else h for h in holm(p)], abs=1e-15
            )


def test_figures_of_the_tables_are_those_compared() -> None:
    table = scored().across_tasks.to_pylist()
    for name, sign in (("mse", 1), ("cosine", -1)):
        (of,) = (r for r in table if r["metric"] == name)
        one = row(view="all", figure="pooled_plcc", metric="mse")
        value = one["value" if name == "mse" else "other_value"]
        assert value == pytest.approx(sign * of["pooled_plcc"])


def test_the_interval_at_a_level_is_that_of_a_bootstrap_by_hand() -> None:
    where = {"task": "seg", "codec": "x265", "level": 2}
    of = points("mse", **where)
    drawn = []
    for counts in source_counts(5, 50, 0, "seg")[1:].astype(int):
        x, y = (np.repeat([one[part][0] for one in of.values()], counts) for part in (0, 1))
        drawn.append(stats.pearsonr(x, y).statistic if len(set(y)) > 1 else np.nan)
    (row,) = (
        r
        for r in scored().per_level.to_pylist()
        if (where | {"metric": "mse"}).items() <= r.items()
    )
    ends = np.nanpercentile(drawn, [2.5, 97.5])
    assert [row["plcc_low"], row["plcc_high"]] == pytest.approx(ends, abs=1e-9)


def test_metrics_that_cannot_be_compared_are_named() -> None:
    by_default = scored().compare(draws=2).table
    assert set(by_default["metric"].to_pylist()) == {"mse", "mae"}
    for metrics, against, draws, message in (
        ("mes", "cosine", 9, "unknown metric 'mes': did you mean 'mse'.*that were scored"),
        ("mse", "csine", 9, "unknown metric 'csine': did you mean 'cosine'"),
        ("mse", "mse", 9, "nothing to compare with 'mse'"),
        (
            "undirected",
            "cosine",
            9,
            "'undirected' cannot be compared: whether lower is better is not declared",
        ),
        ("mse", "undirected", 9, "'undirected' cannot be compared"),
        (None, "mse", 9, "'undirected' cannot be compared"),
        ("mse", "cosine", 1, "draws must be at least 2, not 1"),
    ):
        some = {"mse", "undirected"} if metrics is None else scored().columns()
        with pytest.raises(MetricError, match=message):
            scored().part([0, 1], some).compare(metrics, against, draws=draws)


def test_the_command_prints_the_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_mock_dataset(tmp_path / "cfqa", sources=3)
    chosen = ["--task", "cls", "--codec", "x265", "--metric", "mse", "--against", "cosine"]
    assert main(["eval", str(folder), *chosen]) == 0
    said = capsys.readouterr().out
    compared = evaluate(folder, ["mse", "cosine"], task="cls", codec="x265").compare("mse")
    assert compared.text() in said
    assert said.endswith("Per codec and level: --per-codec.\n")
    assert len(compared.text().splitlines()) < 10
    (of_all,) = (
        r for r in compared.table.to_pylist() if (r["view"], r["figure"]) == ("all", "srocc")
    )
    line = next(line for line in said.splitlines() if line.startswith("all   all"))
    assert line.split()[3] == f"{of_all['difference']:+.4f}"
    for wrong, message in (
        (["--metric", "mse", "--against", "mse"], "nothing to compare with 'mse'"),
        (["--against", "mse,cka"], "name one metric to compare the others with, not 2"),
        (["--metric", "mse", "--per-codec"], "--per-codec requires --against"),
    ):
        assert main(["eval", str(folder), *wrong]) == 2
        answer = capsys.readouterr()
        assert message in answer.err
        assert answer.out == ""
    assert main(["eval", str(folder), *chosen, "--per-codec"]) == 0
    assert capsys.readouterr().out.endswith(compared.text(per_codec=True) + "\n")
    assert main(["eval", str(folder), *chosen, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differences"] == compared.table.to_pylist()
