"""Evaluation of user-defined tasks and codecs, with any levels, numbers of tokens and groups."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_dataset import rows_of
from scipy import stats

from cfqa_data import load
from cfqa_data.errors import CfqaError, MetricError, MetricWarning
from cfqa_data.eval import Evaluation, evaluate, evaluator, list_metrics, read_evaluation
from cfqa_data.eval.features.datasets import KEYS
from cfqa_data.eval.report import report_html
from cfqa_data.eval.report.ranking import ranking
from cfqa_data.eval.statistics import statistics
from cfqa_data.eval.statistics.bootstrap import source_counts
from cfqa_data.eval.statistics.columns import COLUMNS
from cfqa_data.eval.text import paper_text, plain_text
from cfqa_data.format.facts import Loss, Score, TaskFacts
from cfqa_data.testing.mock import PLUGINS, write_format_2_folder

pytestmark = pytest.mark.usefixtures("quick_statistics")

METRICS = ("mse", "cka")
LEVELS = {"scalar": 10, "slice": 3}
GROUPS = {"one": ("a", "b", "a", None, "b", "a"), "words": (None,) * 4}
TOKENS = {"one": (1,) * 6, "words": (1, 4, 9, 6)}


class Strange:
    """Task `one`: single tokens, groups, no loss. Task `words`: tokens vary, levels differ."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.tasks = {
            "one": TaskFacts("one", "one token", Score("error", True, "dB", noticeable=0.2)),
            "words": TaskFacts("words", "words", Score("recall", False), Loss("nats", "", 0.1)),
        }
        self.arrays: dict[Any, np.ndarray] = {}
        rows = []
        for task, codecs in (("one", ("scalar",)), ("words", ("slice", "scalar"))):
            for place, (tokens, group) in enumerate(zip(TOKENS[task], GROUPS[task], strict=True)):
                source, shape = f"{task}-{place}", (1, 3 if task == "one" else 1, tokens, 8)
                x = self.arrays[source] = rng.normal(size=shape).astype("f4")
                for codec in codecs:
                    for level in range(LEVELS[codec]):
                        size = 0.1 * (level + 1) * (1 + (codec == "slice"))
                        y = x + size * rng.normal(size=shape).astype("f4")
                        self.arrays[source, codec, level] = y.astype("f4")
                        rows.append(
                            {
                                "task": task,
                                "source_id": source,
                                "codec": codec,
                                "level": level,
                                "fold": place % 5,
                                "distortion": size + 0.1 * rng.normal(),
                                "loss": None if task == "one" else size,
                                "bpfp": None if codec == "slice" else 1 / size,
                                "mse": size**2,
                                "group": group,
                            }
                        )
        self.labels = pa.Table.from_pylist(rows)

    def original(self, source_id: str) -> np.ndarray:
        return self.arrays[source_id]

    def compressed(self, source_id: str, codec: str, level: int) -> np.ndarray:
        return self.arrays[source_id, codec, level]


@pytest.fixture(scope="module")
def scored() -> Evaluation:
    return evaluate(Strange(), METRICS)


