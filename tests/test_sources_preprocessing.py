"""The views, step by step, against slow implementations and values of the published tools."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfqa_data.builders.sources.geometry import SegGeometry, window_starts
from cfqa_data.builders.sources.preprocessing import (
    classification_view,
    depth_views,
    normalise_255,
    pad_to_patches,
    resize_linear,
    segmentation_views,
    two_windows,
)
from cfqa_data.errors import BuildError
from cfqa_data.pixels import normalise

HERE = Path("image.jpg")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def made(height: int, width: int) -> np.ndarray:
    """Return the image from which OpenCV's values below were computed."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return ((y * y * 7 + x * x * 3 + x * y * 5 + c * 91) % 251).astype(np.uint8)


def triangle_weights(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of a triangle as wide as the scale: bilinear with antialias."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - abs(np.arange(source) + 0.5 - centres) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("height", "width", "scaled", "corner"),
    [
        (300, 400, (256, 341), (16, 58)),  # half of 117 is 58.5, and 58 is even
        (400, 300, (341, 256), (58, 16)),
        (375, 503, (256, 343), (16, 60)),  # half of 119 is 59.5, and 60 is even
        (499, 375, (340, 256), (58, 16)),  # 340.65
        (375, 499, (256, 340), (16, 58)),
        (256, 256, (256, 256), (16, 16)),
        (40, 31, (330, 256), (53, 16)),  # enlarged; 330.3
        (224, 300, (256, 342), (16, 59)),
    ],
)
def test_classification_scales_the_short_side_and_cuts_the_middle(
    height: int, width: int, scaled: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = made(height, width)
    rows, columns = triangle_weights(height, scaled[0]), triangle_weights(width, scaled[1])
    top, left = corner
    across = columns[left : left + 224] @ image.astype(float)  # (H, 224, 3)
    part = np.tensordot(rows[top : top + 224], across, axes=1)
    view = classification_view(Image.fromarray(image), HERE)
    assert (view.shape, view.dtype) == ((1, 3, 224, 224), np.float32)
    found = (np.moveaxis(view[0], 0, -1) * STD + MEAN) * 255
    # Pillow rounds to 8 bits after each axis: at most half a step each, and the triangle spreads.
    assert np.abs(found - part).max() < 1.01
    assert np.abs(found - part).mean() < 0.4


def test_classification_normalises_as_torchvision_does() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = torch.from_numpy(np.moveaxis(images[0], -1, 0).copy()).float().div(255)
    tensor.sub_(torch.tensor([0.485, 0.456, 0.406])[:, None, None])
    tensor.div_(torch.tensor([0.229, 0.224, 0.225])[:, None, None])
    assert np.array_equal(normalise(images)[0], tensor.numpy())


def test_an_image_that_would_grow_too_large_is_refused() -> None:
    with pytest.raises(BuildError, match=r"image\.jpg: 512000x256 pixels exceed the limit of"):
        classification_view(Image.new("RGB", (2000, 1)), HERE)


# From OpenCV 4.14.0 and 5.0.0 (x86-64), which agree: cv2.resize(image, (width, height)).
def test_resize_gives_opencv_s_values() -> None:
    assert resize_linear(made(5, 4), 3, 7)[..., 0].tolist() == [
        [2, 4, 7, 12, 19, 28, 34],
        [28, 33, 40, 51, 62, 76, 85],
        [96, 103, 115, 131, 146, 166, 178],
    ]
    assert resize_linear(made(3, 4), 5, 6)[..., 1].tolist() == [
        [91, 92, 95, 101, 110, 118],
        [94, 96, 101, 108, 118, 127],
        [98, 102, 108, 118, 130, 140],
        [110, 116, 124, 136, 150, 161],
        [119, 125, 135, 148, 163, 176],
    ]


@pytest.mark.parametrize(
    ("source", "target", "digest"),
    [
        ((375, 500), (512, 683), "a2492e1492601ac6"),
        ((500, 333), (769, 512), "4cba1eff4777ebc8"),
        ((1, 9), (5, 7), "b25ebe896a1aee06"),
        ((600, 811), (512, 692), "1f6ed264b757c49a"),
        ((64, 96), (32, 48), "3d6d28c992e7292b"),
        ((301, 1000), (512, 1701), "5e61859b28a6bdac"),
    ],
)
def test_resize_gives_opencv_s_bytes(
    source: tuple[int, int], target: tuple[int, int], digest: str
) -> None:
    found = resize_linear(made(*source), *target)
    assert found.shape == (*target, 3)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("target", [(9, 13), (20, 31), (7, 40), (11, 8), (10, 10)])
def test_resize_is_bilinear_between_pixel_centres(target: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (10, 14, 3), np.uint8)
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), target, mode="bilinear"
    )[0].permute(1, 2, 0)
    assert np.abs(resize_linear(image, *target) - plain.numpy()).max() < 1.0


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = made(6, 5)
    assert np.array_equal(resize_linear(image, 6, 5), image)


