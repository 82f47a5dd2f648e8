"""Short descriptions of a dataset, a pair, a manifest, a metric, a result and a comparison."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mock_dataset import write_mock_dataset

import cfqa_data
from cfqa_data.console.summary import Described, Summary

pytestmark = pytest.mark.usefixtures("quick_statistics")

EVIL = "<script>alert(1)</script>\x1b[31m" + "x" * 5000


class Cells(HTMLParser):
    """Collects the tags of a table and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_objects_describe_themselves_in_a_line_and_a_small_table(tmp_path: Path) -> None:
    dataset = cfqa_data.load(write_mock_dataset(tmp_path / "cfqa", sources=2))
    result = cfqa_data.evaluate(dataset, ["mse", "cosine"])
    assert "reference_score " in repr(dataset[0])
    for thing, line, cell in (
        (dataset, "<Dataset ", "x265, vvenc, hyperprior_multi_task, hyperprior_task_specific"),
        (dataset[0], "<FeaturePair cls-000 by x265, level 0: task cls, each float32", "distortion"),
        (dataset.manifest, "<Manifest of ", "made with numpy"),
        (result, "<Evaluation of 2 metrics: features 240, target distortion>", "cosine"),
        (result.compare("mse"), "<Comparison with cosine: metrics mse,", "cls"),
        (result.metrics[1], "<Metric cosine: family angle, better higher", "differentiable"),
    ):
        text = repr(thing)
        assert text.startswith(line), text
        assert len(text) < 300
        page = Cells(thing._repr_html_())
        assert page.tags <= {"div", "b", "table", "thead", "tr", "th", "td"}
        assert cell in page.cells
        assert len(thing._repr_html_()) < 5000
    (cls,) = (row for row in result.across_codecs.to_pylist()[:2] if row["metric"] == "mse")
    assert f"{cls['srocc']:.3f}" in Cells(result._repr_html_()).cells


def test_names_are_text_whatever_they_hold() -> None:
    class Thing(Described):
        def _summary(self, rows: bool) -> Summary:
            return Summary(EVIL, {EVIL: EVIL, "none": None}, [[EVIL], [EVIL]] if rows else ())

    page = Cells(Thing()._repr_html_())
    assert page.tags <= {"div", "b", "table", "thead", "tr", "th", "td"}
    assert len(page.cells) == 5
    assert max(map(len, page.cells)) <= 200
    assert repr(Thing()).isprintable()
