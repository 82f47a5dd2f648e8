"""The page of an evaluation; `browser_report.py` tests it in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from base64 import b64encode
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_dataset import CODECS, LEVELS, MemoryDataset
from mock_dataset import write_mock_dataset
from PIL import Image

import cfqa_data
from cfqa_data.access.dataset import Dataset
from cfqa_data.access.grid import TokenGrid
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError, MetricError, MetricWarning
from cfqa_data.eval import Evaluation, evaluate, read_evaluation
from cfqa_data.eval.comparison import p_text
from cfqa_data.eval.label_figures import ceilings
from cfqa_data.eval.report import report_html, write_report
from cfqa_data.eval.report.axes import Axis, number_text
from cfqa_data.eval.report.cards import disagreements
from cfqa_data.eval.report.classes import embed
from cfqa_data.eval.report.drawing import TEMPLATES
from cfqa_data.eval.report.figures import curve, scatter, task_points
from cfqa_data.eval.report.ranking import COLOURS, Figure, Scale, ranking
from cfqa_data.eval.statistics import mapping

FIT = mapping._fit

EVIL = "<script>alert('m')</script>&\"{{ 7*7 }}"
pytestmark = pytest.mark.usefixtures("quick_statistics")

MOST = float(np.finfo(np.float64).max)
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Parses a page; raises an error if its elements are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)
        if {"td", "th"} & set(self._open[-3:]):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def opposite(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A metric that decreases with the distortion although it declares that lower is better."""
    return -(y - x).square().mean((1, 2, 3, 4))


opposite.lower_better = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("report") / "cfqa", sources=4)


@pytest.fixture(scope="module")
def scored(folder: Path) -> Evaluation:
    out = folder.parent / "scores.parquet"
    return evaluate(folder, ["mse", "cosine", opposite], out=out)


@pytest.fixture(scope="module")
def text(scored: Evaluation, folder: Path) -> str:
    return report_html(scored, folder)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_stands_alone(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "action", "data"):
                assert value.startswith("#") or value == "data:,", (tag, name, value)
    assert not re.search(r"https?:|url\(|@import", text)
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (code,) = page.texts[tag]
        digest = b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_link_and_label_leads_somewhere(page: Page) -> None:
    ids = Counter(a["id"] for _, a in page.elements if a.get("id"))
    assert set(ids.values()) == {1}
    wanted = [a["href"][1:] for a in page.all("a")] + [a["for"] for a in page.all("label")]
    for _, attributes in page.elements:
        wanted += attributes.get("aria-labelledby", "").split()
    wanted += [option["value"] for option in page.all("option")]
    assert set(wanted) <= set(ids)
    assert len([name for name in ids if re.fullmatch(r"m-\d+", name)]) == 3


def test_tables_can_be_scrolled_and_sorted(page: Page) -> None:
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(regions) == len(page.all("table"))
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in regions)
    heads = [a for a in page.all("th") if "data-sort" in a]
    assert {a["data-sort"] for a in heads} == {"num", "text"}
    assert "ascending" in {a.get("aria-sort") for a in heads}
    assert all(a.get("scope") for a in page.all("th"))
    assert all(a["aria-label"] for a in page.all("svg") if a.get("role") == "img")


def test_the_sort_keys_are_the_figures(page: Page, scored: Evaluation) -> None:
    keys = {float(a["data-key"]) for a in page.all("td") if a.get("data-key")}
    for row in scored.across_tasks.to_pylist():
        oriented = row["srocc"] if row["lower_better"] else -row["srocc"]
        assert min(abs(key - oriented) for key in keys) < 1e-8


def test_the_ranking_is_by_oriented_figures(page: Page, scored: Evaluation) -> None:
    ranked = ranking(scored)
    assert {entry.metric.name for entry in ranked[:2]} == {"mse", "cosine"}
    last = ranked[-1]
    assert (last.metric.name, last.better) == ("opposite", "lower")
    found = {e.metric.name: Figure.of(e.overall, "srocc").value for e in ranked}
    assert found["opposite"] == pytest.approx(-found["mse"])  # a wrong sign is shown, not dropped
    row, pooled = (r for r in page.rows if r[:2] == ["3", "opposite"])
    assert row[3].startswith(f"\u2212{found['mse']:.3f}")
    (of_mse,) = (r for r in scored.across_tasks.to_pylist() if r["metric"] == "mse")
    assert pooled[3].startswith(f"\u2212{of_mse['pooled_srocc']:.3f}")


