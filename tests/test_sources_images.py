"""Reading files of every mode, and files that are no images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfqa_data.builders.sources import images
from cfqa_data.builders.sources.images import read_depth, read_mask, read_rgb, read_size
from cfqa_data.errors import BuildError

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def rgb(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(rows: list[bytes], width: int, depth: int, colour: int) -> bytes:
    """Write a PNG by hand, since Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_colour_stays_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR))
    assert np.array_equal(rgb(path), COLOUR)
    assert read_size(path) == (5, 7)


def test_grey_is_repeated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    assert np.array_equal(rgb(path), np.stack([GREY] * 3, axis=-1))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY > 127))
    assert np.array_equal(rgb(path)[..., 1], np.where(GREY > 127, 255, 0))


def test_a_palette_is_looked_up_also_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 3).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    for options in ({}, {"transparency": b"\x00\x80\xff"}):
        path = save(tmp_path / "a.png", image, **options)
        assert np.array_equal(rgb(path), table[GREY % 3])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    shape = {"RGBA": COLOUR, "LA": GREY[..., None]}[mode]
    pixels = np.concatenate([shape, GREY[..., None]], axis=-1)
    path = save(tmp_path / "a.png", Image.fromarray(pixels, mode))
    assert np.array_equal(rgb(path), np.broadcast_to(shape, COLOUR.shape))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    flat = np.full((16, 16, 4), (255, 0, 0, 0), np.uint8)  # only cyan ink: no red
    path = save(tmp_path / "a.jpg", Image.fromarray(flat, "CMYK"), quality=95)
    assert np.abs(rgb(path).astype(int) - (0, 255, 255)).max() <= 3


def test_of_16_bits_the_high_byte_stays(tmp_path: Path) -> None:
    grey = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    high = np.array([0, 0, 1, 0x12, 0xFF])
    path = save(tmp_path / "grey.png", Image.fromarray(grey))
    assert np.array_equal(rgb(path)[0], np.stack([high] * 3, axis=-1))
    row = np.stack([grey[0], grey[0][::-1], grey[0]], axis=-1).astype(">u2").tobytes()
    (tmp_path / "colour.png").write_bytes(png([row], 5, 16, 2))
    assert np.array_equal(
        rgb(tmp_path / "colour.png")[0], np.stack([high, high[::-1], high], axis=-1)
    )


def test_an_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=exif, quality=95)
    plain = save(tmp_path / "b.jpg", Image.fromarray(COLOUR), quality=95)
    assert read_size(path) == (5, 7)
    assert np.array_equal(rgb(path), rgb(plain))


def test_a_damaged_exif_block_does_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=b"Exif\0\0II*\0\xff\xff\xff\x0f")
    assert rgb(path).shape == COLOUR.shape


def bad_files(folder: Path) -> dict[str, Path]:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    whole = save(folder / "whole.jpg", noise)
    data = whole.read_bytes()
    (folder / "short.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    rows = [RNG.bytes(3 * 64) for _ in range(64)]
    (folder / "short.png").write_bytes(png(rows, 64, 8, 2)[:6000])
    save(folder / "other.gif", Image.fromarray(GREY))
    (folder / "folder.jpg").mkdir()
    names = ["short.jpg", "empty.jpg", "text.jpg", "short.png", "other.gif", "folder.jpg", "no.jpg"]
    return {name: folder / name for name in names}


@pytest.mark.parametrize("read", [read_rgb, read_mask, read_depth])
def test_what_is_no_image_is_named_in_one_line(tmp_path: Path, read: object) -> None:
    for path in bad_files(tmp_path).values():
        with pytest.raises(BuildError) as error:
            read(path)  # type: ignore[operator]
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_what_pillow_refuses_to_unpack_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it refuses twice as many
    with pytest.raises(BuildError, match=r"a\.png"):
        read_rgb(path)


def test_the_limit_of_pixels_holds_from_the_first_pixel_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR))
    monkeypatch.setattr(images, "MAX_PIXELS", 35)
    read_rgb(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(BuildError, match=r"a\.png: 7x5 pixels exceed the limit of 34"):
        read_rgb(path)


def test_a_mask_gives_its_numbers_not_its_colours(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 20], [255, 255, 3]], np.uint8)
    image = Image.fromarray(numbers)
    grey = save(tmp_path / "grey.png", image)
    image.putpalette(RNG.integers(0, 256, 768).tolist())
    for path in (grey, save(tmp_path / "palette.png", image)):
        found = read_mask(path)
        assert found.dtype == np.uint8
        assert np.array_equal(found, numbers)


def test_depth_gives_all_16_bits(tmp_path: Path) -> None:
    depth = np.array([[0, 1, 999], [10_000, 0x1234, 65_535]], np.uint16)
    found = read_depth(save(tmp_path / "a.png", Image.fromarray(depth)))
    assert found.dtype == np.uint16
    assert np.array_equal(found, depth)


def test_masks_and_depth_maps_of_another_mode_are_refused(tmp_path: Path) -> None:
    colour = save(tmp_path / "colour.png", Image.fromarray(COLOUR))
    grey = save(tmp_path / "grey.png", Image.fromarray(GREY))
    with pytest.raises(BuildError, match=r"colour\.png: a mask must be a palette"):
        read_mask(colour)
    with pytest.raises(BuildError, match=r"grey\.png: a depth map must be a 16-bit grey PNG"):
        read_depth(grey)