# From cv2.subtract and cv2.multiply as mmcv 1.5 calls them, OpenCV 4.14.0 and 5.0.0 (x86-64).
def test_normalising_gives_mmcv_s_values() -> None:
    pixels = [[0, 0, 0], [1, 2, 3], [123, 116, 103], [255, 254, 253]]
    expected = [
        ["-0x1.0f177ap+1", "-0x1.04924ap+1", "-0x1.cdf012p+0"],
        ["-0x1.0ce656p+1", "-0x1.0016f2p+1", "-0x1.c08d5ap+0"],
        ["-0x1.7ac61cp-7", "-0x1.4140e6p-8", "-0x1.2eb15cp-7"],
        ["0x1.1fdc3ap+1", "0x1.349dc2p+1", "0x1.4d7548p+1"],
    ]
    found = normalise_255(np.array([pixels], np.uint8))
    assert found.shape == (3, 1, 4)
    assert found[:, 0].T.tolist() == [[float.fromhex(v) for v in row] for row in expected]
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    table = np.ascontiguousarray(np.moveaxis(normalise_255(levels), 0, -1))
    assert hashlib.sha256(table.tobytes()).hexdigest()[:16] == "4701e523c32d815c"
    assert np.abs(normalise_255(levels) - normalise(levels)).max() <= 5e-7


@pytest.mark.parametrize(
    ("shape", "padded", "corner"),
    [
        ((512, 512), (518, 518), (3, 3)),
        ((480, 640), (490, 644), (5, 2)),
        ((1, 27), (14, 28), (6, 0)),
        ((14, 28), (14, 28), (0, 0)),
    ],
)
def test_padding_is_zero_and_centred(
    shape: tuple[int, int], padded: tuple[int, int], corner: tuple[int, int]
) -> None:
    views = np.random.default_rng(0).normal(size=(2, 3, *shape)).astype(np.float32) + 9
    found = pad_to_patches(views)
    assert (found.shape, found.dtype) == ((2, 3, *padded), np.float32)
    inside = found[..., corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]]
    assert np.array_equal(inside, views)
    assert np.count_nonzero(found) == views.size


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [
        (375, 500, (512, 683)),  # 682.67
        (500, 375, (683, 512)),
        (333, 500, (512, 769)),  # 768.77
        (366, 500, (512, 699)),  # 699.45
        (300, 500, (512, 853)),  # 853.33: still two windows
        (100, 900, (228, 2048)),  # the long side's limit holds; 227.56
    ],
)
def test_segmentation_s_scaled_size(height: int, width: int, scaled: tuple[int, int]) -> None:
    assert SegGeometry().scaled(height, width) == scaled


def test_two_windows_mean_a_long_side_of_513_to_853() -> None:
    for long in range(512, 1300):
        assert (two_windows(512, long), two_windows(long, 512)) == ((513 <= long <= 853,) * 2)
    assert two_windows(300, 500)
    assert not two_windows(299, 500)  # 856
    assert not two_windows(400, 400)
    assert not two_windows(100, 900)


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize(("short", "long", "scaled"), [(375, 500, 683), (300, 500, 853)])
def test_segmentation_s_windows(portrait: bool, short: int, long: int, scaled: int) -> None:
    image = made(short, long)
    windows = resize_linear(image, 512, scaled)
    windows = np.stack([windows[:, :512], windows[:, -512:]])
    if portrait:
        # Resizing first along columns, then along rows: a turned image is not the turned result.
        image = made(long, short)
        tall = resize_linear(image, scaled, 512)
        windows = np.stack([tall[:512], tall[-512:]])
    views = segmentation_views(image)
    assert (views.shape, views.dtype) == ((2, 3, 518, 518), np.float32)
    inside = np.moveaxis(views[:, :, 3:-3, 3:-3].astype(float), 1, -1)
    expected = (windows - MEAN * 255) / (STD * 255)
    assert np.abs(inside - expected).max() < 1e-6
    views[:, :, 3:-3, 3:-3] = 0
    assert not views.any()


def test_the_second_window_starts_where_the_head_expects_it() -> None:
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(853, 512, 341) == [0, 341]


def test_depth_s_views_are_the_image_and_its_mirror_image() -> None:
    image = made(480, 640)
    views = depth_views(image)
    assert (views.shape, views.dtype) == ((2, 3, 490, 644), np.float32)
    expected = np.moveaxis((image - MEAN * 255) / (STD * 255), -1, 0)
    assert np.abs(views[0, :, 5:-5, 2:-2] - expected).max() < 1e-6
    assert np.array_equal(views[1], views[0][..., ::-1])
    views[:, :, 5:-5, 2:-2] = 0
    assert not views.any()