def test_the_ranking_has_differences_to_a_baseline_and_the_ceiling_of_the_labels(
    page: Page, scored: Evaluation, folder: Path
) -> None:
    differences = scored.compare(["mse", "opposite"], "cosine").table.to_pylist()
    of_mse = [r for r in differences if (r["view"], r["metric"]) == ("all", "mse")]
    shown = [row for row in page.rows if row[1:2] == ["mse"] and len(row) > 9]
    for row, name in zip(shown, ("srocc", "pooled_srocc"), strict=True):
        (one,) = (r for r in of_mse if r["figure"] == name)
        assert row[5].lstrip("+\u2212").startswith(f"{abs(one['difference']):.3f}")
        assert row[6] == p_text(one["p_holm"])
    known = ceilings(scored.labels)
    for row, kind in zip(
        (r for r in page.rows if "label ceiling" in r), ("source", "pooled"), strict=True
    ):
        assert [f"{known[task][kind]:.3f}" for task in known] == [text for text in row[2:] if text]
    other = Page(report_html(scored, folder, against="mse"))
    assert "difference to mse" in "".join(other.texts["th"])
    with pytest.raises(MetricError, match="unknown metric 'mes'"):
        report_html(scored, folder, against="mes")


def test_whiskers_have_a_scale_that_the_better_metrics_fill() -> None:
    figures = [Figure(v, v - 0.02, v + 0.02) for v in [0.1, *np.linspace(0.8, 0.87, 33)]]
    scale = Scale.of(figures)
    assert scale == pytest.approx((0.78, 0.9, 0.02))
    assert scale.at(0.1) == scale.at(0.78) == 8
    assert scale.at(0.9) == 312
    assert len(scale.ticks) == 7
    assert Scale.of([Figure(None)]).ticks == pytest.approx(np.linspace(0, 1, 6))


def test_a_metric_says_where_its_scores_come_from_and_how_it_does_at_each_level(
    page: Page, text: str, scored: Evaluation
) -> None:
    made = scored.provenance["cosine"]
    assert f"{made.package} {made.version}" in "".join(page.texts["dd"])
    assert f"{made.date} on cpu" in "".join(page.texts["dd"])
    titles = [a["aria-label"] for a in page.all("svg") if a.get("role") == "img"]
    drawn = [t for t in titles if t.startswith("seg: SROCC of cosine with the distortion at each")]
    assert len(drawn) == 1


def test_intervals_turn_with_the_sign() -> None:
    row = {"lower_better": False, "x": -0.8, "x_low": -0.9, "x_high": -0.5}
    assert Figure.of(row, "x") == Figure(0.8, 0.5, 0.9)
    assert Figure.of(row, "x").interval == "[0.50, 0.90]"
    assert Figure.of(row | {"lower_better": None}, "x") == Figure(-0.8, -0.9, -0.5)
    nothing = Figure.of({"lower_better": False, "x": None}, "x")
    assert (nothing.text, nothing.interval) == ("\u2013", "")


def test_the_page_names_what_was_scored(page: Page, folder: Path) -> None:
    manifest = cfqa_data.load(folder).manifest
    said = " ".join(data for parts in page.texts.values() for data in parts)
    assert manifest.summary in said
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() in said
    for name, version in manifest.versions.items():
        assert [name, version] in page.rows
    assert ["cls", "distortion: rank", "4", "4", "160"] in page.rows


def test_the_same_scores_give_the_same_bytes(
    text: str, folder: Path, scored: Evaluation, tmp_path: Path
) -> None:
    assert scored.failures == {}
    again = read_evaluation(folder, folder.parent / "scores.parquet")
    write_report(again, tmp_path / "page.html", folder)
    assert (tmp_path / "page.html").read_bytes() == text.encode()


