"""A small version of the VOC 2012 development kit: windows, masks, lists and training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfqa_data.builders.sources import Source, get_source
from cfqa_data.builders.sources.preprocessing import segmentation_views
from cfqa_data.builders.sources.voc2012 import Voc2012
from cfqa_data.errors import BuildError
from cfqa_data.testing.sources import SourceSuite

#: Height and width of the validation images; the fourth is square and the fifth too long.
SIZES = {
    "2007_000033": (37, 50),
    "2007_000042": (50, 33),
    "2007_000061": (36, 49),
    "2007_000123": (40, 40),
    "2007_000129": (25, 50),
}
TRAIN = {"2007_000032": (28, 50), "2007_000039": (50, 38), "2007_000063": (33, 50)}
TWO_WINDOWS = ["2007_000033", "2007_000042", "2007_000061"]
TRAIN_TWO = ["2007_000039", "2007_000063"]


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def save_mask(path: Path, numbers: np.ndarray) -> None:
    image = Image.fromarray(numbers)
    image.putpalette(list(range(255, -1, -1)) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def numbers(size: tuple[int, int]) -> np.ndarray:
    mask = np.add.outer(np.arange(size[0]) // 9, np.arange(size[1]) // 9).astype(np.uint8)
    mask[:2] = 255
    return mask


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (SIZES | TRAIN).items():
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClass" / f"{name}.png", numbers(size))
    sets = root / "ImageSets" / "Segmentation"
    write(sets / "val.txt", *SIZES)
    write(sets / "train.txt", *TRAIN)
    return root


def source(root: Path, seed: int = 0, **options: str) -> Source:
    return get_source("voc2012")("seg", seed, root=str(root), **options)


def views_of(root: Path, name: str) -> bytes:
    with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
        return segmentation_views(np.asarray(image)).tobytes()


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_root_may_be_any_of_the_kit_s_folders(kit: Path, up: int) -> None:
    root = [kit, *kit.parents][up]
    assert sorted(sample.source_id for sample in source(root).samples()) == TWO_WINDOWS


def test_samples_hold_the_windows_and_the_mask(kit: Path) -> None:
    for sample in source(kit).samples():
        assert (sample.inputs.shape, sample.inputs.dtype) == ((2, 3, 518, 518), np.float32)
        assert sample.inputs.tobytes() == views_of(kit, sample.source_id)
        assert sample.truth.dtype == np.uint8
        assert np.array_equal(sample.truth, numbers(SIZES[sample.source_id]))


def test_a_list_keeps_its_order(kit: Path, tmp_path: Path) -> None:
    chosen = write(tmp_path / "list.txt", "2007_000061", "2007_000033.jpg")
    of = source(kit, list=chosen)
    assert [sample.source_id for sample in of.samples()] == ["2007_000061", "2007_000033"]
    with pytest.raises(BuildError, match="unknown voc2012 image '2007_000042'"):
        of.sample("2007_000042")


def test_a_list_names_only_the_validation_set(kit: Path, tmp_path: Path) -> None:
    chosen = write(tmp_path / "list.txt", "2007_000033", "2007_000032")
    with pytest.raises(BuildError, match=r"list\.txt, line 2: .*validation set '2007_000032'"):
        source(kit, list=chosen)


@pytest.mark.parametrize("name", ["2007_000123", "2007_000129"])
def test_a_listed_image_without_two_windows_is_refused(
    kit: Path, tmp_path: Path, name: str
) -> None:
    of = source(kit, list=write(tmp_path / "list.txt", name))
    with pytest.raises(BuildError, match=rf"{name}\.jpg: .* is too small for two windows"):
        next(of.samples())


def test_an_empty_mask_is_passed_over_and_refused_in_a_list(kit: Path, tmp_path: Path) -> None:
    name = "2007_000042"
    save_mask(kit / "SegmentationClass" / f"{name}.png", np.full(SIZES[name], 255, np.uint8))
    left = sorted(sample.source_id for sample in source(kit).samples())
    assert left == ["2007_000033", "2007_000061"]
    of = source(kit, list=write(tmp_path / "list.txt", name))
    with pytest.raises(BuildError, match=rf"{name}\.png: the mask has no valid pixel"):
        next(of.samples())
    with pytest.raises(BuildError, match="no valid pixel"):
        source(kit).sample(name)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((49, 36), np.uint8), r"61\.png: 36x49, and the image is 49x36"),
        (np.full((36, 49), 21, np.uint8), r"61\.png: class 21 is not in 0\.\.20"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(kit: Path, mask: np.ndarray, message: str) -> None:
    save_mask(kit / "SegmentationClass" / "2007_000061.png", mask)
    with pytest.raises(BuildError, match=message):
        list(source(kit).samples())


def test_an_orientation_turns_neither_the_image_nor_the_mask(kit: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = kit / "JPEGImages" / "2007_000033.jpg"
    before = source(kit).sample("2007_000033")
    path.write_bytes(path.read_bytes()[:2] + jpeg_segment(exif) + path.read_bytes()[2:])
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    after = source(kit).sample("2007_000033")
    assert np.array_equal(before.inputs, after.inputs)
    assert np.array_equal(before.truth, after.truth)


def jpeg_segment(exif: Image.Exif) -> bytes:
    data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    return b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data


def test_grey_images_are_taken(kit: Path) -> None:
    path = kit / "JPEGImages" / "2007_000033.jpg"
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.save(path)
    with Image.open(path) as image:
        expected = segmentation_views(np.stack([np.asarray(image)] * 3, axis=-1))
    assert np.array_equal(source(kit).sample("2007_000033").inputs, expected)


def test_training_images_come_from_the_training_set(kit: Path, tmp_path: Path) -> None:
    views = list(source(kit).training_inputs(2, 3))
    assert {view.tobytes() for view in views} == {views_of(kit, name) for name in TRAIN_TWO}
    with pytest.raises(BuildError, match="3 training images are requested and there are only 2"):
        list(source(kit).training_inputs(3, 0))
    one = list(source(kit, train=write(tmp_path / "t.txt", "2007_000063")).training_inputs(1, 0))
    assert one[0].tobytes() == views_of(kit, "2007_000063")


def test_missing_files_are_named_together_and_where_they_are_offered(
    kit: Path, tmp_path: Path
) -> None:
    with pytest.raises(BuildError) as error:
        source(tmp_path / "no", list=str(tmp_path / "list"), train=str(tmp_path / "train"))
    told = str(error.value)
    for path in ("no/JPEGImages", "no/SegmentationClass", "val.txt", "list", "train"):
        assert path in told
    assert "http://host.robots.ox.ac.uk" in told
    assert "\n" not in told
    (kit / "JPEGImages" / "2007_000042.jpg").unlink()
    (kit / "SegmentationClass" / "2007_000129.png").unlink()
    with pytest.raises(BuildError) as error:
        source(kit)
    assert f"{kit}/JPEGImages/2007_000042.jpg; {kit}/SegmentationClass/2007_000129.png; " in str(
        error.value
    )
    chosen = write(tmp_path / "list.txt", "2007_000033")
    assert [sample.source_id for sample in source(kit, list=chosen).samples()] == ["2007_000033"]


def test_a_root_that_no_path_can_be_is_missing(kit: Path) -> None:
    with pytest.raises(BuildError, match=r"missing: /.*/a\\x00b/JPEGImages; "):
        source(Path("a\0b"))


def test_training_images_are_needed_only_for_training(kit: Path) -> None:
    (kit / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert next(iter(source(kit).samples()))
    with pytest.raises(BuildError, match=r"missing: .*train\.txt"):
        list(source(kit).training_inputs(1, 0))


class TestVoc2012(SourceSuite):
    source, task, count, training = Voc2012, "seg", 2, 2

    @pytest.fixture(autouse=True)
    def data(self, kit: Path) -> None:
        self.options = {"root": str(kit)}
