"""Training without a codec: the training data, the figure against a loop, files and pages."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_dataset import CODECS, FoldedDataset, rows_of

from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval import Evaluation, evaluate, read_evaluation
from cfqa_data.eval.report import report_html
from cfqa_data.eval.text import paper_text, plain_text

pytestmark = pytest.mark.usefixtures("quick_statistics")


class Biased:
    """The mean squared error, with a reversed sign for codecs that training has not seen."""

    lower_better = True
    name = "biased"

    def __init__(self) -> None:
        self.seen: list[tuple[set[str], set[str]]] = []

    def __deepcopy__(self, memo: Any) -> Biased:
        return self  # to see all trainings

    def fit(self, training: Any, device: str) -> Any:
        columns = [set(training.labels[name].to_pylist()) for name in ("source_id", "codec")]
        self.seen.append((columns[0], columns[1]))
        sign = 1 if len(columns[1]) == len(CODECS) else -1
        return lambda x, y: sign * (y - x).square().mean((1, 2, 3, 4))


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Biased, FoldedDataset, Evaluation, Path]:
    metric, dataset = Biased(), FoldedDataset()
    out = tmp_path_factory.mktemp("left_out") / "scores.parquet"
    result = evaluate(dataset, ["mse", metric, "cosine"], leave_out="codec", out=out)
    return metric, dataset, result, out


def test_training_does_without_the_codec_and_the_fold(found: Any) -> None:
    metric, _, result, _ = found
    assert len(metric.seen) == 2 * 2 * 3  # tasks, folds, and all codecs or all but one
    for sources, codecs in metric.seen:
        assert len({int(source.split("-")[1]) % 2 for source in sources}) == 1
        assert codecs in [set(CODECS), *({codec} for codec in CODECS)]
    assert [m.name for m in result.metrics] == ["mse", "biased", "cosine"]
    assert [(m.base_name, m.left_out) for m in result.without] == [("biased", c) for c in CODECS]
    # The other tables are of the training with all codecs.
    assert set(result.correlations["metric"].to_pylist()) == {"mse", "biased", "cosine"}
    (mine,) = rows_of(result.across_codecs, task="cls", metric="biased")
    (plain,) = rows_of(result.across_codecs, task="cls", metric="mse")
    assert mine["srocc"] == pytest.approx(plain["srocc"])


def test_the_figure_is_the_share_of_pairs_that_are_ordered_right(found: Any) -> None:
    _, dataset, result, _ = found
    labels, values = dataset.labels.to_pylist(), {}
    for row in rows_of(result.scores, metric="mse"):
        values[row["source_id"], row["codec"], row["level"]] = row["value"]
    truth = {(row["source_id"], row["codec"], row["level"]): row["distortion"] for row in labels}
    for task, codec in product(("cls", "seg"), CODECS):
        shares = []
        for source in range(1, 4):  # of the first, the label does not change
            mine = [key for key in values if key[:2] == (f"{task}-{source}", codec)]
            others = [key for key in values if key[0] == f"{task}-{source}" and key[1] != codec]
            right = [
                (values[a] > values[b]) == (truth[a] > truth[b]) for a, b in product(mine, others)
            ]
            shares.append(np.mean(right))
        rows = {row["metric"]: row for row in rows_of(result.left_out, task=task, codec=codec)}
        assert rows["mse"]["pairs"] == pytest.approx(np.mean(shares))
        assert rows["biased"]["pairs"] == pytest.approx(1 - np.mean(shares))
        assert [rows[name]["trained"] for name in ("mse", "biased")] == [False, True]
        assert {row["n_valid"] for row in rows.values()} == {3}
        assert rows["mse"]["pairs_low"] <= rows["mse"]["pairs"] <= rows["mse"]["pairs_high"]
    every = rows_of(result.left_out, task="cls", metric="mse")
    assert [row["codec"] for row in every] == [*CODECS, "all"]
    assert every[2]["pairs"] == pytest.approx((every[0]["pairs"] + every[1]["pairs"]) / 2)
    pairs = rows_of(result.comparisons, figure="pairs", task="cls", codec="all")
    assert {(row["metric"], row["other"]) for row in pairs} == {
        *(("mse", "biased"), ("mse", "cosine"), ("biased", "cosine"))
    }
    assert pairs[0]["difference"] == pytest.approx(2 * every[2]["pairs"] - 1)


def test_it_is_told_in_files_text_and_report(found: Any) -> None:
    _, dataset, result, out = found
    again = read_evaluation(dataset, out)
    assert again.left_out.equals(result.left_out)
    assert [m.left_out for m in again.without] == list(CODECS)
    for text in (paper_text(again), plain_text(again)):
        assert "biased: trained without that codec" in text
    page = " ".join(report_html(again).split())
    assert "Codecs unseen in training" in page
    assert "biased without" not in page
    added = evaluate(dataset, ["pearson_token"], out=out)
    assert added.left_out.num_rows > again.left_out.num_rows
    assert [m.name for m in added.metrics] == [*(m.name for m in again.metrics), "pearson_token"]
    assert added.without == again.without


def test_what_leaves_nothing_to_learn_is_told(tmp_path: Path) -> None:
    for metrics, message in (("mse", "none of these is trained"), (["x"], "unknown metric 'x'")):
        with pytest.raises(MetricError, match=message):
            evaluate(FoldedDataset(), metrics, leave_out="codec")
    with pytest.raises(MetricError, match="leave_out is 'codec' or None, not 'fold'"):
        evaluate(FoldedDataset(), Biased(), leave_out="fold")  # type: ignore[arg-type]
    alone = FoldedDataset()
    alone.labels = alone.labels.filter(np.array(alone.labels["codec"].to_pylist()) == CODECS[0])
    with pytest.raises(MetricError, match="leave_out needs several codecs, and there is only x265"):
        evaluate(alone, Biased(), leave_out="codec")


def test_a_task_without_the_codec_has_no_figure_of_it_and_failures_are_told_once() -> None:
    class Fails:
        def fit(self, training: Any, device: str) -> Any:
            raise RuntimeError("no convergence")

    dataset, metric = FoldedDataset(), Biased()
    seg = np.array(dataset.labels["task"].to_pylist()) == "seg"
    second = np.array(dataset.labels["codec"].to_pylist()) == CODECS[1]
    dataset.labels = dataset.labels.filter(~(seg & second))
    with pytest.warns(MetricWarning, match="no convergence"):
        result = evaluate(dataset, [metric, Fails()], leave_out="codec")
    assert list(result.failures) == ["Fails"]
    assert result.notes == {}
    (row,) = rows_of(result.left_out, task="seg", codec=CODECS[0])
    assert (row["pairs"], row["n_valid"]) == (None, 0)