def test_names_are_text_whatever_they_hold() -> None:
    dataset = MemoryDataset()
    names = dict.fromkeys(dataset.labels["source_id"].to_pylist())
    renamed = {name: f"{name}{EVIL}" for name in names}
    column = pa.array([renamed[name] for name in dataset.labels["source_id"].to_pylist()])
    place = dataset.labels.column_names.index("source_id")
    dataset.labels = dataset.labels.set_column(place, "source_id", column)
    for kept in (dataset.originals, dataset.versions):
        for key in list(kept):
            named = renamed[key] if isinstance(key, str) else (renamed[key[0]], *key[1:])
            kept[named] = kept.pop(key)  # type: ignore[index]

    def metric(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).abs().mean((1, 2, 3, 4))

    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ValueError(EVIL)

    for function, name in ((metric, EVIL), (broken, f"broken {EVIL}")):
        function.name = name  # type: ignore[attr-defined]
        function.citation = EVIL  # type: ignore[attr-defined]
    with pytest.warns(MetricWarning):
        evaluation = evaluate(dataset, ["mse", metric, broken])
    html = report_html(replace(evaluation, notes={"mse": f"one line\nanother of {EVIL}"}))
    found = Page(html)
    assert len(found.all("script")) == 1
    assert "alert(" not in found.texts["script"][0]
    assert "<script>alert" not in html
    assert EVIL in "".join(data for data in found.texts["h3"])
    assert any(EVIL in "".join(row) and row[1] == "cls" for row in found.rows)
    assert f"broken {EVIL}" in "".join(found.texts["b"])
    assert {"failures-title", "notes-title"} <= {a.get("id") for _, a in found.elements}
    assert "one line<br>another of &lt;" in html
    assert "49" not in "".join(found.texts["h3"])
    labels = [a["aria-label"] for a in found.all("svg") if a.get("role") == "img"]
    assert any(EVIL in label for label in labels)


def test_one_metric_without_a_dataset_of_one_codec() -> None:
    dataset = MemoryDataset()
    dataset.labels = dataset.labels.filter(pa.compute.equal(dataset.labels["codec"], "x265"))
    found = Page(report_html(evaluate(dataset, "mse")))
    ids = {a.get("id") for _, a in found.elements}
    assert "curves" not in ids  # its labels know no rate
    assert not {"failures-title", "notes-title"} & set(ids)
    assert "all codecs" not in "".join(found.texts["span"])


@pytest.mark.parametrize("scale", [MOST, 1e-320])
def test_numbers_of_any_size_are_drawn(scale: float) -> None:
    """Labels, rates and scores, of which some are missing; the same ranks give the same summary."""

    def signed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (scale * (2 * (y - x).double().square().mean((1, 2, 3, 4)) - 1)).clamp(-scale, scale)

    def partly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if (y.sum((1, 2, 3, 4)) * 10 % 1 < 0.1).any():
            raise ValueError("not this one")
        return signed(x, y)

    dataset = MemoryDataset()
    labels = dataset.labels
    shares = np.tanh(labels["distortion"].to_numpy())
    for name, numbers in (("bpfp", np.abs(shares) + 0.1), ("mse", np.abs(shares))):
        labels = labels.append_column(name, pa.array(scale * numbers / 1.2))
    place = labels.column_names.index("distortion")
    dataset.labels = labels.set_column(place, "distortion", pa.array(scale * shares))
    with pytest.warns(MetricWarning, match="not this one .* features have no score"):
        evaluation = evaluate(dataset, ["mse", signed, partly])
    assert list(evaluation.failures) == ["partly"]
    assert all(
        row["n_valid"] and row["n_missing"] for row in evaluation.correlations.to_pylist()[2::3]
    )
    found = Page(report_html(evaluation))
    assert "curves" in {a.get("id") for _, a in found.elements}
    plain = MemoryDataset()
    for name in ("correlations", "across_codecs", "across_tasks"):
        srocc = [
            [row["srocc"] for row in getattr(of, name).to_pylist() if row["metric"] == "mse"]
            for of in (evaluation, evaluate(plain, "mse"))
        ]
        assert srocc[0] == pytest.approx(srocc[1], abs=0.02)  # subnormal labels have ties


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("where", "codecs", "marks"),
    [
        ({"source_id": "cls-1", "level": 2}, len(CODECS), LEVELS),
        ({"level": 2}, len(CODECS), LEVELS - 1),
        ({}, len(CODECS) - 1, LEVELS),  # of the other codec
    ],
    ids=["feature", "level", "codec"],
)
def test_curves_are_drawn_without_the_features_of_unknown_error(
    unknown: float | None, where: dict[str, Any], codecs: int, marks: int
) -> None:
    dataset = MemoryDataset()
    evaluation, rows = evaluate(dataset, "mse"), dataset.labels.to_pylist()
    where = {"task": "cls", "codec": CODECS[0], **where}
    errors = [unknown if where.items() <= row.items() else 1.0 + row["level"] for row in rows]
    labels = evaluation.labels.append_column("bpfp", pa.array([1.0 + r["level"] for r in rows]))
    labels = labels.append_column("mse", pa.array(errors))
    (part, *_) = task_points(replace(evaluation, labels=labels))
    drawn = Page(str(curve(part, "error", "distortion")))
    kinds = [path["class"].split() for path in drawn.all("path")]
    assert sum(kind[0] == "band" for kind in kinds) == codecs
    (first, *_) = (a["d"] for a in drawn.all("path") if a["class"].startswith("mark"))
    assert first.count("M") == marks
    nothing = replace(part, error=np.full(len(part.truth), np.nan))
    assert curve(nothing, "error", "distortion") is None
    assert curve(nothing, "distortion", "distortion") is not None