def points(scored: Evaluation, metric: str = "mse", **where: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels of some rows."""
    rows = scored.labels.append_column("row", pa.array(range(scored.labels.num_rows)))
    chosen = rows_of(rows, **where)
    values = scored.scores.filter(pa.compute.equal(scored.scores["metric"], metric))["value"]
    truth = np.array([row["distortion"] for row in chosen])
    return values.to_numpy()[[row["row"] for row in chosen]], truth


def test_codecs_with_different_numbers_of_levels_are_correlated_over_what_there_is(
    scored: Evaluation,
) -> None:
    for codec, levels in LEVELS.items():
        (row,) = rows_of(scored.correlations, task="words", codec=codec, metric="mse")
        each = [
            stats.spearmanr(*points(scored, codec=codec, source_id=f"words-{n}")).statistic
            for n in range(4)
        ]
        assert row["srocc"] == pytest.approx(np.mean(each))
        assert (row["n_versions"], row["n_valid"], row["n_pooled"]) == (levels, 4, 4 * levels)
        pooled = stats.pearsonr(*points(scored, task="words", codec=codec)).statistic
        assert row["pooled_plcc"] == pytest.approx(pooled)
    (row,) = rows_of(scored.across_codecs, task="words", metric="mse")
    each = [stats.kendalltau(*points(scored, source_id=f"words-{n}")).statistic for n in range(4)]
    assert (row["codecs"], row["n_versions"]) == (2, 13)
    assert row["krocc"] == pytest.approx(np.mean(each))
    (row,) = rows_of(scored.across_tasks, metric="mse")
    assert (row["n_versions"], row["n_valid"], row["n_pooled"]) == (None, 10, 6 * 10 + 4 * 13)
    (row,) = rows_of(scored.discrimination, task="words", metric="mse")
    assert row["n_different"] + row["n_similar"] == 4 * 13 * 12 // 2
    assert rows_of(scored.per_level, task="words", codec="slice", metric="mse", level=2)
    for text in (paper_text(scored), plain_text(scored)):
        told = "different numbers of levels: 3 of slice (words); 10 of scalar (one), scalar (words)"
        assert told in " ".join(text.split())
    assert "over the 13 points of a source from all" in paper_text(scored)


def test_metrics_with_figures_of_fewer_sources_are_not_ranked_with_others() -> None:
    def size(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y.mean((1, 2, 3, 4))

    scored = evaluate(Strange(), ["cka", size])
    means = {row["metric"]: abs(row["srocc"]) for row in scored.across_tasks.to_pylist()}
    assert means["cka"] > means["size"]
    gap = "no result on task one, only 3 of 4 sources of task words"
    places = [(entry.metric.name, entry.place, entry.gap) for entry in ranking(scored)]
    assert places == [("size", 1, ""), ("cka", None, gap)]
    page = " ".join(report_html(scored).split())
    assert f"<small>not ranked: {gap}</small>" in page
    assert "<b>size</b></a> predicts" in page
    assert f"Not ranked with the others: cka ({gap})." in plain_text(scored)
    # Alone or among its like it is ranked; where each lacks what another has, none is.
    alone = evaluate(Strange(), ["cka"])
    assert [(entry.place, entry.gap) for entry in ranking(alone)] == [(1, "")]


def test_where_each_metric_lacks_a_task_none_is_ranked() -> None:
    def of_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape[2] == 1:
            raise ValueError("of words")
        return (y - x).square().mean((1, 2, 3, 4))

    with pytest.warns(MetricWarning, match="of words"):
        evaluation = evaluate(Strange(), ["cka", of_one])
    page = " ".join(report_html(evaluation).split())
    assert "none is called the best" in page
    assert page.count("not ranked: no result on task") == 2 * 2  # per source, and pooled


def test_what_is_known_of_a_task_is_what_the_dataset_says(scored: Evaluation) -> None:
    thresholds = dict(zip(*scored.discrimination.select(["task", "threshold"]), strict=True))
    assert {k.as_py(): v.as_py() for k, v in thresholds.items()} == {"one": 0.2, "words": 0.0}
    page = report_html(scored)
    for text in ("one token", "distortion: error (dB)", "distortion: recall"):
        assert text in page
    plain = Strange()
    del plain.tasks
    unknown = evaluate(plain, ["mse"])
    assert set(unknown.discrimination["threshold"].to_pylist()) == {0.0}
    assert "distortion: score" in report_html(unknown)


def test_where_a_metric_is_not_defined_it_has_no_score_and_has_not_failed(
    scored: Evaluation,
) -> None:
    single = {f"one-{n}" for n in range(6)} | {"words-0"}
    for row in rows_of(scored.scores, metric="cka"):
        assert (row["value"] is None) == (row["source_id"] in single)
    assert scored.failures == {}
    assert set(scored.notes) == {"cka"}
    assert "undefined for fewer than 2 tokens: no score of 73 of 112" in scored.notes["cka"]
    for text in (paper_text(scored), plain_text(scored), report_html(scored)):
        assert scored.notes["cka"].partition("'cka'")[2] in text
    (row,) = rows_of(scored.across_codecs, task="one", metric="cka")
    assert (row["srocc"], row["pooled_srocc"], row["n_valid"], row["n_missing"]) == (
        *(None, None),
        *(0, 6),
    )
    (row,) = rows_of(scored.across_tasks, metric="cka")
    assert (row["n_valid"], row["n_missing"], row["n_pooled"]) == (3, 7, 3 * 13)
    with pytest.raises(MetricError, match="undefined for fewer than 2 tokens"):
        evaluate(Part(Strange(), "one"), ["cka"])


class Part:
    """One task of a dataset."""

    def __init__(self, whole: Strange, task: str) -> None:
        self.labels = whole.labels.filter(pa.compute.equal(whole.labels["task"], task))
        self.tasks, self.original, self.compressed = whole.tasks, whole.original, whole.compressed


def test_a_task_without_a_loss_cannot_be_followed_by_it() -> None:
    with pytest.raises(MetricError, match=r"^task one has no loss: use the distortion, or"):
        evaluate(Strange(), ["mse"], target="loss")
    followed = evaluate(Part(Strange(), "words"), ["mse"], target="loss")
    assert set(followed.discrimination["threshold"].to_pylist()) == {0.1}
    assert "loss: nats" in report_html(followed)


def test_sources_of_a_group_are_drawn_together(scored: Evaluation) -> None:
    """Groups (0, 2, 5), (1, 4) and the ungrouped 3: 200 resamples, one after the other."""
    members = [(0, 2, 5), (1, 4), (3,)]
    each = np.array(
        [stats.spearmanr(*points(scored, source_id=f"one-{n}")).statistic for n in range(6)]
    )
    means = [
        np.mean(np.concatenate([each[list(members[g])] for g in np.repeat(range(3), counts)]))
        for counts in source_counts(3, 200, 0, "one")[1:].astype(int)
    ]
    values = scored.scores["value"].to_numpy().reshape(-1, len(METRICS))
    only = statistics(scored.labels, scored.metrics[:1], values[:, :1], draws=200)
    (row,) = rows_of(only.correlations, task="one")
    bounds = [row["srocc_low"], row["srocc_high"]]
    np.testing.assert_allclose(bounds, np.percentile(means, [2.5, 97.5]), atol=1e-12)
    assert "Confidence intervals resample groups of sources as a whole" in plain_text(scored)
    # Three groups prove as little as three sources: two chances in eight of one sign.
    two = statistics(
        scored.labels, scored.metrics[:1] * 2, np.c_[values[:, 0], -values[:, 0]], draws=50
    )
    assert min(r["p"] for r in rows_of(two.comparisons, task="one")) >= 0.25


# The test folder.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("format-2")
    return {tier: write_format_2_folder(base / tier, tier) for tier in ("full", "light")}


@pytest.fixture(scope="module")
def found(folders: dict[str, Path]) -> Evaluation:
    return evaluate(folders["full"], METRICS, out=folders["full"].parent / "s.parquet")


def test_every_metric_scores_the_test_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All metrics except those that use statistics, which are tested below."""
    monkeypatch.setattr(evaluator, "make_evaluation", lambda *given, **more: (given, more))
    (labels, metrics, values, _, failures), more = evaluate(folders["full"], list_metrics())
    assert not failures
    # psnr needs the range of a quantiser.
    where = "undefined where no codec has a quantiser, as of pictures: no score of 18 of 118"
    assert where in more["notes"]["psnr"]
    assert {metric.name for metric in metrics} == set(list_metrics())
    for metric, column in zip(metrics, values.T, strict=True):
        few = labels["tokens"].to_numpy() < metric.least_tokens
        lacking = few | (np.array(labels["task"]) == "pictures") & (metric.name == "psnr")
        np.testing.assert_array_equal(np.isnan(column), lacking)
        assert ("no score of" in more["notes"].get(metric.name, "")) == lacking.any()


def test_the_test_folder_is_scored(found: Evaluation) -> None:
    labels = {tuple(row[k] for k in KEYS): row for row in found.labels.to_pylist()}
    for name in METRICS:
        for row in rows_of(found.scores, metric=name):
            label = labels[tuple(row[k] for k in KEYS)]
            assert (row["value"] is None) == (name == "cka" and label["tokens"] == 1)
            if label[name] is not None:
                assert row["value"] == pytest.approx(label[name], abs=1e-5)
    (row,) = rows_of(found.across_tasks, metric="mse")
    assert (row["tasks"], row["n_pooled"], row["n_versions"]) == (
        4,
        7 * 4 + 4 * 13 + 3 * 6 + 20,
        None,
    )
    assert {row["task"]: row["threshold"] for row in found.discrimination.to_pylist()} == {
        "one": 1.0,
        "words": 0.5,
        "pictures": 0.0,
        "cls": 1.0,
    }


def test_scores_of_the_test_folder_are_read_back_and_gone_on_from(
    found: Evaluation, folders: dict[str, Path], tmp_path: Path
) -> None:
    again = read_evaluation(folders["full"], folders["full"].parent / "s.parquet")
    for name in COLUMNS:
        assert getattr(again, name).equals(getattr(found, name))
    assert (again.notes, again.failures) == (found.notes, found.failures)
    out = tmp_path / "scores.parquet"

    def stop(x: Any, y: Any) -> Any:
        if x.shape[3] == 9:
            raise KeyboardInterrupt
        return (x - y).square().mean(dim=(1, 2, 3, 4))

    with pytest.raises(KeyboardInterrupt):
        evaluate(folders["full"], ["mse", stop], out=out)
    assert out.with_name("scores.parquet.unfinished").exists()
    whole = evaluate(folders["full"], METRICS, out=out)
    assert whole.scores.equals(found.scores)


def test_the_test_folders_page_and_tables(found: Evaluation, folders: dict[str, Path]) -> None:
    page = report_html(found, folders["full"])
    for text in (
        *("finding a thing again", "distortion: accuracy (%)", "digits", "80, 20.5, 5, 1"),
        *("Every case of format 2, in little.", "format 2, full tier", "strength"),
    ):
        assert text in page
    # A codec has one colour on the page, whichever tasks have it.
    drawn = page[page.index("pictures: mse against") :].partition("</svg>")[0]
    codecs = list(dict.fromkeys(found.labels["codec"].to_pylist()))
    colours = {f"k{codecs.index(codec)}" for codec in ("picture", "restored")}
    assert set(re.findall(r'class="dots (k\d)', drawn)) == colours
    assert "restored" in plain_text(found)
    json.dumps({name: getattr(found, name).to_pylist() for name in COLUMNS}, allow_nan=False)


def test_a_loss_is_followed_where_there_is_one(folders: dict[str, Path]) -> None:
    with pytest.raises(MetricError, match="task one has no loss"):
        evaluate(folders["full"], ["mse"], target="loss")
    for task, threshold in (("words", 0.05), ("pictures", 0.0)):
        found = evaluate(folders["full"], ["mse"], task=task, target="loss")
        assert found.discrimination["threshold"].to_pylist() == [threshold]
        (row,) = found.across_tasks.to_pylist()
        assert row["srocc"] == pytest.approx(1.0)  # the loss grows with the squared error


def test_what_a_light_folder_does_not_store_is_left_out_and_said(
    folders: dict[str, Path],
) -> None:
    light = load(folders["light"], "pictures", plugins=PLUGINS)
    found = evaluate(light, ["mse"])
    assert set(found.labels["codec"].to_pylist()) == {"picture"}
    assert found.notes == {
        "codec restored": "codec 'restored' of pictures: its features are not stored and are "
        "left out"
    }
    with pytest.raises(CfqaError, match="mock-codecs"):
        evaluate(folders["light"], ["mse"], task="words")
    told = evaluate(folders["light"], ["mse"], task="words", plugins=PLUGINS)
    assert set(told.labels["task"].to_pylist()) == {"words"}


def test_values_and_codes_are_read_side_by_side_for_a_device(
    found: Evaluation, folders: dict[str, Path]
) -> None:
    """For devices other than "cpu", codes are read if available."""
    on_device = evaluate(folders["full"], METRICS, "cpu:0")
    for name in METRICS:
        values = [
            [row["value"] or 0.0 for row in rows_of(of.scores, metric=name)]
            for of in (found, on_device)
        ]
        np.testing.assert_allclose(*values, rtol=1e-6)
