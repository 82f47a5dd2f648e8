"""JPEG before the backbone: pinned encoder, views that share a file, and untrusted bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from pipeline_toy import toy_recipe, write_networks

import cfqa_data
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.sources.preprocessing import depth_views, segmentation_views
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.inputs import picture
from cfqa_data.codecs.inputs.jpeg import Jpeg, quantization_tables
from cfqa_data.errors import CodecError
from cfqa_data.pixels import normalise
from cfqa_data.recipe.load import Recipe
from cfqa_data.testing.codecs import InputCodecSuite

QUALITIES = (95, 50, 10, 1)


def image(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return an image of smooth patches and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    smooth = np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC), np.int64)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def windows(whole: np.ndarray, side: int, *places: tuple[int, int]) -> np.ndarray:
    return normalise(np.stack([whole[y : y + side, x : x + side] for y, x in places]))


WIDE = image(32, 48)
VIEWS = {
    "one": normalise(image(32, 32)[None]),
    "side by side": windows(WIDE, 32, (0, 0), (0, 16)),
    "three in a row": windows(image(32, 80), 32, (0, 0), (0, 24), (0, 48)),
    "one above the other": windows(image(48, 32), 32, (0, 0), (16, 0)),
    "mirrored": normalise(np.stack([WIDE, WIDE[:, ::-1]])),
    "mirrored, then a window": windows(
        np.hstack([WIDE, WIDE[:, ::-1]]), 32, (0, 0), (0, 64), (0, 8)
    ),
    "strangers": normalise(np.stack([image(32, 32, 1), image(32, 32, 2)])),
    "flat": normalise(np.full((3, 32, 32, 3), 7, np.uint8)),
    "padded": np.pad(windows(WIDE, 32, (0, 0), (0, 16)), ((0, 0), (0, 0), (1, 2), (3, 0))),
}


class TestJpeg(InputCodecSuite):
    codec = Jpeg
    parameters = QUALITIES

    @classmethod
    def items(cls) -> list[np.ndarray]:
        return [VIEWS["one"], normalise(image(32, 32, 3)[None]), *list(VIEWS.values())[1:]]

    @classmethod
    def wrong_items(cls) -> list[object]:
        one = VIEWS["one"]
        return [
            "a text",
            one[0],
            one[:, :2],
            one[:0],
            one.astype(np.float64),
            np.full_like(one, np.nan),
            np.full_like(one, np.inf),
            3 * one,
            np.zeros((1, 3, 4, picture.MAX_PIXELS // 4 + 1), np.float32),
            np.zeros((1, 3, 1, 65501), np.float32),
        ]


def opened(stream: bytes) -> Image.Image:
    return Image.open(io.BytesIO(stream), formats=("JPEG",))


@pytest.mark.parametrize(("name", "rows", "columns"), [
    ("one", 32, 32),
    ("side by side", 32, 48),
    ("three in a row", 32, 80),
    ("one above the other", 48, 32),
    ("mirrored", 32, 48),
    ("mirrored, then a window", 32, 40),
    ("strangers", 64, 32),
    ("flat", 32, 32),
    ("padded", 32, 48),
])  # fmt: skip
def test_a_file_has_once_what_views_share(name: str, rows: int, columns: int) -> None:
    """And all views come back from the picture, to the last bit."""
    found = picture.merge_views(VIEWS[name])
    assert found is not None
    pixels, layout = found
    assert pixels.shape == (rows, columns, 3)
    np.testing.assert_array_equal(picture.split_views(pixels, layout), VIEWS[name])
    assert picture.Layout.of(layout.to_bytes(), rows, columns) == layout
    assert opened(Jpeg().encode(VIEWS[name], 90)).size == (columns, rows)


def test_views_of_the_published_evaluation_are_laid_out() -> None:
    """They are normalised by other roundings, and padded."""
    wide = np.asarray(Image.fromarray(WIDE).resize((500, 375)))
    for views, shape in (
        (segmentation_views(wide), (512, 683, 3)),
        (segmentation_views(np.ascontiguousarray(wide.swapaxes(0, 1))), (683, 512, 3)),
        (depth_views(np.asarray(Image.fromarray(WIDE).resize((640, 480)))), (480, 640, 3)),
    ):
        found = picture.merge_views(views)
        assert found is not None
        assert found[0].shape == shape
        np.testing.assert_allclose(picture.split_views(*found), views, atol=5e-7)


def test_tables_and_subsampling_do_not_depend_on_the_encoder() -> None:
    """At one quality, Pillow with another library, OpenCV and jpegli have other ones."""
    views = VIEWS["one"]
    for quality in QUALITIES:
        file = opened(Jpeg().encode(views, quality))
        tables = quantization_tables(quality)
        assert file.quantization == dict(enumerate(tables))
        assert [layer[1:3] for layer in file.layer] == [(2, 2), (1, 1), (1, 1)]
        assert "progressive" not in file.info
        if features.check("libjpeg_turbo") and not features.check("mozjpeg"):
            other = io.BytesIO()  # libjpeg's own tables are those of Annex K
            Image.fromarray(WIDE).save(other, "JPEG", quality=quality)
            assert opened(other.getvalue()).quantization == dict(enumerate(tables))
    file = opened(get_codec("jpeg", subsampling="4:4:4").encode(views, 50))
    assert {layer[1:3] for layer in file.layer} == {(1, 1)}


def test_what_is_coded_is_the_image() -> None:
    """Quality 100 is nearly lossless, and quality 1 preserves the mean of a flat image."""
    views = VIEWS["one"]
    fine = get_codec("jpeg", subsampling="4:4:4")
    assert np.abs(fine.decode(fine.encode(views, 100)) - views).max() < 0.06  # 3 of 255
    assert np.abs(Jpeg().decode(Jpeg().encode(VIEWS["flat"], 1)) - VIEWS["flat"]).max() < 0.5


def saved(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def layout(*places: tuple[int, int, bool], margin: int = 0) -> bytes:
    return picture.Layout((32, 32), (margin,) * 4, places).to_bytes()


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", "not a JPEG file"),
        (saved("PNG", WIDE), "not a JPEG file"),
        (saved("JPEG", WIDE, progressive=True), "not a baseline"),
        (saved("JPEG", WIDE[..., 0]), "not a baseline"),
        (saved("JPEG", WIDE, comment=b"a photo"), "layout of views is damaged"),
        (saved("JPEG", WIDE, comment=layout()), "does not fit"),
        (saved("JPEG", WIDE, comment=layout((0, 17, False))), "does not fit"),
        (saved("JPEG", WIDE, comment=layout((0, 0, False), margin=65535)), "does not fit"),
        (saved("JPEG", WIDE)[:-1], "cut short"),
    ],
)
def test_files_that_are_none_of_its_own_are_refused_in_one_line(stream: bytes, why: str) -> None:
    with pytest.raises(CodecError, match=why) as found:
        Jpeg().decode(stream)
    assert "\n" not in str(found.value)


def test_the_pixels_of_a_file_are_limited_before_they_are_decoded() -> None:
    stream = bytearray(saved("JPEG", WIDE))
    place = stream.index(b"\xff\xc0") + 5  # rows and columns in the frame header
    stream[place : place + 4] = b"\x1f\x40" * 2
    with pytest.raises(CodecError, match="8000x8000 pixels exceed the limit of 16777216"):
        Jpeg().decode(stream)


@pytest.mark.parametrize("quality", [0, 101, 50.5])
def test_qualities_that_there_are_not_are_refused(quality: float) -> None:
    with pytest.raises(CodecError, match=r"^jpeg: quality must be "):
        Jpeg().encode(VIEWS["one"], quality)


def test_the_manifest_says_what_made_the_files() -> None:
    version = get_codec("jpeg", subsampling="4:2:2").version()
    assert version["library"].endswith(f" in Pillow {Image.__version__}")
    assert version["subsampling"] == "4:2:2"
    assert "Annex K" in version["tables"]


def test_a_light_dataset_holds_the_features_of_the_decoded_images(tmp_path: Path) -> None:
    write_networks(tmp_path)
    whole = toy_recipe(tmp_path, {"jpeg": {"levels": [80, 5], "quantizer": None}}).to_dict()
    recipe = Recipe.from_dict(whole | {"tasks": {"seg": whole["tasks"]["seg"]}})
    dataset = cfqa_data.load(build(recipe, tmp_path / "light", workers=0, tier="light"))
    models = Models(recipe)
    assert len(dataset) == 6
    for pair in dataset:
        label = pair.label
        stream = dataset.bitstream(label["source_id"], "jpeg", label["level"])
        feature = models.features(label["task"], Jpeg().decode(stream), "one")
        np.testing.assert_array_equal(pair.compressed, feature)
        assert label["bits"] == 8 * len(stream)
    assert dataset.manifest.versions["jpeg subsampling"] == "4:2:0"