def test_a_metric_without_some_scores_is_drawn_from_the_others() -> None:
    evaluation = evaluate(MemoryDataset(), ["mse", "cosine"])
    (part, *_) = task_points(evaluation)
    scores = part.scores.copy()
    scores[::2, 0] = np.nan
    halved = replace(part, scores=scores)
    assert "nan" not in scatter(halved, 0, "mse", "distortion", {}, np.asarray)
    items = disagreements([halved], 0, evaluation.metrics[0])
    assert len(items) == 3
    assert all(item.row % 2 and abs(item.gap) < 100 for item in items)
    scores[:, 0] = np.nan
    nothing = replace(part, scores=scores)
    assert scatter(nothing, 0, "mse", "distortion", {}, np.asarray) == ""
    assert disagreements([nothing], 0, evaluation.metrics[0]) == []


def test_undeclared_direction_is_said_and_ranked_as_it_is() -> None:
    def metric(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).abs().mean((1, 2, 3, 4))

    evaluation = evaluate(MemoryDataset(), ["cosine", metric])
    entry = next(e for e in ranking(evaluation) if e.metric.name == "metric")
    assert (entry.better, entry.beaten_by) == ("not declared", None)
    assert "not declared" in report_html(evaluation)


def test_a_report_is_of_the_dataset_that_was_scored(
    folder: Path, scored: Evaluation, tmp_path: Path
) -> None:
    class Borrowed(MemoryDataset):
        """A dataset with other arrays under the same manifest."""

        manifest, path = cfqa_data.load(folder).manifest, folder

    other = write_mock_dataset(tmp_path / "other", sources=3)
    read = read_evaluation(folder, folder.parent / "scores.parquet")
    in_memory, borrowed = (evaluate(kind(), "mse") for kind in (MemoryDataset, Borrowed))
    page = tmp_path / "page.html"
    for evaluation, dataset in (
        (scored, other),
        (read, other),
        (scored, MemoryDataset()),
        (in_memory, folder),
        (in_memory, MemoryDataset(seed=1)),
        (borrowed, folder),
    ):
        with pytest.raises(MetricError, match="another dataset; give that one, or none"):
            write_report(evaluation, page, dataset)
    assert not page.exists()
    for evaluation, dataset in ((in_memory, MemoryDataset()), (borrowed, Borrowed())):
        assert report_html(evaluation, dataset) == report_html(evaluation)
    part = evaluate(cfqa_data.load(folder, "cls"), "mse", limit=1)
    assert "1 of 4" in report_html(part, folder)


