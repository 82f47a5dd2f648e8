"""Images of sources, token grids, and the pages and pictures that show them."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_toy import qp, toy_recipe, write_networks

import cfqa_data
from cfqa_data.access.folder import Folder
from cfqa_data.access.grid import TokenGrid, token_grid
from cfqa_data.builders.gallery.page import write_gallery
from cfqa_data.builders.gallery.tokens import Tokens
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.label import scoring_models
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.sources.scenes import Scenes, draw_scene, render
from cfqa_data.builders.sources.solids import SHAPES
from cfqa_data.builders.tasks.classification import Classification
from cfqa_data.builders.tasks.drawing import Bar, Drawing
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import Terms
from cfqa_data.recipe.load import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    data = toy_recipe(folder, {"x265": qp(20, 45)}).to_dict()
    return Recipe.from_dict(data | {"sources_per_task": 2})


@pytest.fixture(scope="module")
def built(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe, tmp_path_factory.mktemp("data") / "toy", workers=0)


def arrays() -> cfqa_data.Dataset:
    """A dataset in memory with features and distortions only."""
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 4)).astype("f4")
    return cfqa_data.from_arrays(
        originals=dict(zip("ab", x, strict=True)),
        compressed={"half": {1: dict(zip("ab", x / 2, strict=True))}},
        distortion={"half": {1: {"a": 0.1, "b": 0.2}}},
    )


def test_images_are_the_scenes_that_features_were_made_from(built: Path) -> None:
    dataset = cfqa_data.load(built)
    for task, entry in dataset.manifest.tasks.items():
        for source in entry.sources:
            aspect = 1.5 if task == "seg" else 1.0
            scene = render(
                draw_scene(int(source.rpartition("-")[2]), aspect), 112, int(112 * aspect)
            )
            np.testing.assert_array_equal(np.asarray(dataset.image(source)), scene.image)


def test_what_has_no_image_is_told_in_a_line(
    built: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(dataset: cfqa_data.Dataset, source: str) -> str:
        with pytest.raises(CfqaError) as error:
            dataset.image(source)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "'a' has no image here: recipe: the manifest's recipe cannot rebuild" in told(
        arrays(), "a"
    )
    load = cfqa_data.load
    source = load(built).source_ids[0]
    assert "unknown source 'nothing'" in told(load(built), "nothing")
    for inputs, why in (
        ("a text", "its input is a text"),
        (np.zeros((1, 4, 5), np.float32), "its input is not an image"),
        (np.full((1, 3, 8, 8), 50.0, np.float32), "its input is not an image"),
    ):
        monkeypatch.setattr(Scenes, "sample", lambda self, name, i=inputs: Sample(name, i))
        assert told(load(built), source).endswith(f"{source!r} has no image: {why}")
    monkeypatch.setattr(Scenes, "image", lambda self, name: np.zeros((8, 8), np.uint8), False)
    assert "Scenes.image must return uint8 (H, W, 3), got uint8 (8, 8)" in told(load(built), source)

    data = recipe.to_dict()
    data["tasks"]["cls"]["source"] = {
        "kind": "image_folder",
        "seed": 1,
        "options": {"root": "root://photos"},
    }
    monkeypatch.setattr(
        "cfqa_data.builders.gallery.source.scoring_recipe", lambda _: Recipe.from_dict(data)
    )
    assert "missing: " in told(load(built), source)
    assert "reads files that an untrusted recipe names (root)" in told(
        load(built, untrusted=True), source
    )


def test_grids(built: Path) -> None:
    dataset = cfqa_data.load(built)
    for task, entry in dataset.manifest.tasks.items():
        grid = dataset.grid(task)
        assert grid == (1, 8, 8)
        tokens = np.arange(2 * entry.shape[2]).reshape(2, -1)
        assert grid.unfold(tokens)[1, 7, 4] == tokens[1, 1 + 7 * 8 + 4]
    with pytest.raises(CfqaError, match="did you mean 'seg'"):
        dataset.grid("sge")
    assert arrays().grid(next(iter(arrays().manifest.tasks))) is None


@pytest.mark.parametrize(
    ("tokens", "grid", "version", "expected"),
    [
        (1611, None, 1, (1, 35, 46)),  # published depth
        (257, None, 1, (1, 16, 16)),
        (8, None, 1, None),
        (257, None, 2, None),
        (9, (2, 4), 2, (1, 2, 4)),
    ],
)
def test_grids_of_both_formats(tokens: int, grid: Any, version: int, expected: Any) -> None:
    entry: Any = SimpleNamespace(shape=(1, 1, tokens, 4), prefix_tokens=1, grid=grid)
    assert token_grid(entry, version) == expected


def test_errors_of_tokens_are_in_units_of_their_spread() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 9, 6)).astype("f4")
    tokens = Tokens(x, 1, TokenGrid(1, 2, 4))
    assert not np.nanmax(tokens.errors(x))
    mean = np.broadcast_to(x[:, :, 1:].mean(axis=2, keepdims=True), (2, 3, 8, 6))
    errors = tokens.errors(np.concatenate([x[:, :, :1], mean], axis=2))
    assert errors.shape == (2, 4 + 1 + 4)
    assert np.isnan(errors[:, 4]).all()  # between the views
    views = np.stack([errors[:, :4], errors[:, 5:]])
    np.testing.assert_allclose(np.square(views).mean(axis=(1, 2)), 1, rtol=1e-6)
    changed = x.copy()
    changed[1, :, 1 + 5] += 1  # the second view's second row, second column
    assert np.argwhere(tokens.errors(changed) > 0).tolist() == [[1, 5 + 1]]


def test_colours_of_tokens_are_their_principal_components() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 2, 10, 6)).astype("f4") * np.array([9, 3, 1, 0.1, 0.1, 0.1], "f4")
    tokens = Tokens(x, 0, None)
    centred = x[0, -1] - x[0, -1].mean(axis=0)
    found = tokens.colours(x)[0].astype(float)
    for colour, axis in zip(found.T, np.linalg.svd(centred)[2], strict=False):
        assert abs(np.corrcoef(colour, centred @ axis)[0, 1]) > 0.97  # ends are cut off
    assert not Tokens(x[:, :, :1], 0, None).drawn


def test_what_is_drawn_is_what_the_task_scores(built: Path) -> None:
    dataset = cfqa_data.load(built, codec="x265")
    for task, entry in dataset.manifest.tasks.items():
        view = dataset.show(entry.sources[0]).view
        assert view.notes == ()
        head = scoring_models(dataset._folder, task).task(task).head
        truth = dataset.truth(view.source_id)
        for version in view.versions:
            feature = dataset.compressed(view.source_id, version.codec, version.level)
            drawing = version.drawing
            if task == "cls":
                places = [bar.right for bar in drawing.bars]
                place = places.index(True) + 1
                text = drawing.bars[-1].text
                assert version.score == (int(text[6:]) if text.startswith("place") else place)
            elif task == "seg":
                mask = head.predict(feature, truth.shape).numpy()
                codes = drawing.picture.astype(int) @ (1, 256, 65536)
                assert len(np.unique(np.stack([mask, codes]).reshape(2, -1), axis=1).T) == len(
                    np.unique(mask)
                )
                assert set(drawing.key) <= {"background", *SHAPES}
            else:
                metres = head.predict(feature).numpy()
                bright = drawing.picture.sum(axis=-1)
                assert np.corrcoef(metres.ravel(), bright.ravel())[0, 1] < -0.9  # near is bright
        if task != "cls":
            assert view.truth.picture.shape[:2] == truth.shape == view.input.shape[:2]


def test_only_what_is_asked_for_is_read(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, read = cfqa_data.load(built), []
    compressed = Folder.compressed

    def counted(self: Folder, *what: Any, **part: Any) -> np.ndarray:
        read.append(what)
        return compressed(self, *what, **part)

    monkeypatch.setattr(Folder, "compressed", counted)
    source = dataset.manifest.tasks["seg"].sources[1]
    shown = dataset.show(source, level=1, metrics=["mse", lambda x, y: (y - x).amax((1, 2, 3, 4))])
    assert read == [(source, "x265", 1)]
    (row,) = shown.rows()
    stored = dataset.show(source, codec="x265", level=1).rows()[0]
    assert row["mse"] == pytest.approx(stored["mse"], rel=1e-6)
    gap = dataset.compressed(source, "x265", 1) - dataset.original(source)
    assert row["<lambda>"] == pytest.approx(gap.max())
    evaluation = cfqa_data.evaluate(cfqa_data.load(built, "seg"), ["mse", "psnr"])
    named = ["--level", "1", "--codec", "x265", "--metric", "mutual_knn:k=3,cosine", "--json"]
    assert main(["show", str(built), source, *named]) == 0
    assert {"mutual_knn:k=3", "cosine"} < json.loads(capsys.readouterr().out)["versions"][0].keys()
    known = dataset.show(source, metrics=["psnr"], evaluation=evaluation).rows()[1]
    (expected,) = (
        row["value"]
        for row in evaluation.scores.to_pylist()
        if (row["source_id"], row["level"], row["metric"]) == (source, 1, "psnr")
    )
    assert known["psnr"] == expected
    assert "mse" not in known
    with pytest.raises(CfqaError, match="unknown metric of the scores 'cka'"):
        dataset.show(source, metrics=["cka"], evaluation=evaluation)
    with pytest.raises(CfqaError, match="there is no level 2: levels are 0 to 1"):
        dataset.show(source, level=2)
    with pytest.raises(CfqaError, match="no row of"):
        cfqa_data.load(built, "cls").show(source)


def data_of(page: str) -> list[dict[str, Any]]:
    (data,) = re.findall(r'<script id="data" type="application/json">(.*)</script>', page)
    found: list[dict[str, Any]] = json.loads(data)
    return found


def test_a_gallery_is_one_page_that_fetches_nothing(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["gallery", str(built), "--out", str(out), "--sources", "5"]) == 0
    assert f"Gallery: {out} (" in capsys.readouterr().out
    page = html.unescape(out.read_text())
    views = data_of(page)
    assert [view["task"] for view in views] == ["cls", "seg", "seg", "dpt", "dpt"]
    for view in views:
        assert [version["level"] for version in view["codecs"]["x265"]] == [0, 1]
        picture = view["codecs"]["x265"][1]["errors"]
        image = Image.open(io.BytesIO(base64.b64decode(picture.partition("base64,")[2])))
        assert image.size == (8 * view["views"] + view["views"] - 1, 8)
    assert "default-src 'none'; img-src data:; style-src" in page
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", page)
    assert main(["gallery", str(built), "--out", str(out)]) == 2


def test_names_are_escaped_and_what_is_missing_is_told(tmp_path: Path) -> None:
    hostile = "</script><b>$\\frac$"
    x = np.random.default_rng(0).normal(size=(1, 1, 5, 4)).astype("f4")
    dataset = cfqa_data.from_arrays(
        originals={hostile: x},
        compressed={"half": {1: {hostile: x / 2}}},
        distortion={"half": {1: {hostile: 0.1}}},
        name=hostile,
    )
    page = write_gallery(dataset, tmp_path / "page.html").read_text()
    assert "<b>" not in page
    (view,) = data_of(page)
    assert view["id"] == hostile
    assert view["truth"] is view["original"]["drawing"] is view["image"] is None
    assert view["original"]["colours"]
    assert any("has no image here" in note for note in view["notes"])
    shown = dataset.show(hostile)
    assert shown.save(tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")
    assert shown.save(tmp_path / "shown.html").read_text().count("<article>") == 1
    assert "half" in repr(shown)
    assert "nan" not in repr(shown)
    assert shown._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(CfqaError, match=r"the file name must end in \.html or \.png"):
        shown.save(tmp_path / "shown.gif")


def test_a_task_of_a_stranger_may_draw_anything_else(
    built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = cfqa_data.load(built).manifest.tasks["cls"].sources[0]

    def shown(found: Any) -> Any:
        monkeypatch.setattr(Classification, "draw", lambda *_: found)
        return cfqa_data.load(built).show(source, level=1)

    calls = iter([None, Drawing(bars=(Bar("one", 1.0),)), None, Drawing()])
    monkeypatch.setattr(Classification, "draw", lambda *_: next(calls))
    lines = repr(cfqa_data.load(built).show(source)).splitlines()
    assert [line.split()[-1] for line in lines[4:]] == ["one", "-", "-"]
    nothing = shown(None)
    assert nothing.view.original.drawing is None
    nothing.save(tmp_path / "nothing.png")
    assert 'data-slot="truth"' not in nothing.save(tmp_path / "nothing.html").read_text()
    for found, why in (
        ("a mask", "must return a Drawing or None, not str"),
        (Drawing(bars=(Bar("a", float("nan")),)), "a bar must be Bar"),
        (Drawing(key={"a": (0.5, 0.5, 0.5)}), "the colour of 'a' must be RGB of 0 to 255"),
        (Drawing(np.zeros((2, 2))), r"a picture must be uint8 \(H, W, 3\), not \(2, 2\)"),
    ):
        with pytest.raises(CfqaError, match=f"Classification.draw.*{why}"):
            shown(found)


def test_a_copy_without_truths_shows_the_rest(built: Path) -> None:
    dataset = cfqa_data.load(built, "seg")
    del dataset.manifest.files["truth/seg.safetensors"]
    object.__setattr__(dataset.manifest.tasks["seg"], "terms", Terms(link="https://terms.example"))
    view = dataset.show(dataset.source_ids[0], level=1).view
    assert "contains no ground truth of seg" in view.notes[0]
    assert view.notes[1].endswith("to be redistributed: https://terms.example")
    assert view.truth is None
    assert view.original.drawing.picture.shape == (112, 2 * 112, 3)  # each window by itself