def test_a_metric_without_some_scores_is_in_the_report_with_their_count() -> None:
    def of_cls(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if float(y[0, 0, 0, 0, 0]) > 1:
            raise ValueError("too large")
        return (y - x).square().view(len(y), 1, 1, 5, 8).mean((1, 2, 3, 4))

    of_cls.lower_better = True  # type: ignore[attr-defined]
    with pytest.warns(MetricWarning):
        evaluation = evaluate(MemoryDataset(4), ["mse", of_cls], batch=1)
    missing = evaluation.scores["value"].null_count
    of_seg = MemoryDataset(4).labels.num_rows // 2
    assert of_seg < missing < 2 * of_seg
    html = report_html(evaluation)
    found = Page(html)
    assert f"{missing} without a score" in found.texts["small"]
    said = " ".join(" ".join(found.texts["p"]).split())
    assert (
        f"of_cls has no score for {of_seg} of the compressed features of seg; 3 sources are" in said
    )
    assert f"of_cls has no score for {missing - of_seg} of the compressed features of cls" in said
    assert "too large" in "".join(found.texts["li"])
    points = task_points(evaluation)
    assert {item.points.task for item in disagreements(points, 1, evaluation.metrics[1])} == {"cls"}
    assert ["cls", "distortion: rank", "4", "3", "80"] in found.rows


def test_what_could_not_be_compared_is_not_called_worse() -> None:
    def hardly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y[:, 0, 0, 0, 0].abs()

    def lead(*metrics: Any) -> str:
        text = " ".join(report_html(evaluate(MemoryDataset(8), metrics)).split())
        return text.partition('<p class="lead">')[2].partition("</p>")[0]

    assert "Every other" not in lead("mse", hardly)
    assert "1 of undeclared direction is not compared" in lead("mse", hardly)
    hardly.lower_better = True  # type: ignore[attr-defined]
    assert "Every other metric is significantly outperformed" in lead("mse", hardly)


def test_long_names_leave_the_scatter_its_place() -> None:
    def metric(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - x).abs().mean((1, 2, 3, 4))

    metric.name = "m" * 300  # type: ignore[attr-defined]
    found = Page(report_html(evaluate(MemoryDataset(), metric)))
    assert "m" * 39 + "…" in "".join(found.texts["text"])
    assert "m" * 40 not in "".join(found.texts["text"])


def test_the_items_are_those_with_the_largest_gap_in_ranks(scored: Evaluation) -> None:
    points = task_points(scored)
    column = [metric.name for metric in scored.metrics].index("cosine")
    found = disagreements(points, column, scored.metrics[column])
    assert [abs(item.gap) for item in found] == sorted((abs(i.gap) for i in found), reverse=True)
    for part in points:
        of_task = [item for item in found if item.points is part]
        assert len({part.source[item.row] for item in of_task}) == len(of_task) == 4
        gaps = {}
        for row in range(len(part.truth)):  # slowly: the share of points below, ties half
            below = [
                np.mean([(v < values[row]) + (v == values[row]) / 2 for v in values])
                for values in (-part.scores[:, column], part.truth)
            ]
            gaps[row] = 100 * (below[0] - below[1])
        for item in of_task:
            assert item.gap == pytest.approx(gaps[item.row])
            same = [row for row in gaps if part.source[row] == part.source[item.row]]
            assert abs(item.gap) == pytest.approx(max(abs(gaps[row]) for row in same))


def test_disagreements_of_a_result_are_those_of_its_report_and_of_two_metrics(
    scored: Evaluation,
) -> None:
    points = task_points(scored)
    column = [metric.name for metric in scored.metrics].index("cosine")
    shown = disagreements(points, column, scored.metrics[column])
    found = scored.disagreements("cosine", 6)
    rows = found.table.to_pylist()
    assert [(r["task"], r["source_id"], r["level"]) for r in rows] == [
        (i.points.task, i.points.source[i.row], i.points.level[i.row]) for i in shown[:6]
    ]
    assert [r["worse_than"] - r["other_worse_than"] for r in rows] == [i.gap for i in shown[:6]]
    assert [r["other"] for r in rows] == [i.truth for i in shown[:6]]
    assert rows[0]["source_id"] in str(found)
    assert rows[0]["source_id"] in found._repr_html_()
    two = scored.disagreements("opposite", 3, against="mse").table.to_pylist()
    assert all(r["score"] == pytest.approx(-r["other"]) for r in two)  # wholly the wrong way
    assert two[0]["worse_than"] == pytest.approx(100 - two[0]["other_worse_than"])
    for metric, count, message in (("cosin", 3, "did you mean 'cosine'"), ("mse", 0, "at least 1")):
        with pytest.raises(MetricError, match=message):
            scored.disagreements(metric, count)


def test_pictures_show_the_source_and_the_errors_of_its_tokens(
    folder: Path, scored: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (200, 100), (10, 200, 30))
    monkeypatch.setattr(Dataset, "image", lambda _, source: image)
    tokens = {task: entry.shape[2] for task, entry in cfqa_data.load(folder).manifest.tasks.items()}
    monkeypatch.setattr(Dataset, "grid", lambda _, task: TokenGrid(tokens[task] - 4, 2, 2))
    page = Page(report_html(scored, folder, pictures=True))
    items = sum(row[-3:-2] in (["overestimates"], ["underestimates"]) for row in page.rows)
    pictures = page.all("img")
    maps = [one for one in pictures if one.get("class") == "map"]
    assert len(pictures) - len(maps) == items > 0
    data = base64.b64decode(pictures[0]["src"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(data)).size == (96, 48)
    dataset = cfqa_data.load(folder)
    source, codec, level = re.findall(r"of (\S+) by (\S+), level (\d+)", maps[0]["alt"])[0]
    places = slice(-4, None)
    x = dataset.original(source)[:, :, places].astype(float)
    y = dataset.compressed(source, codec, int(level))[:, :, places]
    layers = [
        ((y[:, n] - x[:, n]) ** 2).mean(-1) / x[:, n].var(1).mean() for n in range(x.shape[1])
    ]
    error = np.sqrt(np.mean(layers, axis=0))
    error = np.hstack(error.reshape(-1, 2, 2))  # views stand side by side
    data = base64.b64decode(maps[0]["src"].removeprefix("data:image/webp;base64,"))
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    expected = 255 * matplotlib.colormaps["inferno"]((error / 2).clip(0, 1))[..., :3]
    assert np.abs(drawn - expected).max() <= 1
    with pytest.raises(MetricError, match="give the dataset"):
        report_html(scored, pictures=True)


def test_the_line_in_the_scatter_is_the_fit_of_the_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapping, "_fit", FIT)
    scored = evaluate(MemoryDataset(), ["mse", "cosine", opposite])
    for part, task in zip(task_points(scored), scored.cells().tasks, strict=True):
        for column, metric in enumerate(scored.metrics):
            mapped = task.whole.mapped[column].curve(part.scores[:, column])
            (row,) = (
                row
                for row in scored.across_codecs.to_pylist()
                if (row["task"], row["metric"]) == (part.task, metric.name)
            )
            rmse = np.sqrt(np.mean((mapped - part.truth) ** 2))
            assert rmse == pytest.approx(row["mapped_rmse"], rel=1e-6)


def test_a_constant_metric_has_a_flat_line() -> None:
    truth = np.arange(5.0)
    assert mapping.map_scores(np.ones(5), truth).curve(np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert mapping.map_scores(truth, np.ones(5)).curve(truth).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.0, 0.5, 1.0], "linear"),
        ([-3.0, -2.0], "linear"),
        ([1e-4, 1e-3, 1e-2, 1.0], "log"),
        ([-1.0, 0.0, 0.5, 1.0, 2.0, 900.0], "symlog"),
        ([7.0, 7.0], "linear"),
        ([0.0, 0.0], "linear"),
    ],
)
def test_axes_hold_their_values(values: list[float], kind: str) -> None:
    axis = Axis.around(np.array(values))
    assert axis.kind == kind
    places = axis.position(values)
    assert ((places > 0) & (places < 1)).all()
    assert np.array_equal(np.argsort(places, kind="stable"), np.argsort(values, kind="stable"))
    ends = axis.between(5)
    assert axis.position(ends) == pytest.approx(np.linspace(0, 1, 5), abs=1e-12)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert [place for place, _ in ticks] == sorted(place for place, _ in ticks)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([-MOST, 0.0, MOST], "linear"),
        ([MOST, MOST], "linear"),
        ([1e300, 1e304, MOST], "log"),
        ([-MOST, 0.0, 1e-300, 1e-299, 1e-298, MOST], "symlog"),
        ([5e-324, 5e-324], "linear"),
        ([5e-324, 1e-323], "linear"),
        ([-5e-324, 0.0, 5e-324], "linear"),
        ([1e-320, 1e-316, 1e-310], "log"),
        ([-1e-315, 1e-318, 1e-305], "symlog"),
        ([5e-324, 1.0, 1.0, MOST], "log"),
    ],
)
def test_axes_hold_the_largest_and_the_smallest_floats(values: list[float], kind: str) -> None:
    axis = Axis.around(np.array(values))
    assert axis.kind == kind
    places = axis.position(values)
    assert ((places > 0) & (places < 1)).all()
    assert np.array_equal(np.argsort(places, kind="stable"), np.argsort(values, kind="stable"))
    assert len(set(places)) == len(set(values))
    across = axis.position(axis.between(5))  # its ends may be no floats
    assert ((across >= -1e-9) & (across <= 1 + 1e-9)).all()
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 13
    assert [place for place, _ in ticks] == sorted(place for place, _ in ticks)


def test_numbers_on_axes() -> None:
    said = {
        0.05: "0.05",
        200.0: "200",
        1e5: "10\u2075",
        -2e-4: "\u22122\u00b710\u207b\u2074",
        0.0: "0",
        float("-inf"): "\u2212\u221e",
        MOST: "1.8\u00b710\u00b3\u2070\u2078",
        5e-324: "4.94\u00b710\u207b\u00b3\u00b2\u2074",
    }
    assert {value: number_text(value) for value in said} == said


def test_viridis_is_matplotlibs() -> None:
    style = (TEMPLATES / "style.css").read_text()
    colours = re.findall(r"\.v(\d+) { background: #(\w{6}); color: #(?:000|fff) }", style)
    assert [int(step) for step, _ in colours] == list(range(COLOURS))
    for step, colour in colours:
        expected = 255 * np.array(matplotlib.colormaps["viridis"](int(step) / (COLOURS - 1))[:3])
        assert np.abs(np.array(list(bytes.fromhex(colour))) - expected).max() <= 0.5


def test_a_report_of_nothing_is_refused(scored: Evaluation, tmp_path: Path) -> None:
    for empty in (replace(scored, metrics=()), replace(scored, labels=scored.labels.slice(0, 0))):
        with pytest.raises(MetricError, match="no scores to report"):
            write_report(empty, tmp_path / "page.html")
    with pytest.raises(CfqaError, match="is a folder"):
        write_report(scored, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_classes_are_drawn_level_by_level(
    scored: Evaluation, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report_html(scored, folder, classes=True)
    assert 'id="classes"' not in text
    assert found == report_html(scored, cfqa_data.load(folder), classes=True)
    page = Page(found)
    pictures = [m for m in page.all("svg") if "% of sources" in m.get("aria-label", "")]
    assert len(pictures) == 4 * 6  # of each codec: the originals and five levels
    assert pictures[0]["aria-label"] == "x265, uncompressed: 100% of sources without distortion"
    assert {"qp 4", "qp 12", "qp 40", "no distortion"} <= {
        t for ts in page.texts.values() for t in ts
    }
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == [m["content"] for m in Page(text).all("meta") if "http-equiv" in m]

    monkeypatch.setattr(Dataset, "truth", lambda _, source: np.array(int(source[-1]) % 2))
    assert "class 1" in Page(report_html(scored, folder, classes=True)).texts["li"]


def test_places_of_points_are_the_same_each_time() -> None:
    centres = np.repeat(np.eye(3) * 40, 9, axis=0)
    points = centres + np.random.default_rng(0).standard_normal(centres.shape)
    places = embed(points)
    assert np.array_equal(embed(points), places)
    nearest = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert np.array_equal(nearest.argmin(axis=1) // 9, np.arange(27) // 9)
    assert not embed(np.ones((5, 2))).any()


def test_classes_that_cannot_be_drawn_are_said(
    scored: Evaluation, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = evaluate(folder, ["mse"], limit=3)
    other = MemoryDataset(1)
    for evaluation, dataset in ((few, folder), (scored, None), (evaluate(other, ["mse"]), other)):
        with pytest.raises(MetricError, match=r"no task with classes|to plot classes, give"):
            write_report(evaluation, tmp_path / "page.html", dataset, classes=True)
    assert main(["eval", str(folder), "--classes"]) == 2
    assert "--classes requires --report" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
